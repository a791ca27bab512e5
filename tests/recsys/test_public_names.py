import subprocess
import sys

import pytest

from trl_sdpo import recsys


def test_records_and_metrics_need_no_torch():
    code = "import sys, trl_sdpo.recsys; print(sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert set(recsys.__all__) <= set(dir(recsys))
    for name in recsys.__all__:
        assert getattr(recsys, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'search_catalog'"):
        _ = recsys.search_catalog

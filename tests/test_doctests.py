import doctest
import importlib
import re
from pathlib import Path

import pytest

import trl_sdpo


PACKAGE = Path(trl_sdpo.__file__).parent
# Its example starts from a model and a data set of the Hub; docs/quickstart.md runs the same with files
NOT_RUN = {"trl_sdpo.trainer.softmax_dpo_trainer"}


class MarkdownParser(doctest.DocTestParser):
    """The examples stand in fenced code blocks; a closing fence is not part of the expected output."""

    def parse(self, string, name="<string>"):
        return super().parse(re.sub(r"^( *)```.*$", "", string, flags=re.MULTILINE), name)


def modules_with_examples():
    with_examples = (path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in with_examples}
    assert names > NOT_RUN
    return sorted(names - NOT_RUN)


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings(name):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(parser=MarkdownParser()).find(importlib.import_module(name)):
        runner.run(test)
    assert runner.tries > 0
    assert runner.failures == 0

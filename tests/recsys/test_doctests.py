import doctest
import importlib

import pytest


MODULES = (
    "baselines",
    "scorers",
    "leaks",
    "negatives",
    "recipes",
    "targets",
    "candidates",
    "catalogue_metrics",
    "comparison",
    "generation",
    "interactions",
    "matching",
    "metrics",
    "preferences",
    "ranking",
    "title_trie",
    "prompts",
    "sdpo_json",
    "sequences",
    "splits",
    "table",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name):
    result = doctest.testmod(importlib.import_module(f"trl_sdpo.recsys.{name}"))
    assert result.attempted > 0
    assert result.failed == 0

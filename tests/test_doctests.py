import doctest
import importlib
import re

import pytest


class MarkdownParser(doctest.DocTestParser):
    """The examples stand in fenced code blocks; a closing fence is not part of the expected output."""

    def parse(self, string, name="<string>"):
        return super().parse(re.sub(r"^( *)```.*$", "", string, flags=re.MULTILINE), name)


@pytest.mark.parametrize(
    "module_name",
    [
        "card_evaluation",
        "licences",
        "losses",
        "data_utils",
        "collators",
        "samplers",
        "recommender_files",
        "evaluation_breakdowns",
    ],
)
def test_examples_in_docstrings(module_name):
    module = importlib.import_module(f"trl_sdpo.{module_name}")
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(parser=MarkdownParser()).find(module):
        runner.run(test)
    assert runner.tries > 0
    assert runner.failures == 0

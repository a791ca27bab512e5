"""Every command and snippet of README.md and docs/*.md runs, or stands in `exceptions.py` with the reason."""

from pathlib import Path

import pytest
from exceptions import GIVEN, NOT_RUN
from page_files import write_all
from snippets import PYTHON, SHELL, Block, Page, SnippetError, as_in_a_process_of_its_own, blocks_of, commands_of

from trl_sdpo import cli


ROOT = Path(__file__).parents[2]
PAGES = {path.name: path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


@pytest.fixture
def directory(tmp_path, monkeypatch, llama, tokenizer):
    """The working directory of a page."""
    write_all(tmp_path, ROOT, llama(), tokenizer)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRL_SDPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache" / "datasets"))
    # TRL trains in bfloat16 unless told otherwise, and transformers asks for a GPU then, though a CPU can do it
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.setattr("trl_sdpo.commands.run._start", start_here)
    return tmp_path


def start_here(name, words):
    """A command of `trl-sdpo run` in this process, where the libraries are imported already."""
    with as_in_a_process_of_its_own():
        return cli.main([name, *words])


@pytest.mark.parametrize("name", PAGES)
def test_page(name, directory):
    with as_in_a_process_of_its_own():
        page = Page(name, ROOT)
        for block in blocks_of(PAGES[name]):
            page.run(block)
    unused = {one for one in NOT_RUN if one.page == name} - page.exceptions_used
    assert not unused, "no command begins like this any more: take it from NOT_RUN in tests/docs/exceptions.py"


def test_the_tables_speak_of_pages_that_are_there():
    assert {one.page for one in NOT_RUN} | set(GIVEN) <= set(PAGES)


def test_the_pages_have_blocks():
    """So that a change of the way in which they are found cannot leave all of them out."""
    languages = [block.language for path in PAGES.values() for block in blocks_of(path)]
    assert sum(language in PYTHON for language in languages) >= 5
    assert sum(language in SHELL for language in languages) >= 5


def test_blocks_of_a_list_lose_its_indentation(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("# A\n\n1. b\n\n   ```python title\n   x = 1\n   ```\n\n````\n```sh\n```\n````\n")
    assert blocks_of(path) == [Block("page.md", 5, "python", "x = 1\n"), Block("page.md", 9, "", "```sh\n```\n")]


def test_commands_of_a_shell_block():
    text = "# first\npip install x && python a.py \\\n    --b 'c # d'   # and then\n\nexport E=f\n"
    assert commands_of(text) == ["pip install x", "python a.py --b 'c # d'", "export E=f"]
    assert commands_of("$ trl-sdpo x\nsaid\n$ ls\n") == ["trl-sdpo x", "ls"]


@pytest.mark.parametrize(
    ("language", "text", "says"),
    [
        ("python", "1 / 0", "ZeroDivisionError"),
        ("python", "from trl_sdpo import SoftmaxDPOTrianer", "SoftmaxDPOTrianer"),
        ("python", ">>> 1 + 1\n3\n", "Expected:\n    3"),
        ("bash", "trl-sdpo prepare movielens-1m --output out --sead 3", "exit status 2"),
        ("bash", "trl-sdpo prepare movielens-1m ... --output out", "write them out"),
        ("bash", "python -m pip install -e '.[exmaples]'", "no extra 'exmaples'"),
        ("bash", "python -m pip install -c constraint.txt -e .", "constraint.txt is not in a clone"),
        ("bash", "python -m pytest tests/test_nothing.py", "tests/test_nothing.py is not there"),
        ("bash", "ls missing | cat; ls missing", "exit status 2"),
        ("yaml", "a: [", "ParserError"),
        ("json", "{'a': 1}", "JSONDecodeError"),
        ("rust", "fn main() {}", "in none of the tables"),
    ],
)
def test_what_does_not_run_is_an_error_that_says_what_to_do(language, text, says, directory):
    with pytest.raises(SnippetError) as error:
        Page("page.md", ROOT).run(Block("page.md", 7, language, text))
    assert says in str(error.value)
    assert "page.md, line 7" in str(error.value)
    assert "exceptions.py" in str(error.value)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("python examples/movielens.py --sead 3", "--sead"),
        ("python examples/movielens.py --seed x", "exit status 2"),
        ("python examples/movie.py", "examples/movie.py is not there"),
    ],
)
def test_words_of_a_command_that_is_not_run_are_parsed(command, says, directory):
    page = Page("README.md", ROOT)
    page._check_words("python examples/movielens.py --seed 3 --resume")
    with pytest.raises(SnippetError, match=says):
        page._check_words(command)
    assert not Path("outputs").exists()


def test_names_go_from_block_to_block_and_files_are_written(directory):
    page = Page("page.md", ROOT)
    for language, text in (
        ("python", "x = 2"),
        ("python", ">>> x + 1\n3\n"),
        ("yaml", "# conf/mine.yaml\nseed: 3\nnum_candidates: 5\n"),
        (
            "bash",
            "where=out\ntrl-sdpo prepare movielens-1m --config conf/mine.yaml --output $where/it\ntest -d $where/it",
        ),
        (
            "python",
            "import json, pathlib\nassert json.loads(pathlib.Path('out/it/report.json').read_text())['seed'] == 3",
        ),
    ):
        page.run(Block("page.md", 1, language, text))

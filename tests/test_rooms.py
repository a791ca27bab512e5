"""The house: which room may import which, how large rooms and files are, and what is public."""

import ast
import importlib
import importlib.util
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


def test_imports_run_one_way():
    """The contracts are in pyproject.toml; what breaks them is printed."""
    # in a process of its own: the linter disables the loggers of the one that it runs in
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def tracked(*patterns):
    words = ["git", "-C", str(ROOT), "ls-files", *patterns]
    try:
        listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    except (FileNotFoundError, subprocess.CalledProcessError):
        listed = [str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(f"{pattern}/**/*.py")]
    return [ROOT / name for name in listed if name.endswith(".py") and (ROOT / name).is_file()]


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


# What is larger than the bounds, and why
LONG_FILES = {
    "trl_sdpo/tokenization.py": "tokens of records, of texts and of conversations, half of it docstrings",
    "examples/dpo_script.py": "TRL's script, of which two lines are changed: a reader compares the two",
    "trl_sdpo/data_utils.py": "the multi-preference format in one place, half of it docstrings",
    "trl_sdpo/prefix_sharing/rows.py": "the row of a record and its scores, half of it docstrings",
    "trl_sdpo/commands/evaluate.py": "flags of one command, a third of it their help",
    "trl_sdpo/recommender/recommender.py": "what users call, half of it docstrings",
    "trl_sdpo/recsys/baselines/sequential.py": "two networks of one training loop",
    "tests/recommender/test_recommender.py": "mirrors the module",
    "tests/test_data_utils.py": "mirrors the module",
}
LONG_FUNCTIONS = {
    "trl_sdpo/recsys/interactions/sources/table.py:load_table": "twenty options, a line each",
    "trl_sdpo/trainer/softmax_dpo_trainer.py:__init__": "the signature and the call of the parent, as TRL writes them",
    "trl_sdpo/recsys/negatives/candidates.py:sample_negatives": "ten options and their checks, before three calls",
}


def code_lines(path):
    """The name of each function with its lines that hold code: neither blank, nor a comment, nor a docstring."""
    source = path.read_text(encoding="utf-8")
    marks = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in marks]
    code = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    for node in functions:
        if ast.get_docstring(node) is not None:
            code -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return [
        (node.name, len(code & set(range(node.lineno, node.end_lineno + 1))))
        for node in functions
        if isinstance(node, ast.FunctionDef)
    ]


class TestSizes:
    def test_no_folder_has_more_than_twelve_modules(self):
        folders = {}
        for path in tracked("trl_sdpo", "tests", "examples", "benchmarks"):
            if path.name != "__init__.py":
                folders.setdefault(path.parent.relative_to(ROOT).as_posix(), []).append(path.name)
        assert {folder: len(names) for folder, names in folders.items() if len(names) > 12} == {}

    def test_no_file_has_more_than_four_hundred_lines(self):
        sizes = {path.relative_to(ROOT).as_posix(): lines(path) for path in tracked("trl_sdpo", "tests", "benchmarks")}
        assert {name: size for name, size in sizes.items() if size > 420 and name not in LONG_FILES} == {}
        assert {name: size for name, size in sizes.items() if size > 600} == {}

    def test_no_function_has_more_than_forty_lines_of_code(self):
        sizes = {
            f"{path.relative_to(ROOT).as_posix()}:{name}": size
            for path in tracked("trl_sdpo")
            for name, size in code_lines(path)
            if size > 40
        }
        assert {name: size for name, size in sizes.items() if name not in LONG_FUNCTIONS} == {}

    def test_examples_are_read_in_one_go(self):
        sizes = {path.relative_to(ROOT).as_posix(): lines(path) for path in tracked("examples")}
        assert {name: size for name, size in sizes.items() if size > 120 and name not in LONG_FILES} == {}
        assert sum(sizes.values()) <= 900


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/overview.md"])
def test_pages_for_contributors_name_what_is_there(page):
    """Paths are written from the root or from the package; NAME stands for what is added."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`([^`\s]*(?:/|\.py))`|`([^`\s]+/[^`\s]+)`", text)
    named = [first or second for first, second in named if "NAME" not in first + second]
    assert len(named) > 20
    modules = {path.name for path in tracked("trl_sdpo")}
    places = (ROOT, ROOT / "trl_sdpo")
    assert [
        name for name in named if name not in modules and not any((place / name).exists() for place in places)
    ] == []
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_docstrings_refer_to_what_is_there():
    """``[`name`]`` or ``[`home.name`]`` is in the package, and `name.py` one of its modules; `~` is for other libraries."""
    sources = {path: path.read_text(encoding="utf-8") for path in tracked("trl_sdpo")}
    homes = {}  # of a name: the modules that define it, the classes that have it
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    homes.setdefault(getattr(target, "id", None), set()).add(path.stem)
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                homes.setdefault(node.name, set()).add(path.stem)
                for one in node.body if isinstance(node, ast.ClassDef) else ():
                    homes.setdefault(getattr(one, "name", None), set()).add(node.name)
    files = {path.name for path in sources} | {"app.py"}  # of a Space
    wrong = []
    for path, source in sources.items():
        for name in re.findall(r"\[`([\w.]+)`\]", source):
            *home, last = name.split(".")
            if last not in homes or (home and home[-1] not in homes[last]):
                wrong.append((path.name, name))
        wrong += [(path.name, file) for file in re.findall(r"`(\w+\.py)`", source) if file not in files]
    assert wrong == []


def test_a_help_text_is_written_once():
    """Of flags and options: what two commands share has one text, or one dataclass."""
    texts = []
    for path in tracked("trl_sdpo/commands", "trl_sdpo/recsys/records", "trl_sdpo/trainer"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg in ("metadata", "help"):
                texts += [one.value for one in ast.walk(node.value) if isinstance(one, ast.Constant)]
    texts = [text for text in texts if isinstance(text, str) and len(text) > 25]
    assert len(texts) > 50
    assert {text for text in texts if texts.count(text) > 1} == set()


def test_the_picture_is_that_of_the_contracts():
    """`python docs/draw_rooms.py` makes it anew; a row has a caption in the words of its user."""
    spec = importlib.util.spec_from_file_location("draw_rooms", ROOT / "docs" / "draw_rooms.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8") == program.draw()
    rooms = {name for contract in ("rooms", "recsys") for row in program.layers(contract) for name in row}
    assert rooms - {"recsys"} <= program.CAPTIONS.keys()
    page = (ROOT / "docs" / "overview.md").read_text(encoding="utf-8")
    assert [
        name for name in rooms if f"{name}/`" not in page and f"`{name}.py`" not in page and name != "recsys"
    ] == []


def test_contributing_is_a_page():
    assert lines(ROOT / "CONTRIBUTING.md") <= 60


# What these rooms offered before they were rooms. Names are added here with a release, and never taken away without one.
PUBLIC = {
    "trl_sdpo": """
        Catalogue DataCollatorForMultiPreference HubPushError RankingCallback Recommendation Recommender
        RecommenderConfig RecommenderFiles SoftmaxDPOConfig SoftmaxDPOTrainer check_multi_preference
        copy_recommender_files dmpo_loss draw_negatives from_flat_columns is_multi_preference
        load_recommender_files mppo_loss nca_loss push_dataset push_model save_recommender_files
        softmax_dpo_loss to_preference_pairs to_prompt_completion to_softmax_dpo_config
    """,
    "trl_sdpo.recsys": """
        CANDIDATE_TEMPLATES HISTORY_TEMPLATES ITEM_ID Interactions LeakProbe PromptTemplate RATING
        RecordConfig TEMPLATES TIMESTAMP TITLE TitleTrie USER_ID bootstrap_interval build_preference_dataset
        build_sequences candidate_titles canonical_title catalogue_metrics chance_level chance_metrics
        check_token_boundary compare_scores completion_log_probs cooccurrence_scorer coverage drop_untitled
        events_of_records exact_mcnemar_test exposure generate_answers generation_metrics get_template gini
        hit_rate implicit_rewards item_knn_scorer leak_probe leave_one_out_split load_goodbooks load_goodreads
        load_lastfm load_movielens load_recbole load_sdpo_json load_source load_table match_title
        mean_popularity mean_reciprocal_rank ndcg normalize_title paired_comparison popularity_scorer
        popularity_scores prepare ranking_metrics ranks read_scores recipe_options recommendation_ranks
        resolve_duplicate_titles sample_negatives sampled_label score_records search_catalogue sign_flip_test
        split_leaks temporal_split user_split write_scores
    """,
}


@pytest.mark.parametrize("package", list(PUBLIC))
def test_public_names_stay(package):
    """Every name is in `__all__`, and there when it is asked for; `__all__` has nothing that is not there."""
    module = importlib.import_module(package)
    assert set(PUBLIC[package].split()) <= set(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_commands_stay():
    from trl_sdpo.cli import COMMANDS

    assert {"prepare", "sft", "train", "evaluate", "recommend", "run", "push"} <= COMMANDS.keys()

"""The house: which room may import which, how large rooms and files are, and what is public."""

import importlib
import importlib.util
import re
import subprocess
import sys
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
    "examples/dpo_script.py": "TRL's script, of which two lines are changed: a reader compares the two",
    "trl_sdpo/data_utils.py": "the multi-preference format in one place, half of it docstrings",
    "trl_sdpo/prefix_sharing/rows.py": "the row of a record and its scores, half of it docstrings",
    "trl_sdpo/recsys/records/recommender_files.py": "the two files that travel with a model, half of it docstrings",
    "trl_sdpo/recsys/baselines/sequential.py": "two networks of one training loop",
    "trl_sdpo/recsys/interactions/interactions.py": "one class and what checks it",
    "trl_sdpo/recommender/recommender.py": "what users call, half of it docstrings",
    "tests/recommender/test_recommender.py": "mirrors the module",
    "tests/recsys/interactions/test_readers_properties.py": "one model of all text formats",
    "tests/test_data_utils.py": "mirrors the module",
}


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

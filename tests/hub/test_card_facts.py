import json

import polars as pl
import pytest

from trl_sdpo.hub.card_facts import card_of_a_person, facts_of, keep_facts, without_peft_versions
from trl_sdpo.hub.dataset_card import make_dataset_card
from trl_sdpo.hub.evaluation_results import Evaluation
from trl_sdpo.hub.licences import UNKNOWN
from trl_sdpo.hub.model_card import ModelFacts, make_model_card
from trl_sdpo.hub.privacy import personal_columns, pseudonymise_users


PEFT = "\n### Framework versions\n\n- PEFT 0.21.2"


@pytest.fixture
def kept(tmp_path):
    """A folder with a card that a trainer made, and what it was made of."""
    facts = ModelFacts(
        "s-dpo",
        "s-dpo",
        "me/base",
        True,
        "LoRA",
        recipe={"β": 1.0},
        evaluations=[Evaluation(None, {"hr@1": 0.5}, 10, 3)],
    )
    card = str(make_model_card(facts))
    (tmp_path / "README.md").write_text(card)
    keep_facts(tmp_path, facts, card)
    return tmp_path, facts


def test_facts_come_back_under_the_new_name(kept):
    folder, facts = kept
    found = facts_of(folder, "me/pushed")
    assert (found.model_name, found.repo_id) == ("pushed", "me/pushed")
    assert found.evaluations == facts.evaluations
    assert found.recipe == {"β": 1.0}


def test_metrics_that_were_written_later_are_in_the_card(tmp_path):
    facts = ModelFacts("s-dpo", "s-dpo")
    keep_facts(tmp_path, facts, str(make_model_card(facts)))
    (tmp_path / "eval_results.json").write_text(json.dumps({"eval_hr@1": 0.25, "eval_loss": 1.0}))
    card = str(make_model_card(facts_of(tmp_path, "me/pushed")))
    assert "| hr@1 | 0.2500 |" in card
    assert "No evaluation is recorded" not in card


def test_metrics_of_a_report_have_its_intervals_over_users(tmp_path):
    facts = ModelFacts("s-dpo", "s-dpo")
    keep_facts(tmp_path, facts, str(make_model_card(facts)))
    report = {"hr@1": 0.25, "hr@1_ci": [0.1, 0.5], "mrr": 0.5, "n": 40, "users": 7, "candidates": [20, 20]}
    (tmp_path / "eval_results.json").write_text(json.dumps({f"eval_{name}": value for name, value in report.items()}))
    card = str(make_model_card(facts_of(tmp_path, "me/pushed")))
    assert "After training, over the 20 candidates of each record, *sampled* metrics, n = 40 of 7 users." in card
    assert "| hr@1 | 0.2500 | 0.1000 to 0.5000 | 0.050 |" in card
    assert "| mrr | 0.5000 |  |  |" in card
    assert "Intervals are over users" in card
    assert "Wilson's" not in card


def test_a_card_that_was_made_is_made_anew_and_one_of_a_person_is_kept(kept):
    folder, _ = kept
    path = folder / "README.md"
    assert card_of_a_person(folder) is None
    path.write_text(path.read_text() + PEFT)  # as PEFT adds it at the next save
    assert card_of_a_person(folder) is None
    path.write_text(path.read_text().replace("## Data", "My own words.\n\n## Data"))
    own = card_of_a_person(folder)
    assert "My own words." in own
    assert own.count("Framework versions") == 1


@pytest.mark.parametrize("words", ["# Model Card for Model ID", "If you had a time machine, but could only go"])
def test_templates_of_libraries_are_no_cards(tmp_path, words):
    (tmp_path / "README.md").write_text(f"---\ntags: []\n---\n{words}\n")
    assert card_of_a_person(tmp_path) is None


def test_a_card_of_ones_own_without_versions_keeps_those_of_peft(tmp_path):
    assert without_peft_versions("# Mine" + PEFT) == "# Mine" + PEFT


@pytest.mark.parametrize(
    ("base", "on_hub", "words"),
    [
        ("me/base", None, "https://huggingface.co/me/base"),
        ("me/base", False, "not on the Hub under this name, so the adapter loads only where that model is"),
        ("tiny", None, "`tiny`, a local model"),
        ("gpt2", True, "https://huggingface.co/gpt2"),
        ("outputs/mine/sft", None, "`sft`, a local model"),
    ],
)
def test_a_base_is_only_called_a_repository_if_it_is_one(base, on_hub, words):
    card = make_model_card(ModelFacts("m", "me/m", base, on_hub, "LoRA"))
    assert words in str(card)
    assert (card.data.base_model == base) == ("https" in words)


def test_a_data_set_of_this_machine_is_not_called_one_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "ml-100k").mkdir(parents=True)
    for name, on_hub in (
        ("me/records", True),
        ("data/ml-100k", False),
        ("./data/ml-100k", False),
        (str(tmp_path / "data" / "ml-100k"), False),
        (str(tmp_path / "gone"), False),
        ("~/data", False),
    ):
        card = make_model_card(ModelFacts("m", "me/m", dataset_name=name))
        assert card.data.datasets == (name if on_hub else None)
        assert (name in str(card)) == on_hub
        assert ("huggingface.co/datasets/" in str(card)) == on_hub


@pytest.mark.parametrize(
    ("domain", "title"), [("movies", "Alien (1979)"), ("books", "Emma"), ("items", "title of an item")]
)
def test_the_example_is_of_the_domain(domain, title):
    card = str(make_model_card(ModelFacts("m", "me/m", recommender={"domain": domain})))
    (line,) = [line for line in card.splitlines() if line.startswith("history, candidates")]
    assert title in line
    assert (domain == "movies") == ("1979" in line)


def test_a_model_of_sft_is_not_said_to_be_trained_with_s_dpo():
    card = str(make_model_card(ModelFacts("m", "me/m", method="sft", num_records=12)))
    assert "was fine-tuned on what users chose next" in card
    assert "12 records, of each the prompt and the chosen completion" in card
    assert "log softmax" not in card


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    users = {"train": [7, 7, 8, None], "test": [8, 9]}
    for split, ids in users.items():
        frame = pl.DataFrame({"prompt": ["x"] * len(ids), "user_id": ids, "timestamp": range(len(ids))})
        frame.write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", row_group_size=2)
    return tmp_path


def read(folder, split):
    return pl.read_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def test_users_are_pseudonymised_alike_in_all_files_and_otherwise_in_every_push(data, tmp_path_factory):
    link = tmp_path_factory.mktemp("link") / "train.parquet"
    link.hardlink_to(data / "data" / "train-00000-of-00001.parquet")
    before = link.read_bytes()
    pseudonymise_users(data)
    train, test = read(data, "train"), read(data, "test")
    a, b, c, d = train["user_id"].to_list()
    assert a == b != c
    assert d is None
    assert test["user_id"][0] == c
    assert not {"7", "8", "9"} & {a, c, test["user_id"][1]}
    assert train.drop("user_id").to_dict(as_series=False) == {"prompt": ["x"] * 4, "timestamp": [0, 1, 2, 3]}
    assert link.read_bytes() == before
    pseudonymise_users(data)
    assert read(data, "train")["user_id"][0] != a


def test_without_users_there_is_nothing_to_do(tmp_path):
    (tmp_path / "data").mkdir()
    pl.DataFrame({"prompt": ["x"]}).write_parquet(tmp_path / "data" / "train-0.parquet")
    with pytest.raises(ValueError, match="no column 'user_id'"):
        pseudonymise_users(tmp_path)
    assert personal_columns(tmp_path) == ["prompt"]


@pytest.mark.parametrize(("pseudonymised", "words"), [(True, "are pseudonyms"), (False, "are those of the source")])
def test_the_card_says_what_records_tell_of_people(data, pseudonymised, words):
    card = str(
        make_dataset_card("me/d", {"train": 4}, UNKNOWN, people=personal_columns(data), pseudonymised=pseudonymised)
    )
    assert "`user_id` (who it was), `timestamp` (when), `prompt`" in card
    assert words in card
    assert "keep the repository private" in card

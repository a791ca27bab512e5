"""Attributes of items travel from the interactions to the prompts of a recommender, which are those of the records."""

import json

import polars as pl
import pytest
import torch
from datasets import load_dataset

from helpers.closeness import assert_same_scores
from helpers.prepared_data import IDS, TITLES, make_interactions
from trl_sdpo import Catalogue, Recommender, cli, copy_recommender_files, load_recommender_files
from trl_sdpo.recsys import Interactions, prepare


GENRES = [["Comédie"] if number % 5 == 0 else ["Crime", "War"] if number % 2 else None for number in range(len(IDS))]
FORMATS = {"item_format": "{title}[ ({genres:1})]", "completion_format": "[{genres}: ]{title}"}


@pytest.fixture
def interactions():
    made = make_interactions()
    year = pl.Series("year", [1950 + number for number in range(len(IDS))])
    return Interactions(made.events, made.items.with_columns(pl.Series("genres", GENRES), year), "tiny")


@pytest.fixture
def make(interactions, llama, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_sdpo.recsys.records.preparation.plot_report", lambda *args: False)  # takes a second

    def make(**options):
        options = {"num_candidates": 5, "history_size": 4, "num_workers": 1, **FORMATS, **options}
        prepare(interactions, tmp_path / "data", processing_class=tokenizer, **options)
        files = load_recommender_files(tmp_path / "data")
        served = Recommender(llama(), tokenizer, files.config, files.catalogue)
        return served, load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))["test"].select(range(8))

    return make


def ids(records):
    candidates = [[t, *r] for t, r in zip(records["item_id"], records["rejected_item_ids"], strict=True)]
    return [[str(item) for item in row] for row in records["history_item_ids"]], [
        [str(i) for i in row] for row in candidates
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"template": "question", "conversational": True},
        {"template": "choose", "prompt_style": "candidates"},
        {"max_length": 120, "history_size": 8},
        {"template": "predict", "prompt_style": "candidates", "max_length": 230, "history_size": 8},
    ],
)
def test_what_was_trained_is_served(make, options):
    served, records = make(**options)
    histories, candidates = ids(records)
    asked = []
    tokenize = served._ranker.tokenize
    served._ranker.tokenize = lambda prompts, answers: asked.append(prompts) or tokenize(prompts, answers)
    if options.get("prompt_style") != "candidates":  # there the order of the list is part of the prompt
        for ours, theirs in zip(served.score(histories, candidates), served.log_probs(records), strict=True):
            assert_same_scores(ours, theirs)
    else:
        by_answer = dict(zip(served._ranker.texts.answers, served.catalogue.item_ids, strict=True))
        served.score(histories, [[by_answer[answer] for answer in row] for row in records["candidates"]])
    assert asked[0] == records["prompt"][:]


def test_records_show_attributes(make):
    _, records = make()
    names = dict(zip(IDS, zip(TITLES, GENRES, strict=True), strict=True))
    for record in records:
        shown = [names[item] for item in record["history_item_ids"]]
        shown = [f"{title} ({genres[0]})" if genres else title for title, genres in shown]
        assert record["prompt"].endswith("\n".join(shown) + "\n")
        title, genres = names[record["item_id"]]
        assert record["chosen"] == (f"{', '.join(genres)}: {title}\n" if genres else f"{title}\n")


def test_the_whole_catalogue_is_searched_by_answers(make):
    served, records = make()
    histories, _ = ids(records.select(range(3)))
    every = served.recommend_ids(histories, top_k=len(TITLES), exact=True, exclude_history=False)
    for history, found in zip(histories, every, strict=True):
        scores = served.score([history], [[item.item_id for item in found]])[0]
        assert [item.score for item in found] == pytest.approx(scores.tolist(), abs=1e-4)
        assert {item.title for item in found} == {*served.catalogue.titles}
    best = served.recommend_ids(histories, top_k=3, num_beams=len(TITLES), exclude_history=False)
    assert [[item.item_id for item in row] for row in best] == [[item.item_id for item in row[:3]] for row in every]


def test_attributes_lie_beside_the_model(make, tmp_path):
    make()
    catalogue = json.loads((tmp_path / "data" / "catalogue.json").read_text())
    assert catalogue["attributes"]["genres"][:3] == [GENRES[IDS.index(int(i))] for i in catalogue["item_ids"][:3]]
    template = json.loads((tmp_path / "data" / "recommender.json").read_text())["templates"][0]
    assert {name: template[name] for name in FORMATS} == FORMATS


def test_a_catalogue_without_them_is_refused(make, llama, tokenizer):
    served, _ = make()
    with pytest.raises(ValueError, match=r"item_format: .* shows genres, and the items have no attributes"):
        Recommender(llama(), tokenizer, served.config, Catalogue(["1", "2"], ["A", "B"]))


def test_records_without_them_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"item_format: .* shows genres, .*attributes='genres'"):
        prepare(make_interactions(), tmp_path / "data", num_candidates=5, item_format="{title} ({genres})")


def test_titles_alone_are_written_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr("trl_sdpo.recsys.records.preparation.plot_report", lambda *args: False)
    prepare(make_interactions(), tmp_path / "data", num_candidates=5, num_workers=1)
    template = json.loads((tmp_path / "data" / "recommender.json").read_text())["templates"][0]
    assert not any(name.endswith("_format") for name in template)
    assert "attributes" not in json.loads((tmp_path / "data" / "catalogue.json").read_text())


class TestNewItems:
    NEW = {"genres": [["War"], None], "year": [2024, None]}

    def test_are_recommended_at_once(self, make, llama, tokenizer):
        """Their prompts and answers are those that training would have made, and they are found by search and rank."""
        served, records = make()
        catalogue = served.catalogue.add(["n1", "n2"], ["Night Ferry (2024)", "Ferry"], self.NEW)
        more = Recommender(llama(), tokenizer, served.config, catalogue)
        (history, *_), _ = ids(records)
        found = more.recommend_ids([history], top_k=len(catalogue), exact=True)[0]
        assert {"n1", "n2"} < {item.item_id for item in found}
        scores = more.score([history], [["n1", "n2", *served.catalogue.item_ids[:3]]])[0]
        assert scores[0] == pytest.approx(next(item.score for item in found if item.item_id == "n1"), abs=1e-4)
        assert_same_scores(scores[2:], served.score([history], [list(served.catalogue.item_ids[:3])])[0])
        beams = more.recommend_ids([history], top_k=5, num_beams=len(catalogue))[0]
        assert [item.item_id for item in beams] == [item.item_id for item in found[:5]]
        asked = []
        tokenize = more._ranker.tokenize
        more._ranker.tokenize = lambda prompts, answers: asked.append((prompts, answers)) or tokenize(prompts, answers)
        more.recommend([["Night Ferry (2024)", "n2"]], [["n1", "Ferry"]])
        ((prompt,), answers) = asked[0]
        assert prompt.endswith("Night Ferry (2024) (War)\nFerry\n")
        assert answers == [["War: Night Ferry (2024)", "Ferry"]]

    def test_of_a_file_on_the_command_line(self, make, tmp_path, capsys):
        served, _ = make()
        folder = tmp_path / "model"
        served.model.save_pretrained(folder)
        served.processing_class.save_pretrained(folder)
        copy_recommender_files(tmp_path / "data", folder)
        (tmp_path / "new.csv").write_text("item_id,title,genres\nn1,Night Ferry (2024),War|Crime\n")
        words = [
            "recommend",
            "--model_name_or_path",
            str(folder),
            "--history",
            served.catalogue.titles[0],
            "--device",
            "cpu",
        ]
        words += ["--new_items", str(tmp_path / "new.csv"), "--candidates", "n1", served.catalogue.titles[1]]
        for score in ("likelihood", "pmi"):
            assert cli.main([*words, "--score", score]) == 0
            assert "Night Ferry (2024)  (n1)" in capsys.readouterr().out
        assert cli.main([*words, "--score", "reward"]) == 1
        assert "needs the model before the training" in capsys.readouterr().err
        assert cli.main([*words, "--score", "reward", "--ref_model", str(folder)]) == 0
        assert "(n1)  0.000" in capsys.readouterr().out


@pytest.mark.parametrize("options", [{}, {"template": "question"}, {"template": "question", "conversational": True}])
def test_attributes_and_title_are_scored_apart(make, options):
    """The tokens up to the title, found by their characters alone, and the rest."""
    served, records = make(**options)
    histories, candidates = ids(records)
    found = served.score_parts(histories, candidates)
    genres = dict(zip(map(str, IDS), GENRES, strict=True))
    tokenizer, whole = served.processing_class, served.score(histories, candidates)
    for row, (parts, total) in enumerate(zip(found, whole, strict=True)):
        assert_same_scores(parts.sum(axis=1), total)
        (record,) = served._ranker.tokenize(
            [records[row]["prompt"]], [served._ranker.texts.answered(served._items_of_ids([candidates[row]], ""))[0]]
        )
        for item, part, completion in zip(
            candidates[row], parts, [record["chosen_ids"], *record["rejected_ids"]], strict=True
        ):
            if not genres[item]:
                assert part[0] == 0
                continue
            words = f"{', '.join(genres[item])}:"
            count = next(
                n for n in range(1, len(completion)) if len(tokenizer.decode(completion[:n]).strip()) >= len(words)
            )
            with torch.no_grad():
                tokens = [*record["prompt_ids"], *completion[:count]]
                logits = served.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].log_softmax(-1)
            begin = len(record["prompt_ids"])
            expected = sum(logits[place - 1, tokens[place]].item() for place in range(begin, len(tokens)))
            # white space before the title may be a token of its own, or of the title
            assert part[0] <= expected + 1e-4
            if not tokenizer.decode([completion[count]]).isspace():
                assert part[0] == pytest.approx(expected, abs=1e-4)

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig

from helpers.closeness import assert_same_scores
from helpers.prepared_data import TITLES, Prepared
from trl_sdpo import (
    Catalogue,
    Recommendation,
    Recommender,
    RecommenderConfig,
    copy_recommender_files,
    load_recommender_files,
    save_recommender_files,
)
from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.recommender.item_ranker import ItemRanker
from trl_sdpo.recsys import PromptTemplate, get_template


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return Prepared(tmp_path_factory)


@pytest.fixture
def recommender(prepared, llama, tokenizer):
    """Makes a recommender of a random model on a prepared data set, and that data set's test records."""

    def make(*args, **options):
        folder, dataset = prepared(*args, **options)
        files = load_recommender_files(folder)
        return Recommender(llama(), tokenizer, files.config, files.catalogue), dataset["test"].select(range(8))

    return make


def training_tokens(records, tokenizer, lines=False):
    """As `trl-sdpo train` and, where it is no line, the trainer tokenize."""
    eos_token = "" if lines else tokenizer.eos_token
    return [tokenize_multi_preference(row, number, tokenizer, eos_token) for number, row in enumerate(records)]


class TestWhatWasTrainedIsServed:
    @pytest.mark.parametrize(
        ("template", "style", "options"),
        [
            ("lines", "history", {}),
            ("watched", "history", {}),
            ("question", "history", {"conversational": True}),
            ("choose", "candidates", {}),
            ("predict", "candidates", {"conversational": True}),
        ],
    )
    def test_tokens_and_scores_are_those_of_the_records(
        self, recommender, tokenizer, plain_log_probs, template, style, options, monkeypatch
    ):
        served, records = recommender(template, style, **options)
        tokenized = training_tokens(records, tokenizer, lines=template == "lines")
        seen = []
        tokenize = ItemRanker.tokenize
        monkeypatch.setattr(ItemRanker, "tokenize", lambda *args: seen.extend(tokenize(*args)) or list(seen))
        # an id where there is one, and of candidates the order in which the list is shown
        results = served.recommend(records["history_item_ids"], records["candidates"], top_k=9)
        with torch.no_grad():
            expected = plain_log_probs(served.model, tokenized)
        for row, (record, result) in enumerate(zip(records, results, strict=True)):
            assert seen[row]["prompt_ids"] == tokenized[row]["prompt_ids"]
            by_id = dict(zip([record["item_id"], *record["rejected_item_ids"]], expected[row].tolist(), strict=True))
            assert {int(item.item_id): item.score for item in result} == pytest.approx(by_id, abs=1e-4)
            assert [item.score for item in result] == sorted((item.score for item in result), reverse=True)
        log_probs = served.log_probs(records)
        for ours, theirs in zip(log_probs, expected, strict=True):
            assert_same_scores(ours, theirs.numpy())

    def test_every_wording_can_be_served(self, prepared, llama, tokenizer):
        """Of records with several wordings, each is made by one of the templates of the file."""
        folder, dataset = prepared("random", "history")
        files = load_recommender_files(folder)
        assert [template.name for template in files.config.templates] == ["lines", "watched", "question"]
        titles = dict(zip(files.catalogue.item_ids, files.catalogue.titles, strict=True))
        found = set()
        for record in dataset["test"]:
            history = [titles[str(item)] for item in record["history_item_ids"]]
            for name in ("lines", "watched", "question"):
                served = Recommender(llama(), tokenizer, files.config, files.catalogue, template=name)
                if served._ranker.prompts.make([history], None) == [record["prompt"]]:
                    found.add(name)
        assert found == {"lines", "watched", "question"}

    def test_scorer_of_ids(self, recommender):
        served, records = recommender()
        histories = [list(map(str, row)) for row in records["history_item_ids"]]
        candidates = [
            list(map(str, [target, *others]))
            for target, others in zip(records["item_id"], records["rejected_item_ids"], strict=True)
        ]
        for ours, theirs in zip(served.score(histories, candidates), served.log_probs(records), strict=True):
            assert_same_scores(ours, theirs)
        with pytest.raises(ValueError, match=r"candidates, row 1: 7 is no id of the \d+ items of the catalogue"):
            served.score(histories[:2], [candidates[0], ["7"]])

    def test_a_long_history_is_cut_as_in_training(self, recommender):
        served, records = recommender()
        titles = [title for title in TITLES if title in served.catalogue.titles][:9]
        assert served.recommend(titles, TITLES[20:24]) == served.recommend(titles[-4:], TITLES[20:24])
        assert served.recommend(titles, TITLES[20:24]) != served.recommend(titles[-5:-1], TITLES[20:24])
        assert len(records["history_item_ids"][0]) == 4

    @pytest.mark.parametrize(("template", "style"), [("watched", "history"), ("choose", "candidates")])
    def test_histories_are_shortened_to_the_tokens_of_training(self, prepared, llama, tokenizer, template, style):
        folder, whole = prepared(template, style)
        lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in whole["test"]["prompt"]]
        limit = max(lengths)
        folder, dataset = prepared(template, style, max_length=limit, processing_class=tokenizer)
        files = load_recommender_files(folder)
        assert files.config.max_length == limit
        served = Recommender(llama(), tokenizer, files.config, files.catalogue)
        titles = dict(zip(files.catalogue.item_ids, files.catalogue.titles, strict=True))
        shortened = 0
        for before, record in zip(whole["test"], dataset["test"], strict=True):
            history = [titles[str(item)] for item in before["history_item_ids"]]
            assert served._ranker.prompts.make([history], [record["candidates"]]) == [record["prompt"]]
            shortened += len(record["history_item_ids"]) < len(history)
        assert shortened > 0

    def test_a_history_that_does_not_fit_is_said(self, recommender, caplog):
        served, _ = recommender("choose", "candidates")
        served._ranker.prompts.config = dataclasses.replace(served.config, max_length=20)
        result = served.recommend(TITLES[:2], TITLES[5:8])
        assert len(result) == 3
        assert (
            "with its last title alone the prompt and the longest completion have more than max_length=20"
            in caplog.text
        )


class TestCatalogue:
    @pytest.mark.parametrize(
        ("template", "options"), [("lines", {}), ("watched", {}), ("question", {"conversational": True})]
    )
    def test_the_best_of_all_titles(self, recommender, template, options):
        """With as many beams as titles the search is exact: the same as ranking what is not in the history."""
        served, records = recommender(template, **options)
        histories = records["history_item_ids"][:3]
        found = served.recommend(histories, top_k=5, num_beams=len(served.catalogue))
        for history, row in zip(histories, found, strict=True):
            others = [int(item) for item in served.catalogue.item_ids if int(item) not in history]
            expected = served.recommend(history, others, top_k=5)
            assert [item.item_id for item in row] == [item.item_id for item in expected]
            assert [item.score for item in row] == pytest.approx([item.score for item in expected], abs=1e-4)

    def test_what_was_consumed_is_left_out_even_where_the_prompt_does_not_show_it(self, recommender):
        served, _ = recommender()
        history = list(served.catalogue.titles[:6])
        everything = served.recommend(history, top_k=30, num_beams=60)
        assert {item.title for item in everything} == set(served.catalogue.titles) - set(history)
        with_history = served.recommend(history, top_k=30, num_beams=60, exclude_history=False)
        assert {item.title for item in with_history} == set(served.catalogue.titles)

    def test_as_many_as_are_asked_for(self, recommender):
        """More than the ten beams that are the default: the search is as wide as the list is long."""
        served, _ = recommender()
        history = list(served.catalogue.titles[:4])
        found = served.recommend(history, top_k=24)
        assert len({item.title for item in found}) == len(found) == 24
        assert [len(row) for row in served.recommend_ids([served.catalogue.item_ids[:4]], top_k=24)] == [24]
        assert len(served.recommend(history, list(served.catalogue.titles[4:]), top_k=24)) == 24

    def test_there_may_be_nothing_left(self, recommender):
        served, _ = recommender()
        assert served.recommend(list(served.catalogue.titles)) == []


class TestBatches:
    @pytest.mark.parametrize("batch_size", [2, 8])
    @pytest.mark.parametrize("with_candidates", [True, False])
    def test_a_batch_equals_its_rows(self, recommender, with_candidates, batch_size):
        served, records = recommender()
        histories = [row[: 1 + number % 4] for number, row in enumerate(records["history_item_ids"][:5])]
        candidates = [row[: 2 + number % 3] for number, row in enumerate(records["candidates"][:5])]
        batch = served.recommend(histories, candidates if with_candidates else None, top_k=3, batch_size=batch_size)
        for number, history in enumerate(histories):
            alone = served.recommend(history, candidates[number] if with_candidates else None, top_k=3)
            assert [item.item_id for item in batch[number]] == [item.item_id for item in alone]
            assert [item.score for item in batch[number]] == pytest.approx([item.score for item in alone], abs=1e-4)

    def test_one_list_of_candidates_for_all(self, recommender):
        served, records = recommender()
        histories = records["history_item_ids"][:2]
        both = served.recommend(histories, TITLES[:3])
        assert [[item.title for item in row] for row in both] == [
            [item.title for item in served.recommend(history, TITLES[:3])] for history in histories
        ]

    def test_one_candidate_and_one_twice(self, recommender):
        served, records = recommender()
        history = records["history_item_ids"][0]
        (only,) = served.recommend(history, [TITLES[0]])
        several = served.recommend(history, [TITLES[0], TITLES[1], TITLES[0]])
        assert sorted(item.title for item in several) == sorted(TITLES[:2])
        assert only.score == pytest.approx(next(item.score for item in several if item.title == TITLES[0]), abs=1e-4)

    def test_a_single_one_shows_no_bar(self, recommender, capsys, monkeypatch):
        served, records = recommender()
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        capsys.readouterr()
        served.recommend(records["history_item_ids"][0], records["candidates"][0])
        served.recommend(records["history_item_ids"][0])
        assert capsys.readouterr().err == ""
        served.recommend(records["history_item_ids"][:2])
        assert "Recommending: 100%" in capsys.readouterr().err


class TestTitles:
    @pytest.fixture
    def served(self, llama, tokenizer):
        catalogue = Catalogue([7, 8, 9, "x1"], ["The Long Summer (1977)", "Red River (1948)", "7", "Wall·E"])
        return Recommender(llama(), tokenizer, RecommenderConfig([get_template("watched")]), catalogue)

    @pytest.mark.parametrize(
        ("value", "title"),
        [
            ("Red River (1948)", "Red River (1948)"),
            (8, "Red River (1948)"),
            (np.int64(8), "Red River (1948)"),
            ("8", "Red River (1948)"),
            ("x1", "Wall·E"),
            ("  red  RIVER (1948)", "Red River (1948)"),
            ("Long Summer, The (1977)", "The Long Summer (1977)"),
            ("long summer, the (1977)", "The Long Summer (1977)"),
        ],
    )
    def test_what_is_meant(self, served, value, title):
        assert served.lookup.find(value, "history")[1] == title

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("Red Rivers (1948)", r"history: 'Red Rivers \(1948\)' is no title .* Did you mean 'Red River \(1948\)'\? Correct"),
            ("zzz", r"'zzz' is no title and no id of the catalogue\. Correct it, or pass unknown_titles=\"keep\""),
            (80, r"history: 80 is no id of the 4 items of the catalogue"),
            ("7", r"'7' is the id of 'The Long Summer \(1977\)' and the title of the item '9'\. Pass ids as numbers: 7 or 9"),
            (None, "None is neither a title nor an id"),
            (True, "True is neither a title nor an id"),
            (" ", "' ' is neither a title nor an id"),
        ],
    )  # fmt: skip
    def test_what_is_not_known(self, served, value, message):
        with pytest.raises(ValueError, match=message):
            served.recommend([value], ["Wall·E"])

    def test_a_row_of_a_batch_is_named(self, served):
        with pytest.raises(ValueError, match="history, row 1: 'Red Rovers' is no title"):
            served.recommend([["Wall·E"], ["Red Rovers"]])
        with pytest.raises(ValueError, match="candidates, row 1: 'Red Rovers' is no title"):
            served.recommend([["Wall·E"], [8]], [["Wall·E"], ["Red Rovers"]])

    def test_a_new_title_can_be_kept(self, served, caplog):
        """A language model reads titles that no catalogue has."""
        result = served.recommend(["Red Rovers (1950)"], ["Blue Hotel (1984)", 8], unknown_titles="keep")
        assert {(item.item_id, item.title) for item in result} == {
            (None, "Blue Hotel (1984)"),
            ("8", "Red River (1948)"),
        }
        assert "'Red Rovers (1950)' is no title and no id of the catalogue. Did you mean" in caplog.text
        assert "It is taken as it is." in caplog.text

    def test_without_a_catalogue(self, llama, tokenizer):
        served = Recommender(llama(), tokenizer, RecommenderConfig([get_template("watched")]))
        result = served.recommend(["A (1990)"], ["B (1991)", "C (1992)"])
        assert {item.title for item in result} == {"B (1991)", "C (1992)"}
        assert all(item.item_id is None for item in result)
        with pytest.raises(ValueError, match="the id 3 means nothing without a catalogue"):
            served.recommend([3], ["B (1991)"])
        with pytest.raises(
            ValueError, match=r"the model: has no catalogue\.json, so what can be recommended is unknown"
        ):
            served.recommend(["A (1990)"])
        with pytest.raises(ValueError, match=r"has no catalogue\.json"):
            served.score([["1"]], [["2"]])


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([],), r"history: \[\] is no list with something in it"),
            (("Red River",), "history: 'Red River' is no list with something in it"),
            (([[]],), r"history, row 0: \[\] is no list of titles or ids"),
            ((TITLES[:2], []), r"candidates: \[\] is no list with something in it"),
            (([TITLES[:2], TITLES[:1]], [TITLES[:2]]), "candidates has 1 rows for 2 histories"),
            ((TITLES[:2], None, 0), "top_k=0, batch_size=8: pass at least 1"),
        ],
    )
    def test_arguments(self, recommender, arguments, message):
        served, _ = recommender()
        with pytest.raises(ValueError, match=message):
            served.recommend(*arguments)

    def test_unknown_titles_is_checked(self, recommender):
        served, _ = recommender()
        with pytest.raises(ValueError, match="unknown_titles='ignore' is none of"):
            served.recommend(TITLES[:2], unknown_titles="ignore")

    def test_a_template_that_shows_candidates_needs_them(self, recommender):
        served, _ = recommender("choose", "candidates")
        with pytest.raises(
            ValueError, match=r"template 'choose' shows candidates, so it needs some\. Pass `candidates`"
        ):
            served.recommend(TITLES[:2])

    def test_a_template_of_another_name(self, prepared, llama, tokenizer):
        config = load_recommender_files(prepared()[0]).config
        with pytest.raises(ValueError, match=r"template 'lines' is none of those .* \['watched'\]"):
            Recommender(llama(), tokenizer, config, template="lines")


class TestFromPretrained:
    @pytest.fixture
    def saved(self, prepared, llama, tokenizer, tmp_path):
        """Directories of a model and of an adapter on it."""
        model = llama()
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        copy_recommender_files(prepared()[0], tmp_path / "model")
        model.name_or_path = str(tmp_path / "model")
        adapter = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False))
        adapter.save_pretrained(tmp_path / "adapter")
        copy_recommender_files(prepared()[0], tmp_path / "adapter")
        return tmp_path, adapter.eval()

    def test_a_model(self, saved, llama, prepared, tokenizer):
        folder, _ = saved
        served = Recommender.from_pretrained(folder / "model", device="cpu")
        assert isinstance(served.recommend(TITLES[:3], TITLES[5:9])[0], Recommendation)
        files = load_recommender_files(prepared()[0])
        expected = Recommender(llama(), tokenizer, files.config, files.catalogue)
        assert served.recommend(TITLES[:3]) == expected.recommend(TITLES[:3])
        assert not served.model.training

    def test_an_adapter_with_its_base(self, saved, prepared, tokenizer):
        folder, adapter = saved
        served = Recommender.from_pretrained(str(folder / "adapter"))
        records = prepared()[1]["test"].select(range(4))
        files = load_recommender_files(prepared()[0])
        expected = Recommender(adapter, tokenizer, files.config, files.catalogue).log_probs(records)
        plain = Recommender.from_pretrained(folder / "model").log_probs(records)
        for ours, theirs, base in zip(served.log_probs(records), expected, plain, strict=True):
            assert_same_scores(ours, theirs)
            assert np.abs(ours - base).max() > 0.1

    def test_a_base_that_has_moved(self, saved):
        folder, _ = saved
        before = Recommender.from_pretrained(folder / "adapter").recommend(TITLES[:3])
        (folder / "model").rename(folder / "elsewhere")
        with pytest.raises(OSError, match=r"is an adapter of '.*model', which cannot be loaded .* Pass the model as"):
            Recommender.from_pretrained(folder / "adapter")
        moved = Recommender.from_pretrained(folder / "adapter", base_model=folder / "elsewhere")
        assert moved.recommend(TITLES[:3]) == before
        with pytest.raises(ValueError, match="is no adapter, so it has no base model"):
            Recommender.from_pretrained(folder / "elsewhere", base_model=folder / "elsewhere")

    def test_dtype_and_options_of_the_model(self, saved):
        folder, _ = saved
        served = Recommender.from_pretrained(folder / "adapter", dtype=torch.bfloat16, attn_implementation="eager")
        assert served.model.get_base_model().dtype == torch.bfloat16
        assert served.model.config._attn_implementation == "eager"
        assert len(served.recommend(TITLES[:3], TITLES[5:9])) == 4

    def test_a_model_without_files(self, saved, prepared):
        folder, _ = saved
        for name in ("recommender.json", "catalogue.json"):
            (folder / "model" / name).unlink()
        with pytest.raises(ValueError, match=r"model: has no recommender\.json, so how its prompts are worded is unknown\. Make it with `trl_sdpo\.save_recommender_files"):  # fmt: skip
            Recommender.from_pretrained(folder / "model")
        template = PromptTemplate("mine", "history", "Seen: {history}. Next:")
        served = Recommender.from_pretrained(folder / "model", template=template)
        assert len(served.recommend(["A", "B"], ["C", "D"])) == 2
        with pytest.raises(ValueError, match=r"or pass `catalogue=DATASET_DIRECTORY`"):
            served.recommend(["A", "B"])
        with_catalogue = Recommender.from_pretrained(folder / "model", template=template, catalogue=prepared()[0])
        assert with_catalogue.recommend(TITLES[:2], top_k=1)[0].title in TITLES
        own = Recommender.from_pretrained(
            folder / "model", template=template, catalogue=Catalogue([1], ["Ran (1985)"])
        )
        assert own.recommend(["Ran (1985)"], ["Ran (1985)"])[0].item_id == "1"
        (folder / "nothing").mkdir()
        with pytest.raises(ValueError, match=r"nothing: has no catalogue\.json"):
            Recommender.from_pretrained(folder / "model", template=template, catalogue=folder / "nothing")

    def test_another_wording_by_name(self, saved):
        folder, _ = saved
        config = RecommenderConfig([get_template("watched"), get_template("question")], history_size=4)
        save_recommender_files(folder / "model", config)
        served = Recommender.from_pretrained(folder / "model", template="question")
        assert served.template == get_template("question")
        with pytest.raises(ValueError, match="template 'lines' is none of those"):
            Recommender.from_pretrained(folder / "model", template="lines")

    def test_no_such_model(self, tmp_path):
        with pytest.raises(OSError, match="no such directory here"):
            Recommender.from_pretrained("nobody/nothing", cache_dir=tmp_path)

    def test_files_of_the_hub_are_found_in_its_cache(self, saved, tmp_path):
        """Offline, as on a machine that has fetched the repository before."""
        folder, _ = saved
        commit = "0123456789abcdef0123456789abcdef01234567"
        snapshot = tmp_path / "hub" / "models--me--tiny" / "snapshots" / commit
        shutil.copytree(folder / "model", snapshot)
        refs = tmp_path / "hub" / "models--me--tiny" / "refs"
        refs.mkdir()
        (refs / "main").write_text(commit)
        served = Recommender.from_pretrained("me/tiny", cache_dir=str(tmp_path / "hub"))
        expected = Recommender.from_pretrained(folder / "model").recommend(TITLES[:3])
        assert served.recommend(TITLES[:3]) == expected

    def test_a_quantised_base(self, prepared, llama, tokenizer, tmp_path):
        model = llama(hidden_size=64, intermediate_size=128)
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        model.name_or_path = str(tmp_path / "model")
        get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4)).save_pretrained(tmp_path / "adapter")
        copy_recommender_files(prepared()[0], tmp_path / "adapter")
        quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
        served = Recommender.from_pretrained(tmp_path / "adapter", quantization_config=quantised)
        assert served.model.get_base_model().is_loaded_in_4bit
        assert len(served.recommend(TITLES[:3], TITLES[5:9])) == 4
        assert len(served.recommend(TITLES[:3], top_k=3)) == 3


def test_a_recommendation_prints_and_is_json():
    item = Recommendation("1", "Heat (1995)", -1.5)
    assert str(item) == "Recommendation(item_id='1', title='Heat (1995)', score=-1.5)"
    assert json.loads(json.dumps(item._asdict())) == {"item_id": "1", "title": "Heat (1995)", "score": -1.5}

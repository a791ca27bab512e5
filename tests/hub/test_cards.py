"""Cards of models and data sets: what they say, and what they must not."""

import json
import re
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model

import trl_sdpo.hub.training_curves
from trl_sdpo.hub.card_parts import public_name, table, without_private
from trl_sdpo.hub.evaluation_results import Evaluation, describe_evaluations, read_evaluations, wilson_interval
from trl_sdpo.hub.licences import UNKNOWN, find_licence, why_not_public
from trl_sdpo.hub.model_card import ModelFacts, make_model_card, with_repo_id
from trl_sdpo.hub.training_curves import plot_training_curves


TOKEN = "hf_" + "Qx7" * 11


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home directory of the user `loginname`, who is logged in."""
    home = tmp_path / "loginname"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return home


def read(trainer):
    return (Path(trainer.args.output_dir) / "README.md").read_text()


class TestPrivate:
    def test_names(self, home, monkeypatch):
        (home / "models" / "base").mkdir(parents=True)
        for path in (
            home / "models" / "base",
            "~/models/base",
            "/data/x/base",
            "./base",
            "../a/base",
            "C:\\Users\\x\\base",
        ):
            assert public_name(path) == "base", path
        assert public_name("org/base") == "org/base"
        assert public_name("gpt2") == "gpt2"
        for path in (home, home.parent, "~", "/"):
            assert public_name(path) is None
        assert public_name(None) is None
        monkeypatch.chdir(home)
        assert public_name("models/base") == "base"

    def test_texts(self, home):
        text = f"{TOKEN} in {home}/runs/s-dpo, `{home}/data` and ({home}). {home}-x hf_{'a' * 30} other"
        out = without_private(text, ["secret"])
        assert out == f"[token] in s-dpo, `data` and ([home]). {home}-x [token] other"
        assert without_private("a secret b", ["secret"]) == "a [token] b"

    @pytest.mark.parametrize("field", ["base_model", "dataset_name", "model_name", "repo_id"])
    def test_planted(self, home, field):
        facts = {"model_name": "m", "repo_id": "me/m", field: f"{home}/x/{TOKEN}"}
        recommender = {"source": f"{home}/data", "domain": f"{TOKEN}", "templates": [{"text": f"{home}/t"}]}
        report = {"recipe": "default", "source": str(home), "options": {"template": f"{home}/t.json"}}
        facts = ModelFacts(**facts, recommender=recommender, report=report, tags=[TOKEN], recipe={"x": str(home)})
        text = str(make_model_card(facts))
        assert "loginname" not in text
        assert TOKEN not in text
        assert "[token]" in text

    def test_trainer(self, home, llama, records, make_trainer, tokenizer):
        """Of a model, data and output in the home directory, by a user who is logged in and passes a token besides."""
        llama().save_pretrained(home / "base")
        tokenizer.save_pretrained(home / "base")
        # of a Hub whose tokens do not look like those of huggingface.co
        args = {"output_dir": str(home / "out"), "hub_token": "token-of-another-hub", "max_steps": 1}
        trainer = make_trainer(str(home / "base"), records(4), args=args, peft_config=LoraConfig(r=2))
        trainer.train()
        trainer.create_model_card(dataset_name=str(home / "data"), tags=f"by {args['hub_token']}")
        text = read(trainer)
        for private in ("loginname", TOKEN, args["hub_token"]):
            assert private not in text
        assert "a LoRA adapter of `base`, a local model" in text
        trainer.save_model()  # PEFT names the base model in the card anew
        assert "loginname" not in read(trainer)
        assert args["hub_token"].encode() not in (home / "out" / "training_args.bin").read_bytes()
        assert trainer.args.hub_token == args["hub_token"]


class TestTrainer:
    @pytest.mark.parametrize("adapter", [True, False])
    def test_adapter_and_full_model(self, llama, records, make_trainer, adapter):
        model = get_peft_model(llama(), LoraConfig(r=2, init_lora_weights=False)) if adapter else llama()
        eval_dataset = {"seen": Dataset.from_list(records(7, 2, 4)), "new": Dataset.from_list(records(5))}
        trainer = make_trainer(
            model,
            records(8),
            args={"num_negatives": 2, "eval_strategy": "steps", "eval_steps": 2},
            eval_dataset=eval_dataset,
        )
        trainer.train()
        trainer.create_model_card("my-model", dataset_name="me/records", tags="mine")
        text = read(trainer)
        card = ModelCard(text)
        assert card.data.library_name == ("peft" if adapter else "transformers")
        assert card.data.tags == ["generated_from_trainer", "mine", "trl", "dpo", "softmax-dpo", "recommendation"]
        assert card.data.datasets == "me/records"
        results = {(one.dataset_name, one.metric_type): one for one in card.data.eval_results}
        last = trainer.state.log_history
        for name, count in (("seen", 7), ("new", 5)):
            value = next(entry[f"eval_{name}_hr@1"] for entry in reversed(last) if f"eval_{name}_hr@1" in entry)
            assert results[name, "hr@1"].metric_value == pytest.approx(value, abs=1e-6)
            assert results[name, "hr@1"].metric_args["n"] == count
        assert "over the 3 to 5 candidates of each record" in text
        assert "| reference | the adapter as it was before training |" in text or not adapter
        assert "| K, negatives of a record | 2, drawn anew in every epoch of 3 |" in text
        assert "![Loss, rewards and ranking over the steps of training](training_curves.png)" in text
        assert (Path(trainer.args.output_dir) / "training_curves.png").read_bytes()[:4] == b"\x89PNG"

    def test_nothing_logged(self, llama, records, make_trainer):
        trainer = make_trainer(llama(), records(4))
        trainer.create_model_card()
        text = read(trainer)
        assert "No evaluation is recorded." in text
        assert "![" not in text
        assert ModelCard(text).data.eval_results is None

    def test_plain_preference_data(self, llama, records, make_trainer):
        rows = [{**row, "rejected": row["rejected"][0]} for row in records(8)]
        trainer = make_trainer(llama(), rows, eval_dataset=Dataset.from_list(rows[:6]))
        trainer.evaluate()
        trainer.create_model_card()
        text = read(trainer)
        assert "8 records, each with one chosen and one rejected completion." in text
        assert "A language model that was aligned to preferences" in text
        (accuracy,) = ModelCard(text).data.eval_results
        assert (accuracy.metric_type, accuracy.metric_args["n"]) == ("rewards/accuracies", 6)

    def test_without_matplotlib_there_is_no_dead_link(self, llama, records, make_trainer, monkeypatch):
        monkeypatch.setattr(trl_sdpo.hub.training_curves.importlib.util, "find_spec", lambda name: None)
        trainer = make_trainer(llama(), records(4), args={"max_steps": 1})
        trainer.train()
        trainer.create_model_card()
        assert "training_curves" not in read(trainer)

    def test_checkpoints_that_go_nowhere_draw_nothing(self, llama, records, make_trainer):
        trainer = make_trainer(llama(), records(4), args={"max_steps": 1, "save_strategy": "steps", "save_steps": 1})
        trainer.train()
        assert "S-DPO" in read(trainer)
        assert not (Path(trainer.args.output_dir) / "training_curves.png").exists()

    def test_what_lies_beside_the_model(self, llama, records, make_trainer):
        trainer = make_trainer(llama(), records(4))
        folder = Path(trainer.args.output_dir)
        folder.mkdir(exist_ok=True)
        probe = {"hr_at_1": 0.061, "ci": [0.05, 0.07], "n": 2000, "chance": 0.05, "popularity": 0.28}
        report = {"recipe": "default", "source": "ml-100k", "split": "temporal", "seed": 3, "leak_probe": probe}
        report["options"] = {"num_candidates": 20, "pool_size": 63, "prompt_style": "candidates"}
        (folder / "report.json").write_text(json.dumps(report))
        recommender = {"domain": "movies", "source": "ml-100k", "templates": [{"text": "Seen {history}. Next:"}]}
        (folder / "recommender.json").write_text(json.dumps(recommender))
        trainer.create_model_card()
        text = read(trainer)
        for part in (
            *("recommends movies", "| split | temporal |", "| num candidates | 20 |", "| pool size | 63 |"),
            *('`"Seen {history}. Next:"`', "harper2015movielens", "hr@1 0.061", "Recommender.from_pretrained"),
        ):
            assert part in text, part
        (folder / "recommender.json").write_text("{ broken")
        trainer.create_model_card()
        assert "pipeline(" in read(trainer)


class TestEvaluations:
    def test_names(self):
        history = [
            {"step": 2, "eval_hr@1": 0.1, "eval_reward_hr@1": 0.2, "eval_loss": 3.0},
            {"step": 4, "eval_a_b_hr@1": 0.3, "eval_a_b_reward_ndcg@10": 0.4, "eval_mrr": float("nan")},
            {"step": 5, "loss": 1.0},
        ]
        assert read_evaluations(history, 2) == [Evaluation(None, {"hr@1": 0.1, "reward_hr@1": 0.2}, None, 2)]
        assert read_evaluations(history) == [Evaluation("a_b", {"hr@1": 0.3, "reward_ndcg@10": 0.4}, None, 4)]
        assert read_evaluations([]) == []

    def test_wilson(self):
        """Newcombe (1998), Statistics in Medicine 17, table I, method 3, to its four decimals."""
        for hits, n, low, high in (
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ):
            found = wilson_interval(hits / n, n)
            assert [round(bound, 4) for bound in found] == [low, high]
        assert wilson_interval(0.5, None) is None

    def test_trivial_metrics_are_left_out(self):
        text = describe_evaluations([Evaluation(None, {"hr@1": 0.5, "hr@5": 1.0, "hr@10": 1.0}, 10, 3, (5, 5))])
        assert "hr@1 | 0.5000" in text
        assert "hr@5 |" not in text
        assert "| 0.200 |" in text


class TestFigure:
    HISTORY = [{"step": step, "loss": 3 - step / 10, "rewards/margins": step / 5} for step in range(1, 6)]

    def test_whole_or_as_before(self, tmp_path, monkeypatch):
        path = tmp_path / "curves.png"
        assert plot_training_curves(self.HISTORY, path)
        before = path.read_bytes()

        def fail(*args, **kwargs):
            raise OSError("disk full")

        monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
        with pytest.raises(OSError, match="disk full"):
            plot_training_curves(self.HISTORY, path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_nothing_to_plot(self, tmp_path):
        assert not plot_training_curves([{"step": 1, "grad_norm": 2.0}], tmp_path / "curves.png")
        assert list(tmp_path.iterdir()) == []


class TestLicences:
    @pytest.mark.parametrize(
        ("names", "allowed"),
        [
            *(
                (["movielens-100k"], False),
                (["ml-1m"], False),
                (["movielens", "copy"], False),
                (["movielens-10m"], False),
            ),
            *((["ml-latest-small"], True), (["movielens", "ml-25m"], True), (["movielens-32m"], True)),
            *((["goodreads-poetry"], False), (["goodbooks-10k"], True), (["lastfm"], False)),
            *((["lastfm-1k"], False), (["amazon-Video_Games"], False), (["steam"], False)),
            *((["hetrec2011-lastfm-2k"], False), (["table", "shop"], None), ([None], None), (["xml-100"], None)),
        ],
    )
    def test_by_name(self, names, allowed):
        assert find_licence(names).redistribution is allowed

    def test_who_may(self):
        forbidden, allowed = find_licence(["lastfm"]), find_licence(["goodbooks-10k"])
        for licence, private, permitted, refused in (
            *((forbidden, True, False, True), (forbidden, False, True, False), (allowed, False, False, False)),
            *((UNKNOWN, True, False, False), (UNKNOWN, False, False, True), (UNKNOWN, False, True, False)),
        ):
            assert (why_not_public(licence, "x", private, permitted) is not None) == refused

    def test_all_sources_that_can_be_downloaded_are_known(self):
        from trl_sdpo.recsys.interactions.published import SOURCES

        for name, source in SOURCES.items():
            assert (find_licence([name]) is not UNKNOWN) == bool(
                source.files or source.terms or name == "movielens"
            ), name


def test_example_loads_what_it_is_pushed_to():
    card = 'x = Recommender.from_pretrained("out")\ny = pipeline("text-generation", model="out")\nmodel_name="out"\n'
    assert with_repo_id(card, "me/m") == (
        'x = Recommender.from_pretrained("me/m")\ny = pipeline("text-generation", model="me/m")\nmodel_name="out"\n'
    )


def test_table():
    assert table(["a", "b"], [("x|y", 1234), ("z\nw", 5)]).splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        "| x\\|y | 1,234 |",
        "| z w | 5 |",
    ]


def test_metadata_is_yaml():
    facts = ModelFacts("m", "me/m", evaluations=[Evaluation(None, {"hr@1": 0.25}, 100, 3, (4, 4))])
    header = re.match(r"---\n(.*?)\n---\n", str(make_model_card(facts)), re.DOTALL)[1]
    metric = yaml.safe_load(header)["model-index"][0]["results"][0]["metrics"][0]
    assert metric["value"] == 0.25
    assert metric["args"]["interval"] == [round(bound, 6) for bound in wilson_interval(0.25, 100)]

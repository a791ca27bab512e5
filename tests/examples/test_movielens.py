import json
import random

import movielens
import numpy as np
import pytest
import recommendation
import report
import stages
from datasets import Dataset
from peft import PeftModel
from small_llama import build_small_llama, train_title_tokenizer
from transformers import HfArgumentParser

from trl_sdpo import load_recommender_files


WORDS = ["River", "Hotel", "Train", "Summer", "Door", "Light", "Mile", "Garden", "Winter", "Island"]
ITEMS = [f"The {first} of the {second} ({1950 + number})" for number, (first, second) in enumerate(
    (first, second) for first in WORDS[:6] for second in WORDS if first != second
)]  # fmt: skip
TINY = {
    "hidden_size": 64,
    "num_layers": 1,
    "vocab_size": 600,
    "sft_epochs": 2,
    "dpo_records": 32,
    "dpo_batch_size": 16,
    "num_negatives": 3,
    "eval_records": 20,
    "lora_r": 2,
}


@pytest.fixture(scope="module")
def movielens_files(tmp_path_factory):
    """Made-up ratings of 30 users in the format of MovieLens-100k."""
    folder = tmp_path_factory.mktemp("ml-100k")
    generator = random.Random(0)
    ratings = []
    for user in range(1, 31):
        # users come one after the other, so that every part of a split by time has users with a history
        for step, item in enumerate(generator.sample(range(1, len(ITEMS) + 1), 20)):
            ratings.append(f"{user}\t{item}\t{generator.randint(1, 5)}\t{880000000 + 1000 * user + step}")
    generator.shuffle(ratings)
    (folder / "u.data").write_text("\n".join(ratings) + "\n")
    flags = "|".join("0" * 19)
    rows = [f"{number}|{title}|01-Jan-1995||http://x.org|{flags}" for number, title in enumerate(ITEMS, start=1)]
    (folder / "u.item").write_text("\n".join(rows) + "\n", encoding="latin-1")
    return folder


def arguments(folder, output_dir, **changes):
    return movielens.MovieLensArguments(**{**TINY, "data": str(folder), "output_dir": str(output_dir), **changes})


class TestRun:
    @pytest.fixture(scope="class")
    def run(self, movielens_files, tmp_path_factory):
        output_dir = tmp_path_factory.mktemp("run")
        recommendation.main(arguments(movielens_files, output_dir, model="small-llama"), movielens.MOVIELENS)
        return output_dir

    def test_results(self, run):
        results = json.loads((run / "results.json").read_text())
        assert list(results["stages"]) == [
            "chance", "popularity", "base", "sft", "more sft", "s-dpo", "s-dpo (implicit reward)",
        ]  # fmt: skip
        for stage in results["stages"].values():
            assert set(stage) == {"hr@1", "hr@1_ci", "ndcg@10", "mrr", "n"}
            assert stage["n"] == 20
            assert stage["hr@1_ci"][0] <= stage["hr@1"] <= stage["hr@1_ci"][1]
        assert results["stages"]["chance"]["hr@1"] == 0.05
        assert results["settings"]["num_negatives"] == 3
        assert results["seconds"]["total"] >= sum(results["training_seconds"].values())
        # 32 records of 3 negatives, from ln 4
        log = json.loads((run / "s-dpo" / "stage.json").read_text())["log"]
        assert log[0]["loss"] == pytest.approx(np.log(4), abs=1e-4)

    def test_plot_is_a_png(self, run):
        assert (run / "results.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    def test_adapter_loads_on_the_model_of_sft(self, run):
        model = stages.load_model(run / "s-dpo")
        assert isinstance(model, PeftModel)
        assert model.get_base_model().config.name_or_path == str(run / "sft")

    @pytest.mark.parametrize("stage", ["sft", "more-sft", "s-dpo"])
    def test_what_a_recommender_needs_lies_beside_every_model(self, run, stage):
        files = load_recommender_files(run / stage)
        assert [template.name for template in files.config.templates] == ["lines"]
        # a line ends a title here, without an EOS token
        assert (files.config.append_eos, files.config.source) == (False, "movielens-100k")
        assert set(files.catalogue.titles) <= set(ITEMS)
        assert max(files.catalogue.train_counts) > min(files.catalogue.train_counts) >= 0

    def test_resume_trains_nothing_again(self, run, movielens_files, monkeypatch, capsys):
        before = json.loads((run / "results.json").read_text())

        def must_not_train(*args, **kwargs):
            raise AssertionError("a finished stage was trained again")

        monkeypatch.setattr(stages, "sft_trainer", must_not_train)
        monkeypatch.setattr(stages, "softmax_dpo_trainer", must_not_train)
        recommendation.main(arguments(movielens_files, run, model="small-llama", resume=True), movielens.MOVIELENS)
        assert json.loads((run / "results.json").read_text())["stages"] == before["stages"]
        assert "s-dpo (implicit reward)" in capsys.readouterr().out

    def test_pretrained_model_with_an_adapter_from_the_start(self, run, movielens_files, tmp_path, capsys):
        """Any directory goes as `--model`; here it is the small Llama of the other run, and the list is shown."""
        changes = {"prompt_style": "candidates", "sft_on": "completion", "sft_records": 32, "sft_epochs": 1}
        model = str(run / "sft")
        recommendation.main(
            arguments(movielens_files, tmp_path, model=model, more_sft=False, **changes), movielens.MOVIELENS
        )
        results = json.loads((tmp_path / "results.json").read_text())
        assert "more sft" not in results["stages"]
        for stage in ("sft", "s-dpo"):
            config = json.loads((tmp_path / stage / "adapter_config.json").read_text())
            assert config["base_model_name_or_path"] == model
        assert "s-dpo" in capsys.readouterr().out


def test_flags_parse_and_defaults_suit_the_road():
    (args,) = HfArgumentParser(movielens.MovieLensArguments).parse_args_into_dataclasses(
        ["--num_negatives", "31", "--resume", "--seed", "3", "--no_more_sft"]
    )
    assert (args.num_negatives, args.pool_size, args.resume, args.seed, args.more_sft) == (31, 31, True, 3, False)
    assert args.model == "small-llama"
    assert args.prompt_style == "history"
    with pytest.raises(ValueError, match="--sft_on must be"):
        movielens.MovieLensArguments(sft_on="some")
    with pytest.raises(ValueError, match="--prompt_style must be one of"):
        movielens.MovieLensArguments(prompt_style="list")
    for name in ("eval_records", "num_negatives", "lora_r", "dpo_learning_rate"):
        with pytest.raises(ValueError, match=f"--{name} must be above 0, got 0"):
            movielens.MovieLensArguments(**{name: 0})


def test_a_batch_is_split_into_equal_parts(tmp_path):
    sizes = {"epochs": 1, "batch_size": 100, "micro_batch_size": 64, "learning_rate": 1e-3, "max_grad_norm": 1.0}
    arguments = stages.training_arguments(tmp_path, 1000, sizes, seed=0)
    assert arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] == 100


def test_a_prompt_that_is_no_prefix_is_an_error():
    """Without the line break at the end of the prompt, the last title is another token."""
    tokenizer = train_title_tokenizer(ITEMS, vocab_size=600)
    records = Dataset.from_list([{"prompt": ITEMS[0], "chosen": f"\n{ITEMS[1]}\n", "rejected": [f"\n{ITEMS[2]}\n"]}])
    with pytest.raises(ValueError, match=r"Row 0, column `prompt`: its tokens are not the first of"):
        stages.tokenize_without_eos(records, tokenizer)


class TestStage:
    class FakeTrainer:
        """Counts instead of training: what is tested is which stage is trained, and from where."""

        def __init__(self, directory):
            self.directory, self.state = directory, self
            self.log_history = [{"step": 1}]
            self.resumed_from = "not trained"

        def add_callback(self, callback):
            self.callback = callback

        def train(self, resume_from_checkpoint):
            self.resumed_from = resume_from_checkpoint

        def save_model(self):
            (self.directory / "model").write_text("")

    def run(self, directory, settings, resume):
        trainer = self.FakeTrainer(directory)
        result = stages.run_stage(directory, settings, resume, lambda: trainer)
        return trainer.resumed_from, result

    def test_without_resume_it_begins_anew(self, tmp_path):
        directory = tmp_path / "sft"
        assert self.run(directory, {"seed": 0}, resume=False)[0] is None
        (directory / "left over").write_text("")
        assert self.run(directory, {"seed": 0}, resume=False)[0] is None
        assert not (directory / "left over").exists()

    def test_resume_takes_a_finished_stage_with_the_same_settings(self, tmp_path):
        directory = tmp_path / "sft"
        _, first = self.run(directory, {"seed": 0}, resume=False)
        assert self.run(directory, {"seed": 0}, resume=True) == ("not trained", first)

    def test_resume_with_other_settings_begins_anew_and_says_why(self, tmp_path, caplog):
        directory = tmp_path / "sft"
        self.run(directory, {"seed": 0, "beta": 1}, resume=False)
        (directory / "checkpoint-5").mkdir()
        assert self.run(directory, {"seed": 1, "beta": 1}, resume=True)[0] is None
        assert "other settings than before (seed)" in caplog.text

    def test_seconds_of_an_earlier_run_count(self, tmp_path):
        checkpoint = tmp_path / "sft" / "checkpoint-10"
        checkpoint.mkdir(parents=True)
        stages.write_json(tmp_path / "sft" / stages.SETTINGS, {"seed": 0})
        stages.write_json(checkpoint / stages.ELAPSED, {"seconds": 100.0})
        resumed_from, result = self.run(tmp_path / "sft", {"seed": 0}, resume=True)
        assert resumed_from == str(checkpoint)
        assert 100 <= result["seconds"] < 160

    def test_resume_continues_from_the_last_checkpoint(self, tmp_path):
        directory = tmp_path / "sft"
        self.run(directory, {"seed": 0}, resume=False)
        (directory / stages.DONE).unlink()
        for step in (5, 10):
            (directory / f"checkpoint-{step}").mkdir()
        assert self.run(directory, {"seed": 0}, resume=True)[0].endswith("checkpoint-10")

    def test_files_of_something_else_are_left_alone(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("mine")
        with pytest.raises(ValueError, match="holds files of something else"):
            self.run(tmp_path, {"seed": 0}, resume=False)
        assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_windows_do_not_overlap_and_are_cut_anew():
    records = Dataset.from_dict({"user_id": [1] * 30 + [2] * 30, "position": list(range(3, 33)) * 2})
    indices = stages.window_indices(records, window=11, epochs=6, seed=0)
    users, positions = np.array(records["user_id"])[indices], np.array(records["position"])[indices]
    # 30 positions have two or three of every residue, for each of two users
    assert 4 * 6 <= len(indices) <= 6 * 6
    for user in (1, 2):
        residues = positions[users == user] % 11
        assert len(set(residues)) > 1
    np.testing.assert_array_equal(indices, stages.window_indices(records, window=11, epochs=6, seed=0))
    assert not np.array_equal(indices, stages.window_indices(records, window=11, epochs=6, seed=1))
    one_epoch = stages.window_indices(records, window=11, epochs=1, seed=0)
    for user in (1, 2):
        cut = np.sort(np.array(records["position"])[one_epoch][np.array(records["user_id"])[one_epoch] == user])
        assert set(np.diff(cut)) == {11}


class TestReport:
    def test_metrics_and_difference(self):
        """Stage b ranks the target first in both records, stage a in one of them: + 0.5 hr@1."""
        scores = {"a": np.array([[1.0, 0.0], [0.0, 1.0]]), "b": np.array([[1.0, 0.0], [2.0, 1.0]])}
        metrics = report.metrics_of_stages(scores, num_candidates=2, seed=0)
        assert [metrics[name]["hr@1"] for name in ("chance", "a", "b")] == [0.5, 0.5, 1.0]
        gain = report.difference(scores, "b", "a", seed=0)
        assert gain["hr@1"] == 0.5
        assert gain["hr@1_ci"] == [0.0, 1.0]
        assert gain["hr@1_p"] == 1.0  # they differ on one record

    @pytest.mark.parametrize(
        ("better", "baseline", "says"),
        [([1.0, 0.0], [0.0, 1.0], "beats sft: +1.000"), ([0.0, 1.0], [1.0, 0.0], "loses to sft: -1.000")],
    )
    def test_verdict(self, better, baseline, says):
        scores = {"sft": np.tile(baseline, (50, 1)), "s-dpo": np.tile(better, (50, 1))}
        differences = report.compare(scores, num_candidates=2, seed=0)["differences"]
        assert list(differences) == ["s-dpo - sft"]
        assert f"s-dpo {says}" in report.verdict(differences, "s-dpo", "sft")

    def test_verdict_of_a_difference_within_its_interval(self):
        differences = {"s-dpo - sft": {"hr@1": 0.01, "hr@1_ci": [-0.01, 0.03], "hr@1_p": 0.342}}
        verdict = report.verdict(differences, "s-dpo", "sft")
        assert "does not differ measurably from" in verdict
        assert verdict.endswith("p = 0.34.")

    def test_table(self):
        scores = {"a": np.tile([1.0, 0.0], (50, 1))}
        table = report.format_table(report.metrics_of_stages(scores, num_candidates=20, seed=0))
        assert len({len(line) for line in table.splitlines()}) == 1
        assert table.splitlines()[2].split() == ["chance", "0.050", "exact", "0.227", "0.180", "50"]


class TestSmallLlama:
    def test_a_title_is_the_same_tokens_wherever_its_line_stands(self):
        tokenizer = train_title_tokenizer(ITEMS, ["Watched:\n"], vocab_size=600)
        prompt = f"Watched:\n{ITEMS[3]}\n{ITEMS[7]}\n"
        ids = tokenizer(prompt)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        both = tokenizer(prompt + ITEMS[3] + "\n")["input_ids"]
        assert both[: len(ids)] == ids
        title = both[len(ids) :]
        assert any(ids[start : start + len(title)] == title for start in range(len(ids)))
        assert tokenizer.decode(both, skip_special_tokens=True) == prompt + ITEMS[3] + "\n"

    def test_any_text_goes_in_and_comes_out(self):
        tokenizer = train_title_tokenizer(ITEMS, vocab_size=600)
        text = "Ťřəñ ßüß 東京 🎬\n  two  spaces"
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text

    def test_seed_decides_the_weights(self):
        tokenizer = train_title_tokenizer(ITEMS, vocab_size=600)
        first, again, other = (build_small_llama(tokenizer, 64, 1, seed) for seed in (0, 0, 1))
        weights = [model.model.embed_tokens.weight for model in (first, again, other)]
        assert weights[0].equal(weights[1])
        assert not weights[0].equal(weights[2])
        with pytest.raises(ValueError, match="multiple of 64"):
            build_small_llama(tokenizer, 100)

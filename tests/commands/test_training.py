"""`trl-sdpo sft` and `trl-sdpo train`, in this process, on a model of a few thousand weights."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from trl_sdpo import cli, to_prompt_completion
from trl_sdpo.commands import sft, train
from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.pipeline.stage_records import chosen_rows, completions_are_lines, tokenize_lines
from trl_sdpo.pipeline.training import train_and_save
from trl_sdpo.recsys import PromptTemplate, get_template
from trl_sdpo.recsys.records.recommender_files import (
    Catalogue,
    RecommenderConfig,
    load_recommender_files,
    save_recommender_files,
)


QUICK = ("--max_steps", "2", "--per_device_train_batch_size", "4", "--learning_rate", "1e-2", "--logging_steps", "1")
LORA = ("--use_peft", "--lora_r", "4", "--lora_target_modules", "all-linear")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def workplace(tmp_path, monkeypatch, llama, tokenizer, records):
    """A directory with a model and a prepared data set, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    llama().save_pretrained("model")
    tokenizer.save_pretrained("model")
    splits = {"train": records(12, 2, 4), "validation": records(5, 4, 4)}
    DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk("data")
    return tmp_path


def run(*words):
    """The exit status of the command."""
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code


def results(directory):
    return json.loads((directory / "all_results.json").read_text())


def losses(directory):
    log = json.loads((directory / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


def adapter(directory):
    return load_file(directory / "adapter_model.safetensors")


def test_train_goes_on_with_the_adapter_of_sft_which_is_its_reference(workplace, llama):
    words = ("--dataset_name", "data", *QUICK)
    assert run("sft", *words, *LORA, "--model_name_or_path", "model", "--output_dir", "sft") == 0
    assert run("train", *words, "--model_name_or_path", "sft", "--output_dir", "s-dpo", "--num_negatives", "2") == 0
    after_sft, after_train = adapter(workplace / "sft"), adapter(workplace / "s-dpo")
    assert after_sft.keys() == after_train.keys()
    assert any(not torch.equal(after_sft[name], after_train[name]) for name in after_sft)
    # policy and reference begin as one: ln(1 + K)
    assert losses(workplace / "s-dpo")[0] == pytest.approx(math.log(3), abs=1e-4)
    assert "eval_loss" in results(workplace / "sft")
    assert 0 < results(workplace / "s-dpo")["eval_mrr"] <= 1
    assert not (workplace / "s-dpo" / "ref").exists()
    # the same prompt and completion tokens, and a tokenizer beside the adapter
    PeftModel.from_pretrained(llama(), workplace / "s-dpo")
    assert AutoTokenizer.from_pretrained(workplace / "s-dpo").eos_token == "<|im_end|>"


def test_cards_do_not_name_the_home_directory(workplace, monkeypatch):
    monkeypatch.setenv("HOME", str(workplace))
    model = ("--dataset_name", "data", *QUICK, "--save_steps", "1", "--model_name_or_path")
    assert run("sft", *model, workplace / "model", *LORA, "--output_dir", "sft") == 0
    assert run("train", *model, "sft", "--output_dir", "s-dpo", "--num_negatives", "2") == 0
    for card in (*workplace.glob("sft/**/README.md"), *workplace.glob("s-dpo/**/README.md")):
        assert str(workplace) not in card.read_text(), card
    assert (workplace / "sft" / "README.md").is_file()
    assert (workplace / "s-dpo" / "README.md").is_file()


@pytest.mark.parametrize("adapter", [True, False])
def test_sft_leaves_a_card_of_a_recommender(workplace, adapter):
    """And not that of TRL, which asks a model of films what it would do with a time machine."""
    words = ("--dataset_name", "data", *QUICK, "--model_name_or_path", "model", "--save_steps", "1")
    assert run("sft", *words, *(LORA if adapter else ()), "--output_dir", "out") == 0
    cards = [workplace / "out" / "README.md", *workplace.glob("out/checkpoint-*/README.md")]
    text = cards[0].read_text()
    assert "time machine" not in text
    assert "fine-tuned on what users chose next, the stage before Softmax-DPO" in text
    assert (
        f"{'a LoRA adapter of' if adapter else 'fine-tuned from'} `model`, a local model that is not on the Hub"
        in text
    )
    assert "| loss | of the tokens of completions alone |" in text
    assert "| steps | 2 |" in text
    assert "softmax-dpo" not in text.partition("\n---\n")[0]
    assert text.count("Framework versions") == 1
    assert not any("time machine" in card.read_text() for card in cards)


def test_sft_learns_the_completions_unless_told_to_learn_the_prompts_too(workplace):
    words = ("--dataset_name", "data", *QUICK, "--model_name_or_path", "model", "--dataset_test_split", "none")
    for name, flags in (("default", ()), ("completion", ["True"]), ("all", ["False"])):
        flags = ["--completion_only_loss", *flags] if flags else []
        assert run("sft", *words, "--max_steps", "1", "--output_dir", name, *flags) == 0
    first = {name: losses(workplace / name)[0] for name in ("default", "completion", "all")}
    assert first["default"] == first["completion"] != first["all"]


def test_all_weights_are_trained_without_an_adapter(workplace):
    words = ("--dataset_name", "data", *QUICK, "--model_name_or_path", "model", "--dataset_test_split", "none")
    assert run("train", *words, "--output_dir", "out") == 0
    before, after = (load_file(workplace / name / "model.safetensors") for name in ("model", "out"))
    assert all(not torch.equal(before[name], after[name]) for name in before if "proj" in name)
    assert not any(name.startswith("eval") for name in results(workplace / "out"))


def test_resumed_training_comes_to_what_an_unbroken_run_does(workplace):
    words = ["train", "--dataset_name", "data", *QUICK, *LORA, "--model_name_or_path", "model", "--save_steps", "1"]
    words += ["--lr_scheduler_type", "constant"]
    assert run(*words, "--max_steps", "4", "--output_dir", "whole") == 0
    assert run(*words, "--max_steps", "2", "--output_dir", "broken") == 0
    assert run(*words, "--max_steps", "4", "--output_dir", "broken", "--resume_from_checkpoint", "True") == 0
    whole, resumed = adapter(workplace / "whole"), adapter(workplace / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_checkpoints_of_another_run_are_not_mixed_with_new_ones(workplace, capsys):
    words = ["sft", "--dataset_name", "data", *QUICK, "--model_name_or_path", "model", "--output_dir", "out"]
    assert run(*words) == 0
    before = (workplace / "out" / "model.safetensors").read_bytes()
    assert run(*words, "--max_steps", "1") == 1
    assert "out: holds checkpoint-2 of an earlier run. Pass --resume_from_checkpoint" in capsys.readouterr().err
    assert (workplace / "out" / "model.safetensors").read_bytes() == before
    assert run(*words, "--max_steps", "1", "--overwrite") == 0
    assert [path.name for path in (workplace / "out").glob("checkpoint-*")] == ["checkpoint-1"]


def test_qlora(workplace):
    """4-bit NF4 through both stages; the base stays as it was saved."""
    words = (
        "--dataset_name",
        "data",
        *QUICK,
        "--load_in_4bit",
        "--use_bnb_nested_quant",
        "--dataset_test_split",
        "none",
    )
    assert run("sft", *words, *LORA, "--model_name_or_path", "model", "--output_dir", "sft") == 0
    slow = ("--learning_rate", "1e-5", "--lr_scheduler_type", "constant", "--num_negatives", "2")
    assert run("train", *words, "--model_name_or_path", "sft", "--output_dir", "out", *slow) == 0
    assert losses(workplace / "out")[0] == pytest.approx(math.log(3), abs=1e-5)
    before, after = adapter(workplace / "sft"), adapter(workplace / "out")
    # in bfloat16, where TRL has them, hardly any would be moved by a learning rate as small as this
    moved = torch.cat([(before[name] != after[name]).flatten() for name in before])
    assert moved.float().mean() > 0.9
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}


def test_published_json_trains_as_it_is(workplace):
    rows = [
        {
            "historyList": "Band 1::Band 2::Band 3",
            "itemList": [f"Band {index}", f"Band {index + 1}", f"Band {index + 2}"],
            "trueSelection": f"Band {index + 1}",
        }
        for index in range(4, 12)
    ]
    (workplace / "music-train.json").write_text(json.dumps(rows))
    words = (
        "--dataset_name",
        "music-train.json",
        "--template",
        "music-choose",
        *QUICK,
        "--dataset_test_split",
        "none",
    )
    assert run("train", *words, *LORA, "--model_name_or_path", "model", "--output_dir", "out") == 0
    assert losses(workplace / "out")[0] == pytest.approx(math.log(3), abs=1e-4)


@pytest.mark.parametrize("lines", [True, False])
def test_what_a_recommender_needs_travels_with_the_model(workplace, lines):
    """With what the tokens of training were, which decides the tokens of serving."""
    template = PromptTemplate(
        "mine", "history", "Seen:\n{history}\n", "\n", completion_prefix="", completion_suffix="\n"
    )
    catalogue = Catalogue(["1", "2"], ["Heat (1995)", "Ran (1985)"])
    save_recommender_files("data", RecommenderConfig([template]), catalogue)
    end = "\n" if lines else ""
    rows = [{"prompt": "Seen:\nBig\n", "chosen": f"Heat{end}", "rejected": [f"Ran{end}"]}] * 8
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk("data")
    words = ("--dataset_name", "data", *QUICK)
    assert run("sft", *words, *LORA, "--model_name_or_path", "model", "--output_dir", "sft") == 0
    assert run("train", *words, "--model_name_or_path", "sft", "--output_dir", "s-dpo") == 0
    for name in ("sft", "s-dpo"):
        files = load_recommender_files(workplace / name)
        assert files.config == RecommenderConfig([template], append_eos=not lines)
        assert files.catalogue == catalogue


def test_a_catalogue_of_other_data_does_not_stay_beside_a_new_model(llama, records, make_trainer, tmp_path):
    """Of a data set that has none. While it trains it is gone already, for what is pushed then."""
    config = RecommenderConfig([get_template("watched")])
    save_recommender_files(tmp_path / "data", config)
    trainer = make_trainer(llama(), records(4), args={"max_steps": 1})
    output = Path(trainer.args.output_dir)
    save_recommender_files(output, config, Catalogue(["9"], ["Of Other Data"]))
    train_and_save(trainer, tmp_path / "data")
    files = load_recommender_files(output)
    assert files.config == config
    assert files.catalogue is None


class TestTokens:
    def test_of_sft_are_those_of_trl(self, records, tokenizer, llama, tmp_path):
        """Tokens and labels, for texts; see below for lines and messages."""
        dataset = Dataset.from_list(records(6, 2, 4))
        ours = chosen_rows(dataset, "train", tokenizer, tokenizer.eos_token, None, None)
        args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, max_length=None)
        trainer = SFTTrainer(llama(), args, train_dataset=to_prompt_completion(dataset), processing_class=tokenizer)
        for row, theirs in zip(ours, trainer.train_dataset, strict=True):
            assert row["input_ids"] == theirs["input_ids"]
            mask = [label != -100 for label in theirs["labels"]]
            assert [bool(value) for value in row["completion_mask"]] == mask

    @pytest.mark.parametrize("kind", ["texts", "lines", "messages", "tokens", "pairs"])
    def test_of_both_stages_are_the_same(self, kind, records, tokenizer, to_conversational):
        rows = records(6, 2, 4)
        if kind == "lines":
            rows = [
                {"prompt": "Seen:\nA\n", "chosen": row["chosen"][1:] + "\n", "rejected": [" x\n", " y\n"]}
                for row in rows
            ]
        elif kind == "messages":
            rows = to_conversational(rows)
        elif kind == "tokens":
            made = [tokenize_multi_preference(row, i, tokenizer, tokenizer.eos_token) for i, row in enumerate(rows)]
            rows = [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in made]
        dataset = Dataset.from_list(rows)
        pairs = (
            Dataset.from_list([row | {"rejected": row["rejected"][0]} for row in rows]) if kind == "pairs" else None
        )
        assert completions_are_lines(dataset) == (kind == "lines")
        eos_token = "" if kind == "lines" else tokenizer.eos_token
        ours = chosen_rows(pairs or dataset, "train", tokenizer, eos_token, None, None)
        tokens = tokenize_lines(dataset, "train", tokenizer, None) if kind == "lines" else dataset
        for index, (row, record) in enumerate(zip(ours, tokens, strict=True)):
            record = tokenize_multi_preference(record, index, tokenizer, tokenizer.eos_token)
            assert row["input_ids"] == record["prompt_ids"] + record["chosen_ids"]
            assert row["completion_mask"] == [0] * len(record["prompt_ids"]) + [1] * len(record["chosen_ids"])
            ends_in_eos = row["input_ids"][-1] == tokenizer.eos_token_id
            assert ends_in_eos == (kind not in ("lines", "messages"))

    @pytest.mark.parametrize("other", [0, 1])
    def test_all_completions_are_lines_or_none_is(self, tokenizer, other):
        """Not the first record decides: in a data set all do, and a stream ends at the one that differs."""
        lines = {"prompt": "Seen:\nA\n", "chosen": "B\n", "rejected": ["x\n", "y\n"]}
        text = {"prompt": "Seen: A. Next:", "chosen": " B", "rejected": [" x", " y"]}
        mixed = Dataset.from_list([text, lines] if other == 0 else [lines, text])
        assert completions_are_lines(Dataset.from_list([lines, lines]))
        assert not completions_are_lines(mixed)
        assert completions_are_lines(mixed.to_iterable_dataset()) == (other == 1)
        if other == 1:
            says = r"Row 1, column `chosen`: ' B' does not end in a line break, as other completions do"
            for dataset in (mixed, mixed.to_iterable_dataset()):
                with pytest.raises(ValueError, match=says):
                    list(tokenize_lines(dataset, "train", tokenizer, None))
                with pytest.raises(ValueError, match=says):
                    list(chosen_rows(dataset, "train", tokenizer, "", None, None))

    def test_a_rejected_completion_that_is_no_line_is_named(self, tokenizer):
        rows = [{"prompt": "Seen:\nA\n", "chosen": "B\n", "rejected": ["x\n", "y"]}]
        with pytest.raises(ValueError, match=r"Row 0, column `rejected\[1\]`: 'y' does not end in a line break"):
            tokenize_lines(Dataset.from_list(rows), "train", tokenizer, None)

    def test_rows_are_dropped_and_never_cut(self, records, tokenizer, caplog):
        dataset = Dataset.from_list([*records(3), {"prompt": "Seen: " * 50, "chosen": " A", "rejected": [" B"]}])
        rows = chosen_rows(dataset, "train", tokenizer, tokenizer.eos_token, 100, None)
        assert len(rows) == 3
        assert (
            "1 of 4 records of the train dataset have a prompt and completion of more than `max_length=100`"
            in caplog.text
        )
        with pytest.raises(ValueError, match=r"3 of 3 records .* so none is left. Raise `max_length`"):
            chosen_rows(dataset.select(range(3)), "train", tokenizer, tokenizer.eos_token, 5, None)

    def test_records_that_are_none_are_named(self, tokenizer):
        bad = Dataset.from_list([{"prompt": "Next:", "chosen": " A", "rejected": [" A"]}])
        with pytest.raises(
            ValueError, match=r"Row 0, column `rejected\[0\]`: rejected completion equal to the chosen"
        ):
            chosen_rows(bad, "train", tokenizer, "", None, None)
        with pytest.raises(ValueError, match=r"no `prompt`, `chosen` and `rejected`, only \['text'\]"):
            chosen_rows(Dataset.from_list([{"text": "A"}]), "train", tokenizer, "", None, None)


def test_accelerate_starts_the_process_that_trains(workplace, capfd):
    """As a file for a CPU has it; the flags stand beside it, in words and in the file of `--config`."""
    one = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "num_processes": 1, "use_cpu": True}
    (workplace / "one.yaml").write_text(yaml.safe_dump(one | {"mixed_precision": "no"}))
    (workplace / "train.yaml").write_text("accelerate_config: one.yaml\nmax_steps: 1\noutput_dir: out\n")
    words = ["--dataset_name", "data", "--model_name_or_path", "model", "--dataset_test_split", "none", *LORA]
    assert run("train", *words, "--config", "train.yaml", "--logging_steps", "1", "--num_negatives", "2") == 0
    assert losses(workplace / "out") == [pytest.approx(math.log(3), abs=1e-4)]
    assert run("train", *words, "--config", "train.yaml", "--overwrite", "--dataset_train_split", "x") == 1
    error = capfd.readouterr().err
    assert "trl-sdpo train: error: The dataset 'data' has no split 'x'" in error
    assert "Traceback" not in error


class TestFlags:
    def test_help_shows_the_most_used_flags_and_help_all_the_rest(self, capsys):
        for name in ("sft", "train"):
            assert run(name, "--help") == 0
            short = capsys.readouterr().out
            assert run(name, "--help_all") == 0
            whole = capsys.readouterr().out
            assert len(short.splitlines()) < 160
            for flag in ("--dataset_name", "--use_peft", "--load_in_4bit", "--learning_rate", "--accelerate_config"):
                assert flag in short
            assert "--adam_beta1" not in short
            parser = (sft if name == "sft" else train).make_parser(f"trl-sdpo {name}")
            for flag in parser.flags:
                assert f"--{flag} " in whole, flag

    @pytest.mark.parametrize(
        ("words", "status", "says"),
        [
            (["--lerning_rate", "1"], 2, "'--lerning_rate' is no flag. Did you mean '--learning_rate'?"),
            (["--num_proceses", "2"], 2, "'--num_proceses' is no flag. Did you mean '--num_processes'?"),
            (["data"], 2, "'data' is no flag"),
            (["--model_name_or_path", "model"], 2, "--dataset_name is missing"),
            (["--dataset_name", "data", "--model_name_or_path", "model"], 2, "--output_dir is missing"),
            (["--dataset_name", "none.json", "--model_name_or_path", "m", "--output_dir", "o"], 1, "none.json"),
            (
                [
                    "--dataset_name",
                    "data",
                    "--model_name_or_path",
                    "m",
                    "--output_dir",
                    "o",
                    "--dataset_train_split",
                    "x",
                ],
                1,
                "no split 'x', only ['train', 'validation']. Pass one of them as --dataset_train_split",
            ),
            (
                ["--dataset_name", "data", "--model_name_or_path", "model", "--output_dir", "o", "--beta", "x"],
                2,
                "argument --beta: invalid float value: 'x'",
            ),
            (
                [
                    "--accelerate_config",
                    "zero9",
                    "--dataset_name",
                    "data",
                    "--model_name_or_path",
                    "m",
                    "--output_dir",
                    "o",
                ],
                1,
                "Accelerate config zero9 is neither a file nor a valid config",
            ),
        ],
    )
    def test_mistakes_are_errors_that_say_what_is_right(self, words, status, says, workplace, capsys):
        assert run("train", *words) == status
        error = capsys.readouterr().err
        assert says in error
        assert "Traceback" not in error
        assert not (workplace / "o").exists()

    def test_what_suits_a_machine_without_an_accelerator_can_be_undone(self, workplace):
        words = ["--dataset_name", "data", "--model_name_or_path", "model", "--output_dir", "out"]
        args = train.make_parser("trl-sdpo train").parse_args(words).training_args
        assert (args.use_cpu, args.bf16, args.gradient_checkpointing) == (True, False, False)
        (workplace / "x.yaml").write_text("gradient_checkpointing: true\nbf16: true\n")
        args = train.make_parser("trl-sdpo train").parse_args([*words, "--config", "x.yaml"]).training_args
        assert (args.use_cpu, args.bf16, args.gradient_checkpointing) == (True, True, True)

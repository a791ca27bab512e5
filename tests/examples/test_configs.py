"""The files of examples/configs, which hold the whole road of a data set."""

import json
import random
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from trl_sdpo import cli
from trl_sdpo.commands import run
from trl_sdpo.commands._config_file import read_config


CONFIGS = Path(__file__).parents[2] / "examples" / "configs"


@pytest.mark.parametrize("name", [path.name for path in sorted(CONFIGS.glob("*.yaml"))])
def test_every_section_is_right_and_builds_on_the_one_before(name):
    path = str(CONFIGS / name)
    stages = run.plan(read_config(path), path)
    flags = {stage.name: stage.flags for stage in stages}
    assert list(flags) == ["prepare", "sft", "train", "evaluate"]
    assert flags["sft"]["dataset_name"] == flags["train"]["dataset_name"] == flags["prepare"]["output_dir"]
    assert flags["train"]["model_name_or_path"] == flags["sft"]["output_dir"]
    sft, s_dpo = flags["sft"]["output_dir"], flags["train"]["output_dir"]
    assert flags["evaluate"]["model_name_or_path"] == [f"sft={sft}", f"s-dpo={s_dpo}"]
    assert flags["evaluate"]["dataset_name"] == flags["prepare"]["output_dir"]
    outputs = [stage.output for stage in stages if stage.output is not None]
    assert len(set(outputs)) == len(outputs)


def test_there_is_one_of_each_data_set_and_one_in_4_bits():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= {"movielens", "goodreads", "lastfm", "qlora"}


@pytest.mark.parametrize(
    ("name", "kind"), [("fsdp2_2x8", DistributedType.FSDP), ("zero3_2x8", DistributedType.DEEPSPEED)]
)
def test_accelerate_takes_those_of_several_machines(name, kind):
    """`tests/trainer/test_fsdp.py` trains with the first, `tests/helpers/check_deepspeed.py` with the second."""
    config = load_config_from_file(str(CONFIGS / "accelerate" / f"{name}.yaml"))
    assert (config.distributed_type, config.num_machines, config.num_processes) == (kind, 2, 16)


@pytest.fixture
def lastfm_files(tmp_path):
    """Made up, in the publisher's format: users one after the other, so that each split has some with a history."""
    generator, lines = random.Random(0), ["userID\tartistID\ttagID\tday\tmonth\tyear"]
    for user in range(24):
        for day, item in enumerate(generator.sample(range(1, 41), 14), start=1):
            lines.append(f"{user}\t{item}\t1\t{day}\t{1 + user % 12}\t{2008 + user // 12}")
    (tmp_path / "user_taggedartists.dat").write_bytes(("\r\n".join(lines) + "\r\n").encode())
    artists = [f"{number}\tThe Band {number}\thttp://x\thttp://y" for number in range(1, 41)]
    (tmp_path / "artists.dat").write_text("\n".join(["id\tname\turl\tpictureURL", *artists]) + "\n")
    return tmp_path


def test_qlora_runs_on_a_tiny_model(lastfm_files, tmp_path, monkeypatch, llama, tokenizer):
    """All of the file but the model, the number of steps and the optimizer, which wants a GPU."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    # in this process, which has imported what the commands need
    monkeypatch.setattr(run, "_start", lambda name, words: cli.main([name, *words]))
    llama(max_position_embeddings=2048).save_pretrained("model")
    tokenizer.save_pretrained("model")
    small = ["sft.model_name_or_path=model", "common.max_steps=2", "common.optim=adamw_torch"]
    small += ["common.gradient_accumulation_steps=1", "prepare.max_validation_records=8", "common.logging_steps=1"]
    assert cli.main(["run", str(CONFIGS / "qlora.yaml"), f"prepare.path={lastfm_files}", *small]) == 0
    adapters = [
        load_file(tmp_path / "outputs" / "qlora" / name / "adapter_model.safetensors") for name in ("sft", "s-dpo")
    ]
    assert any(not (adapters[0][name] == adapters[1][name]).all() for name in adapters[0])
    config = json.loads((tmp_path / "outputs" / "qlora" / "s-dpo" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 32)
    # of each layer
    assert {name.rpartition(".")[2] for name in config["target_modules"]} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    results = json.loads((tmp_path / "outputs" / "qlora" / "s-dpo" / "eval_results.json").read_text())
    assert 0 <= results["eval_hr@1"] <= 1
    assert (tmp_path / "outputs" / "qlora" / "report" / "results.html").is_file()

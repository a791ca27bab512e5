"""
FSDP2 through accelerate, over gloo, by the configuration for two machines in examples: one process and two that share every
parameter out come to the same.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers import fsdp_processes
from helpers.closeness import assert_same_numbers, assert_same_weights
from helpers.tiny_models import build_llama, build_tokenizer


CONFIG = Path(__file__).parents[2] / "examples" / "configs" / "accelerate" / "fsdp2_2x8.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG), "--num_machines", "1"]
    command += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    run = subprocess.run(
        [*command, fsdp_processes.__file__, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stdout[-5000:]
    return folder


@pytest.mark.parametrize("scenario", fsdp_processes.SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_sharded_is_whole(folder, tmp_path, scenario):
    """The loss begins at ln(1 + K); losses, gradients and weights are those of one process, saved ones too."""
    one = scenario(str(tmp_path))
    if scenario is not fsdp_processes.padded_passes:  # of records with pools of unlike sizes
        assert one["logs"][0]["loss"] == pytest.approx(math.log(3), abs=1e-3)
        assert one["logs"][-1]["loss"] != pytest.approx(math.log(3), abs=1e-3)
    for rank in (0, 1):
        two = torch.load(folder / f"{scenario.__name__}-{rank}.pt", weights_only=True)
        assert len(two["logs"]) == len(one["logs"]) == 4
        for left, right in zip(one["logs"], two["logs"], strict=True):
            assert right == pytest.approx(left, rel=1e-4, abs=1e-4)
        names = {name for name in two["weights"] if ".ref." not in name}  # the copy that shards need
        assert names == {name for name in one["weights"] if ".ref." not in name}
        assert_same_weights({name: two["weights"][name] for name in names}, one["weights"], way=4e-3)
    assert_saved(folder / scenario.__name__ / "saved", two["weights"])


def assert_saved(folder, weights):
    """Loaded without us, it is what was trained."""
    if (folder / "adapter_config.json").exists():
        model = PeftModel.from_pretrained(build_llama(len(build_tokenizer())), folder)
        assert {path.name for path in folder.iterdir() if path.is_dir()} == set()  # the reference stays at home
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    weights = {name.replace(".second.", ".default."): weight for name, weight in weights.items()}
    for name, param in model.named_parameters():
        assert_same_numbers(param, weights[name])

"""
Two processes under DeepSpeed ZeRO-2 and ZeRO-3 on a CPU, against one process without it.

DeepSpeed is no dependency of the tests, so pytest does not collect this file. With `pip install deepspeed`:

    python tests/check_deepspeed.py OUTPUT_DIR

It trains a tiny Llama and prints, for each scenario, the largest difference of losses, metrics and saved weights. It
exits with 1 if one is above the tolerance.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file

from helpers import two_processes
from helpers.tiny_models import build_llama, build_tokenizer
from helpers.two_processes import make_records, make_trainer


TOLERANCE = 1e-4  # relative to 1 or the value, whichever is larger
TIMINGS = ("runtime", "per_second", "preparation_time")


ZERO_3 = Path(__file__).parents[2] / "examples" / "configs" / "accelerate" / "zero3_2x8.yaml"


def config(stage: int) -> dict:
    """What accelerate makes of the configuration for two machines in examples, and the same of ZeRO-2."""
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    ours = yaml.safe_load(ZERO_3.read_text(encoding="utf-8"))["deepspeed_config"]
    zero = {
        "stage": stage,
        "stage3_gather_16bit_weights_on_model_save": ours["zero3_save_16bit_model"],
        "offload_optimizer": {"device": ours["offload_optimizer_device"]},
        "offload_param": {"device": ours["offload_param_device"]},
    }
    return {"zero_optimization": zero, **dict.fromkeys(names, "auto")}


def options(stage: int | None) -> dict:
    if stage is None:
        return {}
    # accelerate takes no backend for DeepSpeed but that of an accelerator, so the state is set up before
    return {
        "use_cpu": False,
        "accelerator_config": {"use_configured_state": True},
        "deepspeed": config(stage),
    }


def with_reference(folder, args):
    """All weights, an explicit reference, drawn negatives, and an evaluation that does not divide by two."""
    trainer = make_trainer(
        folder,
        Dataset.from_list(make_records(8)),
        args={**args, "num_negatives": 2},
        eval_dataset=Dataset.from_list(make_records(7)),
    )
    trainer.train()
    trainer.evaluate()
    return trainer


def continued_adapter(folder, args):
    """The reference is a frozen copy of the adapter."""
    args = {**args, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    trainer = make_trainer(folder, Dataset.from_list(make_records(16)), with_lora=True, args=args)
    trainer.train()
    return trainer


def new_adapter(folder, args):
    """Of a model loaded from a folder, which ZeRO-3 shards as it loads it; the reference is the base model."""
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4)
    trainer = two_processes.Recorder(
        str(Path(folder).parent / "model"),
        args=make_config(folder, args),
        train_dataset=Dataset.from_list(make_records(8)),
        processing_class=build_tokenizer(),
        peft_config=lora,
    )
    trainer.train()
    return trainer


def loaded_reference(folder, args):
    """Policy and reference are loaded from a folder."""
    trainer = two_processes.Recorder(
        str(Path(folder).parent / "model"),
        args=make_config(folder, args),
        train_dataset=Dataset.from_list(make_records(8)),
        processing_class=build_tokenizer(),
    )
    trainer.train()
    return trainer


def make_config(folder, args):
    return two_processes.make_config(folder, {**args, "model_init_kwargs": {"dtype": "float32"}})


def whole_run(folder, args, checkpoint=None):
    args = {**args, "num_negatives": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(folder, Dataset.from_list(make_records(8)), args=args)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def resumed(folder, args):
    """From the middle of the run before."""
    return whole_run(folder, args, checkpoint=str(Path(folder).parent / "whole_run" / "checkpoint-2"))


SCENARIOS = (with_reference, continued_adapter, new_adapter, loaded_reference, whole_run, resumed)


def run(scenario, folder: Path, stage: int | None) -> None:
    if stage is not None:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        PartialState(backend="gloo")
    trainer = scenario(str(folder), options(stage))
    assert trainer.is_deepspeed_enabled == (stage is not None)
    trainer.save_model(str(folder / "saved"))
    if trainer.is_world_process_zero():
        history = [entry for entry in trainer.state.log_history if "train_loss" not in entry]
        (folder / "history.json").write_text(json.dumps(history))


def difference(one: Path, two: Path) -> tuple[float, float]:
    """Largest differences of logged values and of saved weights, relative to 1 or the value."""
    logs = [json.loads((path / "history.json").read_text()) for path in (one, two)]
    assert len(logs[0]) == len(logs[1]) > 0
    values = [0.0]
    for left, right in zip(*logs, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            if not name.endswith(TIMINGS):
                values.append(abs(left[name] - right[name]) / max(abs(left[name]), 1.0))
    (name,) = [path.name for path in (one / "saved").glob("*.safetensors")]
    left, right = (load_file(path / "saved" / name) for path in (one, two))
    assert left.keys() == right.keys()
    return max(values), max((left[key] - right[key]).abs().max().item() for key in left)


def main(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("one", "zero2", "zero3"):
        torch.manual_seed(0)
        build_llama(len(build_tokenizer())).save_pretrained(folder / name / "model")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment.pop("ACCELERATE_USE_CPU", None)
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, launcher in (("one", []), ("zero2", two), ("zero3", two)):
        for scenario in SCENARIOS:
            path = folder / name / scenario.__name__
            command = [sys.executable, *launcher, __file__, str(path), name]
            with open(path.with_suffix(".log"), "w") as log:
                # a process for each, since accelerate sets DeepSpeed up once in a process
                outcome = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            if outcome.returncode:
                print(f"{name} failed, see {path.with_suffix('.log')}")
                return 1
    worst = 0.0
    for name in ("zero2", "zero3"):
        for scenario in SCENARIOS:
            logs, weights = difference(folder / "one" / scenario.__name__, folder / name / scenario.__name__)
            print(f"{name}  {scenario.__name__:18}  losses and metrics {logs:.1e}  weights {weights:.1e}")
            worst = max(worst, logs, weights)
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        sys.exit(main(Path(sys.argv[1])))
    path, name = Path(sys.argv[1]), sys.argv[2]
    (scenario,) = [function for function in SCENARIOS if function.__name__ == path.name]
    run(scenario, path, None if name == "one" else int(name.removeprefix("zero")))

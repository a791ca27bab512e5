"""
What test_fsdp.py runs on one process, and on two that share every parameter out (FSDP2 of accelerate) with
`accelerate launch --config_file FILE --num_machines 1 --num_processes 2 fsdp_processes.py OUTPUT_DIR`.

accelerate passes over FSDP on a CPU, and asks the type of its state alone: where that says "several GPUs", it shards
over gloo as it does there.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from helpers.tiny_models import build_llama, build_tokenizer
from helpers.two_processes import Recorder, make_config, make_records


FSDP = {"accelerator_config": {"use_configured_state": True}}  # the rest is in the file


def lora(**kwargs):
    return LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, **kwargs)


def make_trainer(folder, model, args=None, **kwargs):
    args = {"num_negatives": 2, **(args or {}), **(FSDP if torch.distributed.is_initialized() else {})}
    data = Dataset.from_list(make_records(8))
    args = make_config(folder, args)
    return Recorder(model, args=args, train_dataset=data, processing_class=build_tokenizer(), **kwargs)


def whole(param):
    return (param.full_tensor() if isinstance(param, DTensor) else param).detach().clone()


def result(trainer, folder):
    """What was logged, and the weights in memory and as they are saved."""
    model = trainer.model
    if torch.distributed.is_initialized():
        assert isinstance(trainer.model_wrapped, FSDPModule)
        assert all(isinstance(param, DTensor) for param in model.parameters())
    logs = [
        {name: logs[name] for name in ("loss", "grad_norm")} for logs in trainer.state.log_history if "loss" in logs
    ]
    # FSDP wraps no module, so that the names stay
    weights = {name: whole(param) for name, param in model.named_parameters()}
    trainer.save_model(f"{folder}/saved")
    return {"logs": logs, "weights": weights}


def instance(folder):
    """All weights: the reference is a frozen copy."""
    trainer = make_trainer(folder, build_llama(len(build_tokenizer())))
    trainer.train()
    return result(trainer, folder)


def loaded(folder):
    """All weights: policy and reference are loaded from a folder, and resumed from half-way."""
    path = f"{folder}/base"
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        build_llama(len(build_tokenizer())).save_pretrained(path)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    args = {"save_strategy": "steps", "save_steps": 2, "model_init_kwargs": {"dtype": "float32"}}
    make_trainer(folder, path, args=args).train()
    trainer = make_trainer(folder, path, args=args)
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-2")
    return result(trainer, folder)


def new_adapter(folder):
    """The reference is the base model."""
    torch.manual_seed(0)
    trainer = make_trainer(folder, build_llama(len(build_tokenizer())), peft_config=lora())
    trainer.train()
    return result(trainer, folder)


def continued_adapter(folder):
    """The reference is a frozen copy of the adapter."""
    model = build_llama(len(build_tokenizer()))
    torch.manual_seed(0)
    trainer = make_trainer(folder, get_peft_model(model, lora(init_lora_weights=False)))
    trainer.train()
    return result(trainer, folder)


def other_initialisation(folder):
    """Its base is not the model without the adapter, which is copied as a whole."""
    torch.manual_seed(0)
    trainer = make_trainer(folder, build_llama(len(build_tokenizer())), peft_config=lora(init_lora_weights="pissa"))
    trainer.train()
    return result(trainer, folder)


def two_adapters(folder):
    """Not named "default", the second one active."""
    model = build_llama(len(build_tokenizer()))
    torch.manual_seed(0)
    model = get_peft_model(model, lora(init_lora_weights=False), adapter_name="first")
    model.add_adapter("second", lora(init_lora_weights=False))
    model.set_adapter("second")
    trainer = make_trainer(folder, model)
    trainer.train()
    return result(trainer, folder)


def precomputed(folder):
    """A reference whose log-probabilities are computed ahead of training."""
    trainer = make_trainer(folder, build_llama(len(build_tokenizer())), args={"precompute_ref_log_probs": True})
    trainer.train()
    return result(trainer, folder)


def padded_passes(folder):
    """Padded rows in passes of a row each, of which one process has more."""
    args = {"prefix_sharing": "false", "max_tokens_per_pass": 1, "num_negatives": None}
    trainer = make_trainer(folder, build_llama(len(build_tokenizer())), args=args)
    trainer.train()
    return result(trainer, folder)


SCENARIOS = (instance, loaded, new_adapter, continued_adapter, other_initialisation, two_adapters, precomputed)
SCENARIOS += (padded_passes,)


if __name__ == "__main__":
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    rank = int(os.environ["RANK"])
    for scenario in SCENARIOS:
        folder = Path(sys.argv[1]) / scenario.__name__
        torch.save(scenario(str(folder)), f"{folder}-{rank}.pt")
    torch.distributed.destroy_process_group()

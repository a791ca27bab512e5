"""
What is kept of a reference on disk: in checkpoints, to go on against the same one, and the key under which log-probabilities
that were computed ahead of training are found again.
"""

import hashlib
import json
import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from trl import DPOConfig

from ..files import write_text, writing
from .reference import InitialPolicy


logger = logging.getLogger(__name__)

REFERENCE_FILE = "reference_adapter.json"  # its SHA-256, and what the data were
WEIGHTS_FILE = "reference.safetensors"  # its values, where they are small, or move
SAMPLED_RECORDS = 50  # of each end of the data that are looked at
SAMPLE = 4096  # values of each tensor of a whole model that are looked at


class ReferenceFiles:
    """
    Writes the reference down in checkpoints, and sees to it that a run that goes on has the same.

    A frozen copy of an adapter, and a reference that `sync_ref_model` moves, are in each checkpoint, in
    `reference.safetensors`. Of a base model or a whole model, the checkpoint has the hash of evenly spaced values of each
    of its tensors alone: the script that goes on must begin with it again. Pushes to the Hub leave
    `reference.safetensors` behind, and the hash stays. Of sharded models, the adapter "ref" is saved by PEFT.

    Args:
        policy (`nn.Module`):
            Policy, before the first step.
        ref_model (`nn.Module`, *optional*):
            Reference, see `SoftmaxDPOTrainer.ref_model`.
        moves (`bool`):
            Whether it is synchronised with the policy.
        sharded (`bool`):
            Whether FSDP or DeepSpeed shard the models.
    """

    def __init__(self, policy: nn.Module, ref_model: nn.Module | None, moves: bool, sharded: bool) -> None:
        self.policy, self.ref_model, self.moves, self.sharded = policy, ref_model, moves, sharded
        self.sha256 = None if sharded else self._digest()

    def _digest(self) -> str:
        if isinstance(self.ref_model, InitialPolicy) and not self.ref_model.adapters_add_nothing:
            return _sha256(self.ref_model.values())
        if isinstance(self.ref_model, InitialPolicy):  # quantised weights are not the same on every device
            params = {name: param for name, param in self.policy.named_parameters() if not param.requires_grad}
        else:  # precomputed, the policy itself, as it is now
            params = dict((self.policy if self.ref_model is None else self.ref_model).named_parameters())
        return _sha256({name: _sample(param) for name, param in params.items() if param.is_floating_point()})

    def save(self, checkpoint: str | os.PathLike) -> None:
        """
        Write into a checkpoint which reference its run has.

        Args:
            checkpoint (`str` or `os.PathLike`):
                The folder.
        """
        folder = Path(checkpoint)
        if self.sharded:
            adapter = next((folder / "ref").glob("adapter_model.safetensors"), None)
            if adapter is not None:
                _write_sha256(folder, _sha256(load_file(adapter)))
            return
        if self.moves:
            self.sha256 = self._digest()
            with writing(folder / WEIGHTS_FILE) as path:
                save_model(self.ref_model, str(path))
        elif isinstance(self.ref_model, InitialPolicy) and not self.ref_model.adapters_add_nothing:
            values = {name: value.contiguous() for name, value in self.ref_model.values().items()}
            with writing(folder / WEIGHTS_FILE) as path:
                save_file(values, str(path))
        _write_sha256(folder, self.sha256)

    def resume(self, checkpoint: str | os.PathLike) -> None:
        """
        Take up the reference of a checkpoint, or check that the one at hand is the same.

        Args:
            checkpoint (`str` or `os.PathLike`):
                The folder.

        Raises:
            `ValueError`: If the run would go on against another one.
        """
        folder = Path(checkpoint)
        if self.sharded and self.moves:
            raise ValueError(
                f"Can't resume from {folder} with `sync_ref_model=True`: the reference has moved with the policy, and of "
                "sharded models it is not in the checkpoint. Start from the beginning."
            )
        has_ref_adapter = isinstance(self.policy, PeftModel) and "ref" in self.policy.peft_config
        if self.sharded and (not has_ref_adapter or next((folder / "ref").glob("adapter_model.*"), None)):
            return  # of the base, or loaded with the other adapter
        if not self.sharded and (folder / WEIGHTS_FILE).is_file():
            self._load(folder / WEIGHTS_FILE)
            return
        expected = self._read_sha256(folder)
        adapter = get_peft_model_state_dict(self.policy, adapter_name="ref") if self.sharded else None
        found = _sha256(adapter) if self.sharded else self.sha256
        if expected is not None and found != expected:
            raise ValueError(self._other_reference(folder, found, expected))

    def _load(self, path: Path) -> None:
        if self.moves:
            load_model(self.ref_model, str(path))
            return
        values = load_file(path)
        if not isinstance(self.ref_model, InitialPolicy) or values.keys() != set(self.ref_model.names):
            raise ValueError(
                f"Can't resume from {path.parent}: {path.name} holds the reference of a run in which other parameters were "
                "trained. Pass the model, the adapter and `ref_model` that the run began with."
            )
        for name, param in zip(self.ref_model.names, self.ref_model.frozen, strict=True):
            param.data.copy_(values[name])

    def _read_sha256(self, folder: Path) -> str | None:
        try:
            return json.loads((folder / REFERENCE_FILE).read_text(encoding="utf-8"))["sha256"]
        except FileNotFoundError:
            logger.warning(
                "The checkpoint %s holds neither the reference adapter nor its hash (%s). What training begins with here is "
                "taken as the reference: make sure that it is the one that the run began with.",
                *(folder, REFERENCE_FILE),
            )
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / REFERENCE_FILE} is damaged. Copy the checkpoint again.") from error

    def _other_reference(self, folder: Path, found: str, expected: str) -> str:
        hashes = f"here (sha256 {found[:12]}…) is not the one that the run began with ({expected[:12]}…)"
        if self.sharded or (isinstance(self.ref_model, InitialPolicy) and not self.ref_model.adapters_add_nothing):
            return (
                f"Can't resume from {folder}: it goes without the reference adapter, and the adapter that the model begins with "
                f"{hashes}, so the loss would be against another reference. Load the model with the adapter that the run "
                "began with, such as that of supervised fine-tuning, and not with one trained here; or resume from a "
                f"checkpoint on the machine of the run, which holds it in {WEIGHTS_FILE}."
            )
        return (
            f"Can't resume from {folder}: the reference {hashes}, so the loss would be against another one. It is the model "
            "as it was passed, or `ref_model`. Save a model that a script makes or trains, and start from the folder; "
            "pass the same `ref_model` and the same `dtype`."
        )


def data_facts(dataset: Dataset | IterableDataset, args: DPOConfig) -> dict[str, Any]:
    """
    What the order of training, and the negatives of a record, depend on.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Training data, tokenized. Of a stream nothing is read.
        args ([`~trl.DPOConfig`]):
            Configuration.

    Returns:
        `dict[str, Any]`: Facts by their names. That of the tokens is a hash of the first and the last records.
    """
    facts = {
        "num_negatives": getattr(args, "num_negatives", None),
        "seed": args.seed if args.data_seed is None else args.data_seed,
    }
    if isinstance(dataset, Dataset):
        ends = sorted({*range(min(SAMPLED_RECORDS, len(dataset))), *range(len(dataset))[-SAMPLED_RECORDS:]})
        facts |= {"records": len(dataset), "tokens": _hash_of_tokens(dataset.select(ends))}
    return facts


def write_data_facts(checkpoint: str | os.PathLike, facts: dict[str, Any]) -> None:
    """Put the facts beside the hash of the reference."""
    path = Path(checkpoint) / REFERENCE_FILE
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8")) | {"data": facts}
        write_text(path, json.dumps(content, indent=2) + "\n")


def warn_of_other_data(checkpoint: str | os.PathLike, facts: dict[str, Any]) -> None:
    """Say where a run goes on with other data, or other negatives, than it began with, of which batches are skipped."""
    try:
        before = json.loads((Path(checkpoint) / REFERENCE_FILE).read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # of another program, or damaged, which is an error elsewhere
    others = {name: (before[name], value) for name, value in facts.items() if name in before and before[name] != value}
    if others:
        changes = ", ".join(
            name if name == "tokens" else f"{name} ({old} before, {new} here)" for name, (old, new) in others.items()
        )
        logger.warning(
            "The run of %s began with other data: %s. It goes on with these, and the batches that it has taken are skipped in "
            "their order, which is another one. To train on new data begin a new run from the model that was saved.",
            *(checkpoint, changes),
        )


def cache_key(model: nn.Module, weights: str | None, args: DPOConfig, dataset: Dataset, largest_pool: int) -> str:
    """
    The key of precomputed log-probabilities: all that they depend on. TRL has the weights and the fingerprint of the
    dataset.

    Args:
        model (`nn.Module`):
            The reference, or the policy that it is made of, before the first step.
        weights (`str`, *optional*):
            Hash of its weights.
        args ([`~trl.DPOConfig`]):
            Configuration, of which precision and layout are read.
        dataset ([`~datasets.Dataset`]):
            Tokenized records.
        largest_pool (`int`):
            Rejected completions that there is a column for.

    Returns:
        `str`: A SHA-256 in hexadecimal.
    """
    config = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "use_cache"):
        config.pop(name, None)
    buffers = {name: buffer for name, buffer in model.named_buffers() if buffer is not None}  # rotary frequencies
    key = {
        "weights": weights,
        "buffers": _sha256(buffers),
        "config": config,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "attention": model.config._attn_implementation,
        "adapters": _adapters(model) if is_peft_model(model) else None,
        "precision": [args.bf16, args.fp16, args.tf32, str(model.dtype), args.device.type],
        "layout": [args.max_length, args.truncation_mode, args.ld_alpha, args.pad_to_multiple_of, largest_pool],
        "prefix_sharing": args.prefix_sharing,
        "tokens": _hash_of_tokens(dataset),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "trl", "trl-sdpo")},
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()


def _adapters(model: PeftModel) -> dict[str, object]:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    configs = {name: dict(sorted(config.to_dict().items())) for name, config in model.peft_config.items()}
    for config in configs.values():
        for name in ("base_model_name_or_path", "inference_mode", "peft_version"):
            config.pop(name, None)
        for name, value in config.items():
            config[name] = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
    return {
        "configs": configs,
        "active": [str(model.active_adapters), *sorted({str(layer.active_adapters) for layer in layers.values()})],
        "scaling": {name: getattr(layer, "scaling", None) for name, layer in layers.items()},
        "merged": sorted(name for name, layer in layers.items() if layer.merged),
        "switched off": sorted(name for name, layer in layers.items() if layer.disable_adapters),
    }


def _hash_of_tokens(dataset: Dataset) -> str:
    columns = [name for name in ("prompt_ids", "chosen_ids", "rejected_ids") if name in dataset.column_names]
    digest = hashlib.sha256()
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        digest.update(sink.getvalue())
    return digest.hexdigest()


def _write_sha256(folder: Path, sha256: str | None) -> None:
    write_text(folder / REFERENCE_FILE, json.dumps({"sha256": sha256}, indent=2) + "\n")


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    values = tensor.detach().flatten()
    return values[:: max(len(values) // SAMPLE, 1)]


def _sha256(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, whatever the order and the device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

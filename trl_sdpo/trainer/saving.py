"""What is saved is what was trained: the adapter that was active, and a word where its base is on no disk."""

import json
import os
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


ROWS = 8  # of each end of a matrix that are compared
QUANTIZED = 8  # matrices of a quantised model that are compared
# Initialisations that change the base in a way that loading the adapter does not repeat
NOT_REPEATED = ("pissa_niter", "corda", "lora_ga")
REMEDY = (
    "Save the base before training with `model.save_pretrained(FOLDER)` and start from `FOLDER`; or, after training, save "
    "the model as a whole with `trainer.model.merge_and_unload().save_pretrained(FOLDER)`."
)


def check_active_adapter(model: nn.Module | str) -> None:
    """
    Refuse a policy of several adapters at once, of which transformers saves and loads one, and one whose adapter takes no
    part in its forward pass, and so has no gradients.

    Args:
        model (`nn.Module` or `str`):
            Policy as it is passed.

    Raises:
        `ValueError`: If more than one adapter is active, or the one is switched off or merged. The message says how to
            change that.
    """
    if isinstance(model, PeftModel) and len(model.active_adapters) > 1:
        raise ValueError(
            f"The adapters {list(model.active_adapters)} are active at once, and a checkpoint holds one. Combine them with "
            "`model.add_weighted_adapter`, or merge all but one into the base, save that and load the last one on it."
        )
    layers = (
        [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
        if isinstance(model, PeftModel)
        else []
    )
    if any(layer.disable_adapters for layer in layers):
        raise ValueError(
            "The adapter of the model is switched off, so that training would change nothing. Call "
            "`model.base_model.enable_adapter_layers()`, or leave `with model.disable_adapter():`, before the trainer is built."
        )
    if any(layer.merged for layer in layers):
        raise ValueError(
            "The adapter of the model is merged into its base, where training cannot reach it. Call `model.unmerge_adapter()` to "
            "train it further, or `model.merge_and_unload()` and pass a new `peft_config`."
        )


def keep_trained_adapter(model: PeftModel, folder: str | os.PathLike) -> None:
    """
    Let a folder hold the adapter that is trained, where PEFT and transformers look for one.

    `save_pretrained` of PEFT writes all adapters of a model, "default" into the folder and the others below it, whichever
    is active; `PeftModel.from_pretrained` and `load_best_model_at_end` read the one in the folder.

    Args:
        model ([`~peft.PeftModel`]):
            Policy.
        folder (`str` or `os.PathLike`):
            Where it was saved. An adapter "ref", which TRL makes, stays.
    """
    folder, active = Path(folder), model.active_adapters[0]
    if active != "default":
        for path in (folder / active).glob("adapter_*"):
            path.replace(folder / path.name)
    for name in model.peft_config:
        if name not in ("default", "ref") or name == active != "default":
            remove_saved_adapter(folder, name)


def remove_saved_adapter(folder: str | os.PathLike, adapter_name: str) -> None:
    """Remove the files of an adapter beside those of "default": `save_pretrained` of PEFT writes all of a model."""
    subfolder = Path(folder) / adapter_name
    for path in subfolder.glob("adapter_*"):
        path.unlink()
    if subfolder.is_dir() and not any(subfolder.iterdir()):
        subfolder.rmdir()


def why_not_reloaded(model: nn.Module | str, init: str | bool | None = None) -> str | None:
    """
    Say why an adapter, loaded on the base that it names, would not give the model that is trained here.

    Args:
        model (`nn.Module` or `str`):
            The base of a new adapter, or the [`~peft.PeftModel`] that is continued, before training.
        init (`str` or `bool`, *optional*):
            `init_lora_weights` of a new adapter.

    Returns:
        `str` or `None`: The reason and what to do; `None` if all that was looked at is on the disk, or there is nothing to
        compare with.
    """
    inits = [init]
    if isinstance(model, PeftModel):
        inits = [getattr(config, "init_lora_weights", None) for config in model.peft_config.values()]
    if changing := [init for init in inits if isinstance(init, str) and init.startswith(NOT_REPEATED)]:
        return (
            f"The adapter is initialised with {changing[0]!r}, which changes the base in memory in a way that loading the adapter "
            "does not repeat: saved alone, it does not give the log-probabilities of the trained model. After training, save the "
            "model as a whole with `trainer.model.merge_and_unload().save_pretrained(FOLDER)`."
        )
    if isinstance(model, str):
        return None
    if isinstance(model, PeftModel) and any(init in ("pissa", "olora", "loftq") for init in inits):
        return None  # the base in memory is what loading makes of the one on the disk
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    path = getattr(base.config, "_name_or_path", "")
    if not path:
        return (
            "The base of the adapter was made in this process and is on no disk, so that what is saved cannot be loaded without "
            f"it. {REMEDY}"
        )
    name = _tensor_that_differs(base, path)
    if name is None:
        return None
    return (
        f"The base of the adapter in memory is not the one on the disk that its configuration names ({path}): `{name}` has "
        f"other values, as after a merge or training. Loaded on that base, the saved adapter would be another model. {REMEDY}"
    )


def _weight_files(path: str, commit: str | None) -> list[Path]:
    """The safetensors files of a model, in a folder or in the cache of the Hub; empty if there are none."""

    def find(name: str) -> Path | None:
        if Path(path).is_dir():
            return Path(path, name) if Path(path, name).is_file() else None
        found = try_to_load_from_cache(path, name, revision=commit)
        return Path(found) if isinstance(found, str) else None

    try:
        index = find(SAFE_WEIGHTS_INDEX_NAME)
        names = [SAFE_WEIGHTS_NAME]
        if index is not None:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [file for file in map(find, names) if file is not None]
    except ValueError:  # neither a folder nor the name of a repository
        return []


def _tensor_that_differs(base: nn.Module, path: str) -> str | None:
    params = {}
    for name, param in base.named_parameters():
        name = name.replace(".base_layer", "").replace(".original_module", "")
        params[name] = params[name.removeprefix(f"{base.base_model_prefix}.")] = param
    embeddings = base.get_input_embeddings()
    left = QUANTIZED
    for file in _weight_files(path, getattr(base.config, "_commit_hash", None)):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                param, saved = params.get(name), tensors.get_slice(name)
                if param is None or isinstance(param, torch.distributed.tensor.DTensor) or param.is_meta:
                    continue
                if not param.is_floating_point():
                    left -= 1
                    if left >= 0 and _quantized_differs(param, saved[:]):
                        return name
                elif list(saved.get_shape()) != list(param.shape):
                    continue  # tokens were added, whose embeddings PEFT saves with the adapter
                elif param is getattr(embeddings, "weight", None):  # of which a few rows may be others
                    if not torch.equal(saved[:].to(param.dtype), param.detach().cpu()):
                        return name
                elif not all(
                    torch.equal(saved[rows].to(param.dtype), param.detach()[rows].cpu())
                    for rows in (slice(None, ROWS), slice(-ROWS, None))
                    if len(param)
                ):
                    return name
    return None


def _quantized_differs(param: nn.Parameter, saved: torch.Tensor) -> bool:
    """Whether a weight that bitsandbytes has quantised is another than the saved one would give."""
    from bitsandbytes import functional

    state = getattr(param, "quant_state", None)
    if saved.dtype in (torch.uint8, torch.int8):
        found, expected = param.data.cpu(), saved
    elif state is not None:
        weight = saved.to(param.device, state.dtype)
        expected, _ = functional.quantize_4bit(weight, blocksize=state.blocksize, quant_type=state.quant_type)
        found = param.data
    else:
        expected, _, _ = functional.int8_vectorwise_quant(saved.to(param.device, torch.float16))
        found = param.data
    if found.numel() != expected.numel():
        return False  # packed in another way
    # a few values may be rounded otherwise on another device
    return (found.flatten() != expected.flatten()).float().mean().item() > 1e-3

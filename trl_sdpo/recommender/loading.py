"""Models and adapters from a directory or the Hub."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME

from ..recsys.records.recommender_files import find_file


def load_model_and_tokenizer(
    model: str | Path,
    *,
    base_model: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    hub_kwargs: dict[str, Any] | None = None,
    **model_kwargs,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Load a causal language model, or a PEFT adapter with its base, for inference.

    Args:
        model (`str` or `Path`):
            Directory or Hub id of a model or an adapter.
        base_model (`str` or `Path`, *optional*):
            The model under an adapter. By default what `adapter_config.json` says.
        device (`str` or `torch.device`, *optional*):
            By default the accelerator of the machine, else the CPU.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            Type of the weights.
        hub_kwargs (`dict`, *optional*):
            `revision`, `token` and `cache_dir` of `model`.
        **model_kwargs:
            Passed to `AutoModelForCausalLM.from_pretrained`.

    Returns:
        `tuple`: The model, or [`~peft.PeftModel`], and its tokenizer.

    Raises:
        OSError: there is no such model, or the base of the adapter cannot be loaded.
        ValueError: device or dtype is none, or not of this machine; there is a base model for something that is no adapter, or the adapter was trained on added tokens and
            does not hold all of their rows.
    """
    model, hub_kwargs = str(model), hub_kwargs or {}
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    _check_place(device, dtype)
    model_kwargs = {"dtype": dtype, "device_map": {"": device}, **model_kwargs}
    adapter = find_file(model, "adapter_config.json", **hub_kwargs)
    if adapter is None:
        if base_model is not None:
            raise ValueError(f"{model}: is no adapter, so it has no base model. Leave base_model out.")
        return (
            AutoModelForCausalLM.from_pretrained(model, **hub_kwargs, **model_kwargs).eval(),
            AutoTokenizer.from_pretrained(model, **hub_kwargs),
        )
    from peft import PeftModel

    base = str(base_model or json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
    # what comes from the Hub for both; a revision is the adapter's
    shared = {name: value for name, value in hub_kwargs.items() if name != "revision"}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(base, **shared, **model_kwargs)
    except OSError as error:
        raise OSError(
            f"{model}: is an adapter of {base!r}, which cannot be loaded ({error}). Pass the model as `base_model`."
        ) from error
    add_saved_rows(loaded, model, **hub_kwargs)
    own_tokenizer = find_file(model, "tokenizer_config.json", **hub_kwargs) is not None
    place, options = (model, hub_kwargs) if own_tokenizer else (base, shared)
    tokenizer = AutoTokenizer.from_pretrained(place, **options)
    return PeftModel.from_pretrained(loaded, model, **hub_kwargs).eval(), tokenizer


def add_saved_rows(base: PreTrainedModel, adapter: str | os.PathLike, **hub_kwargs) -> None:
    """
    Give a base the rows of tokens that were added to it in training, whose embeddings lie with the adapter.

    Args:
        base ([`~transformers.PreTrainedModel`]):
            The model under the adapter, as it is on the disk. It is changed in place.
        adapter (`str` or `Path`):
            Directory or Hub id of the adapter.
        **hub_kwargs:
            `revision`, `token` and `cache_dir`.

    Raises:
        `ValueError`: If the adapter was trained on added tokens and does not hold all of their rows.
    """
    adapter_config = find_file(adapter, "adapter_config.json", **hub_kwargs)
    weights = find_file(adapter, ADAPTER_SAFE_WEIGHTS_NAME, **hub_kwargs)
    names = {
        name: module
        for name, module in base.named_modules()
        if module is base.get_input_embeddings() or module is base.get_output_embeddings()
    }
    size = base.get_input_embeddings().weight.shape[0]
    saved: dict[str, int] = {}
    if weights is not None:
        with safe_open(weights, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a dict
                name = next((name for name in names if f"{name}." in key and key.endswith(".weight")), None)
                if name is not None and "lora_" not in key:
                    saved[name] = tensors.get_slice(key).get_shape()[0]
    indices = json.loads(adapter_config.read_text(encoding="utf-8")).get("trainable_token_indices") or []
    lists = indices.values() if isinstance(indices, dict) else [indices]
    rows = max([size, *saved.values(), *(index + 1 for some in lists for index in some)])
    if rows == size:
        return
    tied = base.get_input_embeddings().weight is getattr(base.get_output_embeddings(), "weight", None)
    if not tied and (missing := sorted(name for name in names if saved.get(name) != rows)) and not indices:
        raise ValueError(
            f"{adapter_config.parent}: was trained with {rows - size} tokens more than its base has, and the rows of "
            f"{missing} are not saved with it. Save the base with the added tokens, and pass it as `base_model`."
        )
    if indices and not tied:
        raise ValueError(
            f"{adapter_config.parent}: trains tokens of its own (`trainable_token_indices`), of which the LM head of the base "
            "has no rows. Save the base with the added tokens, and pass it as `base_model`."
        )
    base.resize_token_embeddings(rows, mean_resizing=False)


def _check_place(device: str | torch.device, dtype: str | torch.dtype) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(
            f"device={str(device)!r} is no device. Pass one such as 'cpu', 'cuda', 'cuda:1' or 'mps'."
        ) from None
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind not in ("cpu", "meta", None if here is None else here.type):
        raise ValueError(
            f"device={str(device)!r}: this machine has {'no accelerator' if here is None else repr(here.type)}. Leave it out "
            "for the best that there is."
        )
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"dtype={dtype!r} is no type of torch. Pass 'auto', 'float32', 'bfloat16' or 'float16'.")

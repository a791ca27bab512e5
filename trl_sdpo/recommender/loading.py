"""Models and adapters from a directory or the Hub."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

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
        ValueError: there is a base model for something that is no adapter.
    """
    model, hub_kwargs = str(model), hub_kwargs or {}
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
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
    own_tokenizer = find_file(model, "tokenizer_config.json", **hub_kwargs) is not None
    place, options = (model, hub_kwargs) if own_tokenizer else (base, shared)
    tokenizer = AutoTokenizer.from_pretrained(place, **options)
    resize_for_adapter(loaded, model, **hub_kwargs)
    return PeftModel.from_pretrained(loaded, model, **hub_kwargs).eval(), tokenizer


def resize_for_adapter(base: PreTrainedModel, adapter: str | Path, **hub_kwargs) -> None:
    """
    Give a base as many embeddings as an adapter has, which holds them where tokens were added before it was trained.

    Args:
        base ([`~transformers.PreTrainedModel`]):
            The base as it was loaded. It is changed in place.
        adapter (`str` or `Path`):
            Directory or Hub id of the adapter.
        **hub_kwargs:
            `revision`, `token` and `cache_dir` of the adapter.
    """
    file = find_file(adapter, "adapter_model.safetensors", **hub_kwargs)
    if file is None:
        return
    embeddings = base.get_input_embeddings()
    heads = [name for name, module in base.named_modules() if module in (embeddings, base.get_output_embeddings())]
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (no mapping)
            path = name.removeprefix("base_model.model.").removesuffix(".weight")
            rows = tensors.get_slice(name).get_shape()[0]
            if path.removesuffix(".original_module") in heads and rows != embeddings.weight.size(0):
                # the new rows are read from the adapter
                base.resize_token_embeddings(rows, mean_resizing=False)
                return

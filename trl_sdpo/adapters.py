"""Adapters and quantised bases: what TRL, PEFT and bitsandbytes leave open for a policy beside its reference."""

import os
from pathlib import Path

import torch
from peft import PeftModel


def remove_saved_adapter(folder: str | os.PathLike, adapter_name: str) -> None:
    """Remove the files of an adapter beside those of "default": `save_pretrained` of PEFT writes all of a model."""
    subfolder = Path(folder) / adapter_name
    for path in subfolder.glob("adapter_*"):
        path.unlink()
    if subfolder.is_dir() and not any(subfolder.iterdir()):
        subfolder.rmdir()


def complete_reference_adapter(model: PeftModel) -> None:
    """
    Copy to the adapter "ref" what [`~trl.DPOTrainer`] does not.

    It copies the parameters with ".default." in their names. Those of IA3, of LoRA on embeddings and of trainable
    tokens end in ".default": without them the reference is the base model, or a mixture of it and the adapter.

    Args:
        model ([`~peft.PeftModel`]):
            Policy with its adapter "default", before the first step. Nothing is done where it has no adapter "ref".
    """
    if "ref" not in model.peft_config:
        return
    for name, param in model.named_parameters():
        if name.endswith(".default"):
            model.get_parameter(name.removesuffix("default") + "ref").data.copy_(param.data)


def keep_4bit_layers_differentiable(model: torch.nn.Module) -> None:
    """
    Keep the 4-bit layers of bitsandbytes in the format that they train in.

    On a CPU with AVX512-BF16, such a layer repacks its weights in its first forward pass in evaluation mode, and from
    then on has no gradient with respect to its input, also in training mode: an adapter below it gets wrong gradients.

    Args:
        model (`torch.nn.Module`):
            Policy or reference, quantised or not.

    Raises:
        `ValueError`: If a layer was repacked already.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
            raise ValueError(
                f"The 4-bit layer `{name}` was used in evaluation mode on the CPU before training, for which "
                "bitsandbytes repacks its weights into a format without gradients. Load the model anew for training."
            )
        module.support_avx512bf16_for_cpu = False


def raise_adapter_to_float32(model: PeftModel) -> None:
    """
    Let the adapter of a quantised model train in float32.

    TRL rounds it to bfloat16, whose steps are 2^-15 from 2^-8 on: with the learning rate of 1e-5 of the S-DPO paper, each
    weight of at least 0.004 is rounded back to where it was, three quarters of the A matrices of LoRA on 4,096 features.
    The published code of S-DPO has the adapter in float32, too.

    Args:
        model ([`~peft.PeftModel`]):
            Policy, before the optimizer is made. Where it has an adapter "ref", a copy of "default" from before the
            rounding, the values are taken from there.
    """
    for name, param in model.named_parameters():
        if not param.requires_grad or param.dtype != torch.bfloat16:
            continue
        param.data = param.data.float()
        if "ref" in model.peft_config and ".default." in name:
            param.data.copy_(model.get_parameter(name.replace(".default.", ".ref.")).data)

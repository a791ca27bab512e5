"""Adapters and quantised bases: what TRL, PEFT and bitsandbytes leave open for a policy beside its reference."""

import torch
from peft import PeftModel


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
            Policy, before the optimizer is made.
    """
    for param in model.parameters():
        if param.requires_grad and param.dtype == torch.bfloat16:
            param.data = param.data.float()


class AdapterPrecision:
    """
    Keeps what an adapter on a quantised base is worth in the precision that it is passed in, which TRL rounds to
    bfloat16: the policy is the one that was passed, and small steps reach its weights, see
    [`raise_adapter_to_float32`].

    Args:
        model (`str` or `torch.nn.Module`):
            Policy, before it is handed to [`~trl.DPOTrainer`].
    """

    def __init__(self, model: "str | torch.nn.Module") -> None:
        self.passed = []
        if not isinstance(model, str) and _is_quantized(model):
            self.passed = [(param, param.data) for param in model.parameters() if param.requires_grad]

    def restore(self, model: torch.nn.Module) -> None:
        """
        Undo the rounding.

        Args:
            model (`torch.nn.Module`):
                Policy, on its device, before the optimizer is made.
        """
        if not _is_quantized(model):
            return
        for param, values in self.passed:
            param.data = values.to(param.device)
        if not self.passed:  # of the trainer's making, and float32 before the rounding
            raise_adapter_to_float32(model)
        self.passed = []


def _is_quantized(model: torch.nn.Module) -> bool:
    return getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)

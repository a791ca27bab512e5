"""What the machine decides: the arguments of training without an accelerator, and memory that is kept."""

import ctypes
import platform
from typing import Any


OLD_CHECKPOINTING = "gradient_checkpointing"


def machine_defaults() -> dict[str, Any]:
    """
    The arguments of a trainer that a machine without an accelerator needs, and nothing for one with an accelerator.

    TRL's own defaults, bfloat16 and gradient checkpointing (`activation_checkpointing` from transformers 5.23 on, where
    the old name is deprecated), are for a GPU.

    Returns:
        `dict`: Keyword arguments of [`~transformers.TrainingArguments`].

    Example:
        ```python
        from trl_sdpo import SoftmaxDPOConfig
        from trl_sdpo.pipeline import machine_defaults

        args = SoftmaxDPOConfig(output_dir="outputs/mine", num_negatives=3, **machine_defaults())
        ```
    """
    import torch

    checkpointing = checkpointing_name()
    if torch.accelerator.is_available():
        # what TRL's default is, by the name that is not deprecated
        return {} if checkpointing == OLD_CHECKPOINTING else {checkpointing: True}
    return {"use_cpu": True, "bf16": False, checkpointing: False, "dataloader_pin_memory": False}


def checkpointing_name() -> str:
    """What the installed `transformers` calls gradient checkpointing in its arguments of training."""
    from transformers import TrainingArguments

    fields = TrainingArguments.__dataclass_fields__
    return next(name for name in ("activation_checkpointing", OLD_CHECKPOINTING) if name in fields)


def keep_freed_memory() -> None:
    """
    Let glibc keep the memory of freed tensors, for the whole process. By default it hands large blocks back to the system
    at once, and each training step on a CPU pays for getting them again, page by page: about a quarter of its time for a
    model of a few million parameters. Elsewhere nothing is changed.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)

"""Stage `tests`: every layout, attention, precision and adapter gives the losses of padded rows under eager attention."""

import importlib.util
import os
from collections.abc import Iterator
from functools import partial

import torch
from cells import Cells
from models import SIZES, losses, make_model, make_records, make_trainer


# Of a loss of about ln 8, after three steps; bfloat16 keeps 8 bits
TOLERANCES = {"float32": 2e-4, "bfloat16": 3e-2}


def cases(rehearse: bool) -> Iterator[tuple[str, dict]]:
    """Names and options of what is compared with padded rows."""
    if rehearse:
        yield "bfloat16 LoRA sdpa", {"dtype": "bfloat16", "attention": "sdpa"}
    attentions = ("sdpa",) if rehearse else ("sdpa", "eager", "flex_attention")
    for dtype in ("float32",) if rehearse else TOLERANCES:
        for adapter in (True, False):
            for attention in attentions:
                yield f"{dtype} {'LoRA' if adapter else 'all weights'} {attention}", {
                    "dtype": dtype, "adapter": adapter, "attention": attention,
                }  # fmt: skip
        if not rehearse:  # the compiler is the card's
            yield f"{dtype} compiled", {"dtype": dtype, "options": {"torch_compile": True}}
        yield f"{dtype} mixture of experts", {"dtype": dtype, "experts": True}
        yield f"{dtype} gradient checkpointing", {"dtype": dtype, "options": {"gradient_checkpointing": True}}


def run(cells: Cells, size: str, device: str, rehearse: bool) -> None:
    """Measure the largest difference of a loss, in nats, for each case."""
    records = make_records(8, 40 if rehearse else 200, 7, SIZES[size][-1])
    for name, case in cases(rehearse):
        cells.measure(name, partial(_compare, case, size, device, records), needs=60)
    if importlib.util.find_spec("bitsandbytes"):
        cells.measure("QLoRA, NF4", lambda: _quantised(size, device, records), needs=60)
    cells.measure("one process under NCCL", lambda: _one_process(size, device, records), needs=60)


def _losses(case: dict, size: str, device: str, records, sharing: str, attention: str | None = None) -> list[float]:
    model = make_model(
        size, case["dtype"], device, attention or case.get("attention", "sdpa"), experts=case.get("experts", False)
    )
    options = {} if sharing == "false" else case.get("options", {})
    trainer = make_trainer(
        model, records, device, adapter=case.get("adapter", True), prefix_sharing=sharing, **options
    )
    return losses(trainer)


def _compare(case: dict, size: str, device: str, records) -> dict:
    ours = _losses(case, size, device, records, "true")
    padded = _losses(case, size, device, records, "false", "eager")
    return _verdict(ours, padded, TOLERANCES[case["dtype"]])


def _verdict(ours: list[float], other: list[float], tolerance: float) -> dict:
    difference = max(abs(one - two) for one, two in zip(ours, other, strict=True))
    return {"passed": difference <= tolerance, "difference": difference, "tolerance": tolerance, "losses": ours}


def _quantised(size: str, device: str, records) -> dict:
    import tempfile

    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = tempfile.mkdtemp()
    make_model(size, "bfloat16", device).save_pretrained(folder)
    found = {}
    for sharing in ("true", "false"):
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, device_map={"": device}, dtype=torch.bfloat16
        )
        found[sharing] = losses(make_trainer(model, records, device, prefix_sharing=sharing))
    return _verdict(found["true"], found["false"], TOLERANCES["bfloat16"])


def _one_process(size: str, device: str, records) -> dict:
    """The losses within a process group are those without."""
    import torch.distributed as dist

    case = {"dtype": "float32"}
    alone = _losses(case, size, device, records, "true")
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
    }
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        return _verdict(_losses(case, size, device, records, "true"), alone, 1e-6)
    finally:
        dist.destroy_process_group()

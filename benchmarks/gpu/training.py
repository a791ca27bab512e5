"""Stage `train`: a pretrained model on records of MovieLens, SFT, then S-DPO, DPO and more SFT, ranked after each."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cells, TimeIsUpError
from datasets import Dataset, DatasetDict, load_from_disk
from models import lora
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from benchmarks.study.data import load_interactions
from benchmarks.study.plan import HISTORY_SIZE, NUM_CANDIDATES, SEED, SOURCES
from trl_sdpo import SoftmaxDPOConfig, SoftmaxDPOTrainer, to_prompt_completion
from trl_sdpo.recsys import build_preference_dataset, completion_log_probs


SYSTEMS = {"more sft": None, "dpo": 1, "s-dpo K = 3": 3, "s-dpo K = 15": 15}


def run(cells: Cells, model: str, data: str | None, out: Path, device: str, rehearse: bool, seeds: int = 3) -> None:
    """Each training is a cell, whose adapter is kept in the folder, and each ranking of it another."""
    records = _records(data, out, rehearse)
    test, ranked = records["test"], {}
    for seed in range(1 if rehearse else seeds):
        sft = out / f"sft-{seed}"
        cells.measure(
            f"seed {seed}, sft, training",
            partial(_sft, model, model, records, sft, seed, device, rehearse),
            needs=240,
        )
        for system, negatives in SYSTEMS.items():
            folder = out / f"{system.replace(' ', '').replace('=', '')}-{seed}"

            if negatives is None:
                train = partial(_sft, model, sft, records, folder, seed + 100, device, rehearse)
            else:
                train = partial(_preferences, model, sft, records, folder, negatives, seed, device, rehearse)
            cells.measure(f"seed {seed}, {system}, training", train, needs=240)
            ranked[f"seed {seed}, {system}"] = folder
        ranked[f"seed {seed}, sft"] = sft
    for name, folder in {"base": None, **ranked}.items():
        cells.measure(f"{name}, ranking", partial(_rank, model, folder, test, device), needs=90)


def _records(data: str | None, out: Path, rehearse: bool) -> DatasetDict:
    """The records of `benchmarks/study` with attributes, the same for all seeds; invented ones for the rehearsal."""
    path = out / "records"
    if path.is_dir():
        return load_from_disk(path)
    if rehearse:
        titles = [f" Film {number}\n" for number in range(8)]
        rows = [
            {"prompt": "Film 1\nFilm 2\n", "chosen": titles[n % 8], "rejected": [titles[(n + k) % 8] for k in range(1, 4)], "user_id": n % 3}
            for n in range(16)
        ]  # fmt: skip
        records = DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:6]))
    else:
        if data is None:
            raise ValueError("--data: pass the folder or zip of ml-latest-small.")
        source = SOURCES["ml-latest-small"]
        shown = {"item_format": source.item_format, "completion_format": source.item_format}
        sizes = {"history_size": HISTORY_SIZE, "num_candidates": NUM_CANDIDATES}
        sizes |= {"max_train_records": 20_000, "max_test_records": 2_000}
        records, _ = build_preference_dataset(
            load_interactions(source, Path(data)), seed=SEED, **sizes, **source.options, **shown
        )
    keep = ["prompt", "chosen", "rejected", "user_id"]
    records = DatasetDict({name: records[name].select_columns(keep) for name in ("train", "test")})
    records.save_to_disk(path)
    return records


def _load(model: str, device: str) -> tuple[Any, Any]:
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device), AutoTokenizer.from_pretrained(model)


def _arguments(folder: Path, seed: int, device: str, rehearse: bool) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "seed": seed, "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
        "lr_scheduler_type": "cosine", "warmup_steps": 0 if rehearse else 20, "bf16": device == "cuda",
        "use_cpu": device == "cpu", "gradient_checkpointing": False, "logging_steps": 50,
        "per_device_train_batch_size": 4 if rehearse else 32,
    }  # fmt: skip


def _sft(
    model: str, start: str | Path, records: DatasetDict, folder: Path, seed: int, device: str, rehearse: bool
) -> dict:
    loaded, tokenizer = _load(model, device)
    if str(start) != model:
        loaded = PeftModel.from_pretrained(loaded, start, is_trainable=True)
    rows = to_prompt_completion(records["train"])
    steps = 2 if rehearse else (300 if str(start) == model else 100)
    config = SFTConfig(**_arguments(folder, seed, device, rehearse), max_steps=steps, learning_rate=2e-4)
    trainer = SFTTrainer(
        model=loaded, args=config, train_dataset=rows, processing_class=tokenizer,
        peft_config=lora() if str(start) == model else None,
    )  # fmt: skip
    return _trained(trainer, folder)


def _preferences(
    model: str, start: Path, records: DatasetDict, folder: Path, negatives: int, seed: int, device: str, rehearse: bool
) -> dict:
    loaded, tokenizer = _load(model, device)
    loaded = PeftModel.from_pretrained(loaded, start, is_trainable=True)
    config = SoftmaxDPOConfig(
        **_arguments(folder, seed, device, rehearse), max_steps=2 if rehearse else 100, learning_rate=2e-5, beta=1.0,
        num_negatives=negatives,
    )  # fmt: skip
    trainer = SoftmaxDPOTrainer(model=loaded, args=config, train_dataset=records["train"], processing_class=tokenizer)
    return _trained(trainer, folder)


def _trained(trainer: Any, folder: Path) -> dict:
    output = trainer.train()
    trainer.save_model(str(folder))
    result = {"loss": output.training_loss, "steps": output.global_step, "seconds": output.metrics["train_runtime"]}
    return result


def _rank(model: str, folder: Path | None, test: Dataset, device: str) -> dict:
    """hr@1 over records and over users, with an interval that resamples users."""
    if folder is not None and not folder.is_dir():
        raise TimeIsUpError(3)
    loaded, tokenizer = _load(model, device)
    if folder is not None:
        loaded = PeftModel.from_pretrained(loaded, folder)
    scores = completion_log_probs(loaded.eval(), test, tokenizer, batch_size=64, desc=None)
    hits = np.array([float((row[1:] < row[0]).all()) for row in scores])
    users, codes = np.unique(np.array(test["user_id"]).astype(str), return_inverse=True)
    sums, counts = np.bincount(codes, hits), np.bincount(codes)
    draws = np.random.default_rng(0).integers(len(users), size=(2000, len(users)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "hr@1": float(hits.mean()),
        "interval": [float(low), float(high)],
        "by_user": float((sums / counts).mean()),
        "records": len(hits),
        "users": len(users),
    }

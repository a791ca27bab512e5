"""Measured cells that are kept as they come, and what they were measured on."""

import gc
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


LIBRARIES = ("torch", "triton", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "trl-sdpo")


class TimeIsUpError(SystemExit):
    """The minutes of this call are spent. What is measured is kept, and the same command goes on."""


class Cells:
    """
    Results of a stage by their names, in a JSON file that is written after each.

    Args:
        path (`Path`):
            The file. Cells that are in it are not measured again.
        deadline (`float`):
            Of `time.monotonic()`: no cell is begun after it.
    """

    def __init__(self, path: Path, deadline: float) -> None:
        self.path, self.deadline = path, deadline
        self.results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def measure(self, name: str, function: Callable[[], dict], needs: float = 20.0) -> None:
        """Measure a cell unless it is there; an error is its result. `needs` are the seconds that it may take."""
        if name in self.results:
            return
        if time.monotonic() + needs > self.deadline:
            raise TimeIsUpError(3)
        started = time.monotonic()
        try:
            result = function()
        except Exception as error:  # the half hour goes on with the next cell
            result = {"error": f"{type(error).__name__}: {error}"[:1000]}
        gc.collect()  # the cell's models
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.results[name] = {**result, "took": round(time.monotonic() - started, 2)}
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.results, indent=1) + "\n")
        os.replace(temporary, self.path)
        print(f"{self.path.stem}: {name}: {self.results[name]}", flush=True)


def surroundings(device: str) -> dict:
    """The card, and the versions of all libraries, whichever were carried and whichever were there."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    facts = {"versions": versions, "python": platform.python_version(), "device": platform.processor() or "cpu"}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        facts |= {"device": card.name, "memory_gib": round(card.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return facts


def timed(step: Callable[[], Any], repeats: int, device: str) -> dict:
    """Median, least and most seconds of a step, and the peak of memory above what was held, after one for the warm-up."""
    step()
    wait(device)
    before = 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        wait(device)
        seconds.append(time.perf_counter() - started)
    seconds.sort()
    result = {"seconds": seconds[len(seconds) // 2], "least": seconds[0], "most": seconds[-1]}
    if device == "cuda":
        result["peak_mib"] = round((torch.cuda.max_memory_allocated() - before) / 2**20)
    return result


def wait(device: str) -> None:
    """Until the card has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()

"""Training on a terminal: what it will take, one line of progress, and one table at the end."""

import logging
import sys
import time
from collections.abc import Mapping

from datasets import Dataset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from .._progress import SECONDS_BETWEEN_LINES, duration
from ..hub.training_facts import pool_sizes
from ..recsys.metrics.ranking import chance_metrics


logger = logging.getLogger(__name__)


class ProgressLine(TrainerCallback):
    """
    The progress of training in one line, which is written over on a terminal, and in a file once a minute.

    Args:
        num_records (`int`, *optional*):
            Training records.
    """

    def __init__(self, num_records: int | None = None) -> None:
        self._records, self._first, self._said, self._width = num_records, 0, 0.0, 0
        self._logs: dict = {}
        self._on_terminal = sys.stderr.isatty()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self._start = self._said = time.monotonic()
        self._first = state.global_step
        if not state.is_world_process_zero:
            return
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps = state.max_steps - self._first
        on = "" if self._records is None else f" on {self._records:,} records"
        begun = f", from step {self._first:,}" if self._first else ""
        logger.info(f"Training{on}: {_count(steps, 'step')} of {_count(batch, 'record')}{begun}.")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict, **kwargs
    ) -> None:
        self._logs |= {name: value for name, value in logs.items() if isinstance(value, int | float)}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        if self._on_terminal:
            self._write(self._line(state))
        elif time.monotonic() - self._said > SECONDS_BETWEEN_LINES or state.global_step == self._first + 1:
            self._said = time.monotonic()
            logger.info(self._line(state))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        if self._on_terminal:
            self._write("")
        steps, seconds = state.global_step - self._first, time.monotonic() - self._start
        loss = f", training loss {self._logs['train_loss']:.3f}" if "train_loss" in self._logs else ""
        logger.info(f"Trained {_count(steps, 'step')} in {duration(seconds)}{loss}.")

    def _line(self, state: TrainerState) -> str:
        done = state.global_step - self._first
        pace = (time.monotonic() - self._start) / max(done, 1)
        parts = [f"step {state.global_step:,} of {state.max_steps:,}"]
        parts += [f"loss {self._logs['loss']:.3f}"] if "loss" in self._logs else []
        parts += [f"{pace:.2g} s a step", f"{duration(pace * (state.max_steps - state.global_step))} left"]
        return ", ".join(parts)

    def _write(self, line: str) -> None:
        sys.stderr.write(f"\r{line.ljust(self._width)}{'' if line else chr(13)}")
        sys.stderr.flush()
        self._width = len(line)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def show_progress(trainer: Trainer) -> None:
    """Put [`ProgressLine`] in the place of the bars and dicts of `transformers`."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    dataset = trainer.train_dataset
    trainer.add_callback(ProgressLine(len(dataset) if isinstance(dataset, Dataset) else None))


def evaluation_table(metrics: Mapping[str, float], dataset: Dataset | None) -> list[str]:
    """
    The metrics of an evaluation in words: the loss, and those of ranking each beside chance.

    Args:
        metrics (`Mapping[str, float]`):
            Of [`~transformers.Trainer.evaluate`].
        dataset ([`~datasets.Dataset`], *optional*):
            What was evaluated, which knows how many candidates there are.

    Returns:
        `list[str]`: Lines.
    """
    pools = pool_sizes(dataset)
    loss = metrics.get("eval_loss")
    lines = [] if loss is None else [f"Evaluation: loss {loss:.3f}."]
    ranks = [name for name in metrics if name.startswith(("eval_hr@", "eval_ndcg@", "eval_mrr"))]
    if pools is None or not ranks or pools[0] != pools[1]:
        return lines + [f"{name.removeprefix('eval_'):10} {metrics[name]:.3f}" for name in ranks]
    size = pools[1] + 1
    ks = tuple(int(name.partition("@")[2]) for name in ranks if name.startswith("eval_hr@"))
    chance = chance_metrics(size, ks=ks)
    lines = [
        f"Evaluation on {len(dataset):,} records of {size} candidates{'' if loss is None else f', loss {loss:.3f}'}:"
    ]
    lines.append(f"{'':10} {'by likelihood':>14} {'by reward':>10} {'chance':>7}")
    for name in ranks:
        short = name.removeprefix("eval_")
        k = int(short.partition("@")[2] or 1)
        if k >= size:  # all of the list
            continue
        reward = metrics.get(f"eval_reward_{short}")
        lines.append(
            f"{short:10} {metrics[name]:14.3f} {'' if reward is None else f'{reward:.3f}':>10} {chance[short]:7.3f}"
        )
    return lines

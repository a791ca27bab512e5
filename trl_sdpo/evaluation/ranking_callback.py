"""Callbacks for the trainers of TRL."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import is_deepspeed_zero3_enabled

from ..data_utils import is_multi_preference, readable_records
from ..recsys.metrics.ranking import ranking_metrics, ranks
from ..scoring.generation import generate_answers, generation_metrics
from ..scoring.log_probs import completion_log_probs
from ..trainer.adapters import keep_4bit_layers_differentiable


PROTOCOLS = ("ranking", "generation")
# What is logged, by the protocol
_METRICS = {"ranking": ("hr@1", "hr@10", "ndcg@10", "mrr", "n"), "generation": ("hr@1", "valid_ratio", "n")}


def _check(trainer: Trainer, dataset: Any, protocol: str) -> None:
    """Refuse what the callback cannot rank."""
    if not isinstance(dataset, Dataset) or not len(dataset):
        raise ValueError(
            f"RankingCallback needs a dataset with records, got {type(dataset).__name__}. Pass `dataset`: one of a "
            "dict of evaluation datasets, or the first records of a stream."
        )
    if not is_multi_preference(dataset[0], dataset.features):
        raise ValueError(
            f"The records of RankingCallback have the columns {dataset.column_names} and no list of rejected "
            "completions to rank. Pass multi-preference records."
        )
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r} is none of {PROTOCOLS}. Pass one of them.")
    if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
        raise ValueError(
            "RankingCallback cannot ask a model whose weights are spread over processes (FSDP, DeepSpeed ZeRO-3). "
            "Pass the records as `eval_dataset`: SoftmaxDPOTrainer ranks them in every evaluation."
        )


class RankingCallback(TrainerCallback):
    """
    Logs how a model recommends while it is being trained: before the first step, every few steps and after the last,
    on a fixed sample of records.

    What is logged goes where the trainer logs to. With `protocol="ranking"` the completions of a record are ranked by
    their likelihood: `eval_sample_hr@1`, `eval_sample_hr@10`, `eval_sample_ndcg@10` and `eval_sample_mrr`. With
    `protocol="generation"` the model answers the prompts: `eval_sample_hr@1` and `eval_sample_valid_ratio`, see
    [`~recsys.generation.generation_metrics`]. Both log the ends of the 95% bootstrap interval of HR@1,
    `eval_sample_hr@1_low` and `eval_sample_hr@1_high`, and `eval_sample_n`.

    They may choose the best checkpoint: with `metric_for_best_model="eval_sample_hr@1"` every evaluation of the trainer
    measures the sample, and returns its metrics with its own.

    Training goes on as it would have without: weights, losses and random states are the same to the bit. Several
    processes share the sample out. It works with any trainer of TRL, such as [`~trl.SFTTrainer`] on the same records.

    Args:
        trainer ([`~transformers.Trainer`]):
            Trainer to which the callback will be attached.
        dataset ([`~datasets.Dataset`], *optional*):
            Multi-preference records, standard, conversational or tokenized. If `None`, the evaluation dataset of the
            trainer.
        every_n_steps (`int`, *optional*):
            Optimizer steps between two measurements. If `None`, `eval_steps` of the trainer.
        num_records (`int`, *optional*, defaults to `200`):
            Size of the sample. `None` takes all.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sample and of the bootstrap.
        protocol (`str`, *optional*, defaults to `"ranking"`):
            `"ranking"` or `"generation"`.
        batch_size (`int`, *optional*):
            Number of records in a batch. If `None`, the trainer's `per_device_eval_batch_size`.
        name (`str`, *optional*, defaults to `"sample"`):
            What keys begin with, behind `eval_`.

    Raises:
        `ValueError`: If there is no dataset, it holds no multi-preference records, a number is below 1, the protocol is
            unknown, or the weights are spread over processes (FSDP, DeepSpeed ZeRO-3), where one process alone has no
            model to ask.

    Example:

    ```python
    trainer = SoftmaxDPOTrainer(model=model, args=args, train_dataset=dataset["train"], processing_class=tokenizer)
    trainer.add_callback(RankingCallback(trainer, dataset["validation"], every_n_steps=100, num_records=500))
    trainer.train()
    ```
    """

    def __init__(
        self,
        trainer: Trainer,
        dataset: Dataset | None = None,
        every_n_steps: int | None = None,
        num_records: int | None = 200,
        seed: int = 0,
        protocol: str = "ranking",
        batch_size: int | None = None,
        name: str = "sample",
    ) -> None:
        dataset = trainer.eval_dataset if dataset is None else dataset
        dataset = readable_records(dataset) if isinstance(dataset, Dataset) else dataset
        _check(trainer, dataset, protocol)
        args = trainer.args
        self.every_n_steps = every_n_steps
        self.batch_size = args.per_device_eval_batch_size if batch_size is None else batch_size
        for option, number in {"every_n_steps": every_n_steps, "num_records": num_records}.items():
            if number is not None and number < 1:
                raise ValueError(f"{option}={number} is below 1. Pass at least 1, or None.")
        # a measurement is a forward pass in evaluation mode, in the midst of training
        keep_4bit_layers_differentiable(trainer.model)
        self.trainer, self.seed, self.protocol, self.name = trainer, seed, protocol, name
        self._keys = [f"eval_{name}_{key}" for key in (*_METRICS[protocol], "hr@1_low", "hr@1_high")]
        size = len(dataset) if num_records is None else min(num_records, len(dataset))
        self.dataset = dataset.select(np.sort(np.random.default_rng(seed).permutation(len(dataset))[:size]))
        self._last_step, self._is_training = None, False
        self._last_metrics: dict[str, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self._last_step, self._last_metrics, self._is_training = None, {}, True
        self._chooses_best_model(args)
        if state.global_step == 0:
            self._measure(state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        # the state knows the steps of a trainer that was given a fraction of the run
        every = self.every_n_steps or state.eval_steps
        if state.global_step % every == 0 or state.global_step >= state.max_steps:
            self._measure(state, control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs,
    ) -> None:
        # the trainer looks for `metric_for_best_model` in what its evaluation returns, which is this dict
        if metrics is not None and self._is_training and self._chooses_best_model(args):
            self._measure(state, control)
            metrics.update(self._last_metrics)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self._is_training = False

    def _chooses_best_model(self, args: TrainingArguments) -> bool:
        """Whether `metric_for_best_model` is one of ours, and an error where it is nearly."""
        metric = args.metric_for_best_model or ""
        metric = metric if metric.startswith("eval_") else f"eval_{metric}"
        if not metric.startswith(f"eval_{self.name}_"):
            return False
        if metric not in self._keys:
            raise ValueError(
                f"`metric_for_best_model={args.metric_for_best_model!r}` is none of what RankingCallback logs with "
                f"protocol={self.protocol!r}: {self._keys}. Set it to one of them."
            )
        callbacks = self.trainer.callback_handler.callbacks
        before = callbacks[: callbacks.index(self)] if self in callbacks else []
        if any(isinstance(callback, EarlyStoppingCallback) for callback in before):
            raise ValueError(
                f"EarlyStoppingCallback stands before RankingCallback, which gives it {metric!r}. Add it behind: "
                "`trainer.add_callback(EarlyStoppingCallback(...))` after RankingCallback."
            )
        return True

    def _measure(self, state: TrainerState, control: TrainerControl) -> None:
        if state.global_step == self._last_step:
            return
        self._last_step = state.global_step
        # `log` takes back the order to log what the trainer itself has gathered
        should_log = control.should_log
        model = self.trainer.model
        training = model.training
        # the trainers of TRL add to a log what they have gathered in the mode of the model
        model.eval()
        try:
            with _preserved_random_states(), self.trainer.accelerator.autocast():
                metrics = self._metrics()
            self._last_metrics = {f"eval_{self.name}_{key}": value for key, value in metrics.items()}
            self.trainer.log(dict(self._last_metrics))
        finally:
            model.train(training)
            control.should_log = should_log

    def _metrics(self) -> dict:
        values = self._measured_values()
        if self.protocol == "ranking":
            metrics = ranking_metrics(ranks(values))
        else:
            metrics = generation_metrics(values, self.dataset, processing_class=self._tokenizer)
        low, high = metrics["hr@1_ci"]
        return {name: metrics[name] for name in _METRICS[self.protocol]} | {"hr@1_low": low, "hr@1_high": high}

    def _measured_values(self) -> list:
        """Scores or answers of all records of the sample, each from one of the processes."""
        accelerator = self.trainer.accelerator
        share = range(accelerator.process_index, len(self.dataset), accelerator.num_processes)
        values: list[Any] = []
        if len(share):  # a sample may be smaller than the number of processes
            measure = completion_log_probs if self.protocol == "ranking" else generate_answers
            values = measure(
                accelerator.unwrap_model(self.trainer.model),
                self.dataset.select(share),
                self._tokenizer,
                batch_size=self.batch_size,
                desc=f"Sample ({self.name})",
            )
        if accelerator.num_processes == 1:
            return values
        by_place = dict(zip(gather_object(list(share)), gather_object(values), strict=True))
        return [by_place[place] for place in range(len(self.dataset))]

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        processing_class = self.trainer.processing_class
        return getattr(processing_class, "tokenizer", processing_class)


@contextmanager
def _preserved_random_states() -> Iterator[None]:
    """Leave the random generators of Python, NumPy and torch as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)

# Copyright 2020-2026 The HuggingFace Team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
#
# This file re-states parts of `trl/trainer/dpo_trainer.py` of TRL 1.16, changed for several rejected completions.

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from peft import PeftConfig, PeftModel
from transformers import (
    BitsAndBytesConfig,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction
from trl import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import get_config_model_id

from ..data_utils import is_multi_preference
from ..graded_records import CHOSEN_SCORE, REJECTED_SCORES
from ..hub.card_parts import SDPO_CITATION
from ..hub.trainer_pushes import PolicyPushes
from ..losses.loss_types import LOSS_TYPES_OF_ONE_PAIR, graded_loss_types, multi_preference_losses
from ..losses.multi_negative import check_finite
from ..prefix_sharing.backbone import extend_backbone
from ..prefix_sharing.collator import STREAM_PASS, DataCollatorForMultiPreference, EpochCallback
from ..prefix_sharing.masks import base_model, row_multiple
from ..prefix_sharing.rows import CompletionScores
from ..tokenization import check_tokens_have_embeddings
from . import checks
from .checkpoints import WholeCheckpoints
from .dataset_preparation import (
    DrawnLengths,
    LengthGroupedSampler,
    OwnShards,
    WholeStream,
    largest_pool,
    prepare_multi_preference,
    shards_for_each_process,
    with_first_example,
)
from .metrics import MetricSums, logged_columns
from .reference import InitialPolicy, evaluation_mode
from .row_layout import Batch, RowLayoutTrainer, can_share_prefix
from .softmax_dpo_config import SoftmaxDPOConfig, to_softmax_dpo_config


logger = get_logger(__name__)


class SoftmaxDPOTrainer(PolicyPushes, WholeCheckpoints, RowLayoutTrainer):
    """
    Trainer for Softmax Direct Preference Optimization (S-DPO), which aligns a language model to one chosen completion
    against several rejected ones at once. The method was proposed in the paper [On Softmax Direct Preference
    Optimization for Recommendation](https://huggingface.co/papers/2406.09215). Not to be confused with
    `trl.experimental.sdpo`, Self-Distillation Policy Optimization.

    The changes w.r.t. [`~trl.DPOTrainer`] are the loss and the data collator: `rejected` may be a *list* of
    completions, of which each batch carries all, or `num_negatives` drawn anew in every epoch. Data sets in which
    `rejected` is a single completion are trained as [`~trl.DPOTrainer`] does.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from trl_sdpo import SoftmaxDPOTrainer

    >>> dataset = load_dataset("json", data_files="preferences.jsonl", split="train")
    >>> dataset[0]
    {'prompt': '…', 'chosen': ' Heat (1995)', 'rejected': [' Fargo (1996)', ' Big (1988)', ' Alien (1979)']}

    >>> trainer = SoftmaxDPOTrainer(model="HuggingFaceTB/SmolLM2-135M-Instruct", train_dataset=dataset)
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained, see [`~trl.DPOTrainer`]. A PEFT model continues its active adapter.
        ref_model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            Reference model used to compute the reference log probabilities. If `None`, the policy exactly as it is
            passed, whatever its history, see [`choose_reference`].
        args ([`SoftmaxDPOConfig`] or [`~trl.DPOConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used. A [`~trl.DPOConfig`] keeps its
            values, see [`to_softmax_dpo_config`].
        data_collator ([`~transformers.DataCollator`], *optional*):
            Function to use to form a batch from a list of elements of the processed `train_dataset` or
            `eval_dataset`. Will default to [`DataCollatorForMultiPreference`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Dataset to use for training, in the multi-preference format (see `trl_sdpo.data_utils`) or in the
            preference format of TRL, standard or conversational.
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`], [`~datasets.DatasetDict`], [`~datasets.IterableDatasetDict`] or `dict[str, Dataset | IterableDataset]`):
            Dataset to use for evaluation. It must meet the same requirements as `train_dataset`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. If `None`, it is loaded from the model's name.
        compute_metrics (`Callable[[EvalPrediction], dict]`, *optional*):
            See [`~trl.DPOTrainer`]. The ranking metrics of multi-preference data need none.
        callbacks (list of [`~transformers.TrainerCallback`], *optional*):
            List of callbacks to customize the training loop.
        optimizers (`tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None]`, *optional*, defaults to `(None, None)`):
            A tuple containing the optimizer and the scheduler to use.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantization configuration used when loading the model from a model identifier.
        peft_config ([`~peft.PeftConfig`], *optional*):
            PEFT configuration used to wrap the model. If `None`, the model is not wrapped.
    """

    _tag_names = ["trl", "dpo", "softmax-dpo"]
    _name = "S-DPO"
    _paper = {
        "title": "On Softmax Direct Preference Optimization for Recommendation",
        "id": "2406.09215",
        "citation": SDPO_CITATION,
    }

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        ref_model: "str | PreTrainedModel | PeftModel | None" = None,
        args: DPOConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset
        | IterableDataset
        | DatasetDict
        | IterableDatasetDict
        | dict[str, Dataset | IterableDataset]
        | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
    ) -> None:
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            model_name = model_name.split("/")[-1]
            args = SoftmaxDPOConfig(f"{model_name}-S-DPO")
        args = to_softmax_dpo_config(args)
        checks.check_supported(model, args, train_dataset, eval_dataset)
        self._takes_compute_metrics = compute_metrics is not None
        self._metric_sums = {"train": MetricSums(), "eval": MetricSums()}
        self._eval_sizes = {}
        ref_model = self._choose_reference(model, ref_model, args, peft_config, quantization_config)

        # On one rejected completion, softmax is the sigmoid loss: the parent checks and keeps it under its own name
        self._loss_types = loss_types = args.loss_type
        self._graded_types = graded_loss_types(args)
        args.loss_type = [LOSS_TYPES_OF_ONE_PAIR.get(loss_type, loss_type) for loss_type in loss_types]
        try:
            super().__init__(
                model=model,
                ref_model=ref_model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
            )
        finally:
            args.loss_type = loss_types
        checks.check_trainable(self.model)
        self._prepare_models()
        self._set_collator()
        if isinstance(self.data_collator, DataCollatorForMultiPreference):
            self.add_callback(EpochCallback(self.data_collator.epoch))

    @property
    def _reads_own_shards(self) -> bool:
        # what TRL's collator takes follows TRL
        ours = isinstance(self.data_collator, DataCollatorForMultiPreference)
        return ours and shards_for_each_process(self.train_dataset, self.accelerator)

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _set_collator(self) -> None:
        """Put our collator in the place of the parent's, which takes one rejected completion."""
        if isinstance(self.data_collator, DataCollatorForPreference):
            self.data_collator = DataCollatorForMultiPreference(
                **vars(self.data_collator),
                max_row_length=self.args.max_row_length or self.args.max_length,
                num_negatives=self.args.num_negatives,
                seed=self._data_seed,
            )
        if not isinstance(self.data_collator, DataCollatorForMultiPreference):
            return
        # a collator of the user's own decides on its draw, but not on what the model can take
        models = self._unwrapped_models()
        for model in models:
            extend_backbone(base_model(model))
        if self.data_collator.prefix_sharing and not can_share_prefix(models, self.args.prefix_sharing):
            self.data_collator.prefix_sharing = False
        with_scores = bool(self._graded_types)
        self.data_collator = dataclasses.replace(self.data_collator, evaluation=True, with_scores=with_scores)
        if self.data_collator.prefix_sharing and self.data_collator.pad_to_multiple_of is None:
            self.data_collator.pad_to_multiple_of = row_multiple(models)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """As [`~transformers.Trainer.get_train_dataloader`]. Training alone draws of the pool of a record."""
        data_collator, train_dataset = self.data_collator, self.train_dataset
        if isinstance(data_collator, DataCollatorForMultiPreference):
            self.data_collator = dataclasses.replace(data_collator, evaluation=False)
        if self._reads_own_shards:
            checks.check_strategies(self.args)
            place = self.args.process_index, self.args.world_size
            own: Any = OwnShards(train_dataset, self._data_seed, self._train_batch_size, *place)
            self.train_dataset = own
        elif self.args.world_size > 1 and isinstance(train_dataset, IterableDataset):
            logger.warning_once(
                f"The training stream has {train_dataset.num_shards} shards for {self.args.world_size} processes, each of which "
                "reads all of it, and keeps its part of every batch. Of at least as many files, each reads its own."
            )
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator, self.train_dataset = data_collator, train_dataset

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> torch.utils.data.DataLoader:
        """As [`~transformers.Trainer.get_eval_dataloader`]. Every process reads a whole stream, and each record counts once."""
        datasets, name = self.eval_dataset, eval_dataset
        if isinstance(name, str) and shards_for_each_process(datasets[name], self.accelerator):
            self.eval_dataset = {**datasets, name: WholeStream(datasets[name])}
        elif not isinstance(name, str):
            dataset = datasets if eval_dataset is None else eval_dataset
            if shards_for_each_process(dataset, self.accelerator):
                eval_dataset = WholeStream(dataset)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.eval_dataset = datasets

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler | None:
        # Lengths are those of shared-prefix rows, and the order, as the draw of negatives, is one of (seed, epoch)
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        grouped = self.args.train_sampling_strategy == "group_by_length" and isinstance(train_dataset, Dataset)
        length = self.args.length_column_name
        # Preference data of TRL have no such column, and follow the parent
        if not grouped or length not in train_dataset.column_names:
            return super()._get_train_sampler(train_dataset)
        lengths = train_dataset[length]
        if self.args.num_negatives is not None and isinstance(self.data_collator, DataCollatorForMultiPreference):
            lengths = DrawnLengths(train_dataset, self.args.num_negatives, self._data_seed)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroupedSampler(lengths, batch_size, self._data_seed)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self._set_collator()  # the parent precomputes within its __init__
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        args: SoftmaxDPOConfig,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        # The parent tokenizes one rejected completion
        dataset, first_example = with_first_example(dataset, dataset_name)
        if not is_multi_preference(first_example, getattr(dataset, "features", None)):
            checks.check_preference_options(self._loss_types, self._graded_types)
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        checks.check_multi_preference_options(args, self._loss_types)
        checks.check_compute_metrics(self._takes_compute_metrics)
        if self._is_vlm:
            raise ValueError("Several rejected completions are supported for text models only. Pass a tokenizer.")
        # Not all tensors of a batch have a row per record, so that it cannot be dispatched from one process in slices
        args.accelerator_config.dispatch_batches = False
        if hasattr(self, "accelerator"):
            self.accelerator.dataloader_config.dispatch_batches = False
        dataset = prepare_multi_preference(dataset, processing_class, args, dataset_name, self._graded_types)
        if self._models_are_ready:  # a dataset of a later evaluation
            check_tokens_have_embeddings(self.model, self._tokenizer, {dataset_name: dataset})
        if isinstance(dataset, Dataset):
            self._largest_pool = max(self._largest_pool, largest_pool(dataset, args.num_negatives, dataset_name))
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:  # what K negatives are drawn by, and rows are grouped by
            super()._set_signature_columns_if_needed()
            self._signature_columns = [
                *self._signature_columns,
                "record_id",
                "length",
                STREAM_PASS,
                *((CHOSEN_SCORE, REJECTED_SCORES) if self._graded_types else ()),
            ]

    def compute_ref_log_probs(self, model: torch.nn.Module, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Computes reference log probabilities for a single batch: `(B,)` of the chosen, and `(B, K)` of the rejected
        completions, K the largest of the datasets, with NaN where a record has fewer.
        """
        if "segment_ids" not in inputs:
            return super().compute_ref_log_probs(model, inputs)
        model = self.model if isinstance(self.ref_model, InitialPolicy) else model
        with self.accelerator.autocast():
            inputs = self._lay_out(model, inputs)
            with self._reference(), evaluation_mode(model):
                ref_logps = self._score(model, inputs).log_probs
        ref_logps = ref_logps.masked_fill(~inputs["completion_exists"], torch.nan)
        missing = 1 + self._largest_pool - ref_logps.size(1)
        ref_logps = torch.nn.functional.pad(ref_logps, (0, max(missing, 0)), value=torch.nan)
        return ref_logps[:, 0], ref_logps[:, 1:]

    def _compute_loss(
        self, model: torch.nn.Module, inputs: Batch, return_outputs: bool
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if "segment_ids" not in inputs:
            return super()._compute_loss(model, inputs, return_outputs)
        if return_outputs:
            raise ValueError(f"`predict` {checks.NO_LOGITS}")
        # The parent splits a batch in halves, chosen and rejected
        self._follow_mode(model)
        evaluation = not self.model.training
        inputs = self._lay_out(model, inputs)
        exists = inputs["completion_exists"]  # (B, C)
        self._check_head(model, inputs)
        self._check_start(inputs, exists)
        model_kwargs = {"output_router_logits": True} if self.aux_loss_enabled else {}
        masks = self._masks(inputs)  # of policy and reference
        scores = self._score(model, inputs, masks, **model_kwargs)

        if self.precompute_ref_logps:
            ref_logps = torch.cat([inputs["ref_chosen_logps"].unsqueeze(1), inputs["ref_rejected_logps"]], dim=1)
            ref_scores = CompletionScores(ref_logps.masked_fill(~exists, 0.0), scores.num_tokens, token_sums={})
        else:
            with self._reference() as reference:
                ref_scores = self._score(reference, inputs, masks)

        grades = inputs.get("grades")
        losses = multi_preference_losses(self.args, self.loss_weights, scores, ref_scores, exists, grades)  # (B,)
        if not (self.model.training and self.accelerator.scaler is not None):  # which skips such steps itself
            check_finite(losses, inputs.get("record_id"), self.state.global_step, self.accelerator)
        loss = losses.mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * scores.aux_loss
        record_losses = (losses + (loss - losses.mean())).detach()  # with the auxiliary loss
        rewards = self.beta * (scores.log_probs - ref_scores.log_probs).detach()  # (B, C), column 0 the chosen
        columns = logged_columns(inputs, scores, rewards, exists, record_losses, evaluation)
        sums = self._metric_sums["eval" if evaluation else "train"]
        sums.add(columns, self.accelerator, evaluation, inputs.get("record_id"))
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # The metrics of K negatives are sums over records, where the parent's are means over batches
        evaluation = not self.model.training
        trained = self._metric_sums["train"].read()
        num_tokens = self._total_train_tokens + int(trained.get("num_tokens", (0,))[0]) // self._tp_size
        if sums := self._metric_sums["eval"].read() if evaluation else trained:
            # The parent says "eval_" whatever the name of the dataset; the name is in the keys that it logs
            loss_key = next((key for key in logs if key.endswith("_loss")), "eval_loss")
            prefix = loss_key.removesuffix("loss") if evaluation else ""
            logs.update({f"{prefix}{name}": total / max(count, 1) for name, (total, count) in sums.items()})
            logs[f"{prefix}num_tokens"] = num_tokens  # as the parent's, a running total of training
            if evaluation:
                self._eval_sizes[prefix.removeprefix("eval_").removesuffix("_") or None] = int(sums["loss"][1])
            else:
                self._total_train_tokens = num_tokens
            self._metric_sums["eval" if evaluation else "train"].clear()
        super().log(logs, start_time)

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        """As [`~transformers.Trainer.evaluation_loop`]. What one that broke off has left is not counted again."""
        self._metric_sums["eval"].clear()
        self._metrics["eval"].clear()
        output = super().evaluation_loop(*args, **kwargs)
        checks.check_evaluated(output.num_samples, self.args)
        return output

    def _init_training_state(self, *args, **kwargs) -> tuple[int, int]:
        # sums of a run before, or of a batch that did not fit, which `auto_find_batch_size` begins anew
        self._metric_sums["train"].clear()
        return super()._init_training_state(*args, **kwargs)

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
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
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, TrainOutput
from trl import DPOConfig, DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import get_config_model_id, use_adapter

from ..data_utils import flat_rejected_columns, from_flat_columns, is_multi_preference, plain_records
from ..hub.card_parts import SDPO_CITATION
from ..hub.trainer_pushes import PolicyPushes
from ..losses.loss_types import LOSS_TYPES_OF_ONE_PAIR, multi_preference_losses
from ..losses.multi_negative import check_finite
from ..prefix_sharing.backbone import extend_backbone
from ..prefix_sharing.collator import DataCollatorForMultiPreference, EpochCallback
from ..prefix_sharing.masks import BatchMasks, base_model
from ..prefix_sharing.rows import (
    CompletionScores,
    expand_shared_rows,
    is_shared,
    score_completions,
    sharing_excess,
    with_targets,
)
from ..tokenization import check_tokens_have_embeddings
from .adapters import (
    AdapterPrecision,
    complete_reference_adapter,
    keep_4bit_layers_differentiable,
)
from .checkpoints import invalidate_checkpoint, place_in_stream, resolve_checkpoint
from .checks import check_multi_preference_options, check_preference_options, check_supported, check_trained
from .dataset_preparation import (
    can_share_prefix,
    largest_pool,
    prepare_multi_preference,
    sharing_holds,
)
from .metrics import MetricSums, logged_columns
from .reference import (
    LEFT_TO_US,
    InitialPolicy,
    adds_nothing,
    check_own_weights,
    check_start,
    choose_reference,
    evaluation_mode,
    reference_in_words,
    share_from_first_process,
)
from .reference_files import ReferenceFiles, cache_key
from .sampler import LengthGroupedSampler
from .saving import check_active_adapter, keep_trained_adapter, remove_saved_adapter, why_not_reloaded
from .softmax_dpo_config import SoftmaxDPOConfig, to_softmax_dpo_config


logger = get_logger(__name__)

Batch = dict[str, torch.Tensor]

_NO_LOGITS = (
    "wants logits per label, which rows with several completions do not have. Use `evaluate` without `compute_metrics`: "
    "hr@k, ndcg@k and mrr are logged in every evaluation. For scores per record, use "
    "`trl_sdpo.scoring.log_probs.completion_log_probs`."
)


class SoftmaxDPOTrainer(PolicyPushes, DPOTrainer):
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

    _tag_names = ["trl", "softmax-dpo"]
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
        check_supported(model, args, train_dataset, eval_dataset)
        self._takes_compute_metrics = compute_metrics is not None
        self._largest_pool = 0  # most rejected completions of a record, in any dataset
        self._metric_sums = {"train": MetricSums(), "eval": MetricSums()}
        self._share_prefix = None  # decided on first use
        self._eval_sizes = {}
        self._models_are_ready = False
        self._reference_weights = None  # their hash, where log-probabilities are computed ahead of training
        self._start_is_checked = ref_model is not None  # or once there was a step
        if ref_model is not None and ref_model is model:
            raise ValueError(
                "`model` and `ref_model` cannot be the same object. In most cases you should omit `ref_model` and "
                "we'll initialize it to a copy of `model` for you."
            )
        passed = ref_model
        self._adapter_adds_nothing = peft_config is not None and adds_nothing(peft_config)
        ref_model, what = choose_reference(model, ref_model, args, peft_config, quantization_config)
        given, is_adapter = passed is not None, peft_config is not None or isinstance(model, PeftModel)
        self.reference_in_words = reference_in_words(given, is_adapter, self._adapter_adds_nothing)
        self._reference_is_copy = passed is None and isinstance(ref_model, torch.nn.Module)
        logger.info(f"The reference is {what}.")
        self._adapter_precision = AdapterPrecision(model)
        check_active_adapter(model)
        self._not_reloaded = None  # why what is saved is not enough
        if peft_config is not None or isinstance(model, PeftModel):
            self._not_reloaded = why_not_reloaded(model, getattr(peft_config, "init_lora_weights", None))
            if self._not_reloaded is not None:
                logger.warning(self._not_reloaded)

        # On one rejected completion, softmax is the sigmoid loss: the parent checks and keeps it under its own name
        self._loss_types = loss_types = args.loss_type
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
        if not any(param.requires_grad for param in self.model.parameters()):
            raise ValueError(
                "The model has no trainable parameter, so training would change nothing. An adapter is loaded for "
                "training with `PeftModel.from_pretrained(..., is_trainable=True)`."
            )
        self._prepare_models()
        self._set_collator()
        if isinstance(self.data_collator, DataCollatorForMultiPreference):
            self.add_callback(EpochCallback(self.data_collator.epoch))

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    @property
    def ref_model(self) -> torch.nn.Module | None:
        """The reference, [`InitialPolicy`] where it is made of the policy itself; `None` if it is not a model apart."""
        return self._ref_model

    @ref_model.setter
    def ref_model(self, model: torch.nn.Module | None) -> None:
        # The parent must not make an adapter "ref": it has none yet
        self._ref_model = None if model is LEFT_TO_US else model

    def _prepare_models(self) -> None:
        if self._models_are_ready:
            return
        datasets = {"train": self.train_dataset}
        datasets |= self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        check_tokens_have_embeddings(self.model, self._tokenizer, datasets)
        self._models_are_ready = True
        for model in self._unwrapped_models():
            extend_backbone(base_model(model))
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        keep_4bit_layers_differentiable(self.model)
        if not sharded:
            self._adapter_precision.restore(self.model)
        if self.ref_model is not None:
            keep_4bit_layers_differentiable(self.ref_model)
            check_own_weights(self.model, self.ref_model)
            self.ref_model.eval()
        elif is_peft_model(self.model) and sharded:
            complete_reference_adapter(self.model)
        elif is_peft_model(self.model):
            self.ref_model = InitialPolicy(self.model, self._adapter_adds_nothing)
        copied = isinstance(self.ref_model, InitialPolicy) or self._reference_is_copy
        if copied and not sharded and self.accelerator.num_processes > 1:
            share_from_first_process(self.ref_model)
        self._reference_files = ReferenceFiles(self.model, self.ref_model, self.args.sync_ref_model, sharded)

    def _unwrapped_models(self) -> list[torch.nn.Module]:
        """The policy and, if it is a model of its own, the reference."""
        own = [] if self.ref_model is None or isinstance(self.ref_model, InitialPolicy) else [self.ref_model]
        return [self.accelerator.unwrap_model(model) for model in (self.model, *own)]

    def _set_collator(self) -> None:
        """Put our collator in the place of the parent's, which takes one rejected completion."""
        if isinstance(self.data_collator, DataCollatorForPreference):
            self.data_collator = DataCollatorForMultiPreference(
                **vars(self.data_collator), num_negatives=self.args.num_negatives, seed=self._data_seed
            )
        if not isinstance(self.data_collator, DataCollatorForMultiPreference):
            return
        # a collator of the user's own decides on its draw, but not on what the model can take
        models = self._unwrapped_models()
        if self.data_collator.prefix_sharing and not can_share_prefix(models, self.args.prefix_sharing):
            self.data_collator.prefix_sharing = False
        self.data_collator = dataclasses.replace(self.data_collator, evaluation=True)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """As [`~transformers.Trainer.get_train_dataloader`]. Training alone draws of the pool of a record."""
        data_collator = self.data_collator
        if isinstance(data_collator, DataCollatorForMultiPreference):
            self.data_collator = dataclasses.replace(data_collator, evaluation=False)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = data_collator

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler | None:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        grouped = self.args.train_sampling_strategy == "group_by_length" and isinstance(train_dataset, Dataset)
        length = self.args.length_column_name
        # Preference data of TRL have no such column, and follow the parent
        if not grouped or length not in train_dataset.column_names:
            return super()._get_train_sampler(train_dataset)
        return LengthGroupedSampler(
            train_dataset[length],
            self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            self._data_seed,
        )

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        # the parent precomputes within its __init__
        self._prepare_models()
        self._set_collator()
        if isinstance(dataset, Dataset):  # the parent refuses streams
            if self._reference_weights is None:
                self._reference_weights = self._precompute_model_hash
            own = self.ref_model is None or isinstance(self.ref_model, InitialPolicy)
            model = self.model if own else self.accelerator.unwrap_model(self.ref_model)
            self._precompute_model_hash = cache_key(
                model, self._reference_weights, self.args, dataset, self._largest_pool
            )
        if self.args.bf16 or self.args.fp16 or self.model.dtype != torch.float32:
            logger.warning_once(
                "The log-probabilities of the reference are computed ahead of training in the half precision of training. They "
                "differ from those of a pass beside the policy, in rows of other lengths, by rounding: up to half a nat "
                "for a completion. Use `bf16=False`, or `precompute_ref_log_probs=False`, where that is too much."
            )
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        args: SoftmaxDPOConfig,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        dataset = plain_records(dataset)
        first_example = next(iter(dataset), None)
        if first_example is None:
            raise ValueError(f"The {dataset_name} dataset is empty.")
        if "rejected" not in first_example and flat_rejected_columns(list(first_example)):
            # as published S-DPO data have them
            dataset = from_flat_columns(dataset)
            first_example = next(iter(dataset))
        if not is_multi_preference(first_example, getattr(dataset, "features", None)):
            check_preference_options(self._loss_types)
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        check_multi_preference_options(args, self._loss_types)
        if self._takes_compute_metrics:
            raise ValueError(f"`compute_metrics` is not supported with several rejected completions: it {_NO_LOGITS}")
        if self._is_vlm:
            raise ValueError("Several rejected completions are supported for text models only. Pass a tokenizer.")

        stream = not isinstance(dataset, Dataset)
        # as the parent does for training on streams: batches are of several widths, and not all of their tensors have a
        # row per record, so that they cannot be dispatched from one process in slices
        args.accelerator_config.dispatch_batches = False
        if hasattr(self, "accelerator"):
            self.accelerator.dataloader_config.dispatch_batches = False
        dataset = prepare_multi_preference(dataset, processing_class, args, dataset_name)
        if self._models_are_ready:  # a dataset of a later evaluation
            check_tokens_have_embeddings(self.model, self._tokenizer, {dataset_name: dataset})
        if not stream:
            pool = largest_pool(dataset, args.num_negatives, dataset_name)
            self._largest_pool = max(self._largest_pool, pool)
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns += ["record_id", "length"]

    def _score(
        self, model: torch.nn.Module, inputs: Batch, masks: BatchMasks | None = None, **model_kwargs
    ) -> CompletionScores:
        return score_completions(model, inputs, self.accelerator.unwrap_model(model), masks, **model_kwargs)

    def _masks(self, inputs: Batch) -> BatchMasks | None:
        with self.accelerator.autocast():  # as it wraps the forward of the models
            return BatchMasks(inputs) if is_shared(inputs) else None

    @contextmanager
    def _reference(self) -> Iterator[torch.nn.Module]:
        """The reference model, or the policy as it was, in an evaluation pass."""
        # When gradient checkpointing is enabled with use_reentrant=True (non default), calling the model inside a
        # torch.no_grad() block triggers a harmless PyTorch warning ("None of the inputs have requires_grad=True").
        # Temporarily disable checkpointing to avoid this warning during inference.
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            if isinstance(self.ref_model, InitialPolicy):
                with self.ref_model.active():
                    yield self.model
            elif is_peft_model(self.model) and self.ref_model is None:
                # When training a PEFT adapter that is sharded, how we obtain the reference depends on the setup:
                # - New adapter: disabling adapters yields the base model.
                # - Re-training an existing adapter: an initial copy is loaded under the name "ref".
                model = self.accelerator.unwrap_model(self.model)
                with (
                    evaluation_mode(self.model),
                    use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None),
                ):
                    yield self.model
            else:
                yield self.ref_model or self.model

    def compute_ref_log_probs(self, model: torch.nn.Module, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Computes reference log probabilities for a single batch: `(B,)` of the chosen, and `(B, K)` of the rejected
        completions, K the largest of the datasets, with NaN where a record has fewer.
        """
        if "segment_ids" not in inputs:
            model = self.ref_model if isinstance(self.ref_model, InitialPolicy) else model
            with evaluation_mode(model):
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

    def _check_start(self, inputs: Batch, exists: torch.Tensor | None = None) -> None:
        """Once, before the first step: the policy, without dropout, is its reference."""
        if self._start_is_checked or not self.model.training:
            return
        self._start_is_checked = True
        with torch.no_grad(), evaluation_mode(self.model):
            policy = self._log_probs_of(self.model, inputs)
        if not self.precompute_ref_logps:
            with self._reference() as reference:
                reference = self._log_probs_of(reference, inputs)
        else:
            columns = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
            reference = torch.cat([column.reshape(len(column), -1) for column in columns], dim=1)
        exists = torch.ones_like(policy, dtype=torch.bool) if exists is None else exists
        dtype = torch.bfloat16 if self.args.bf16 or self.args.fp16 else self.model.dtype
        check_start(policy, reference, exists, dtype, self.accelerator.gather, self.precompute_ref_logps)

    def _log_probs_of(self, model: torch.nn.Module, inputs: Batch) -> torch.Tensor:
        """Log-probabilities `(B, C)` of a batch; of preference data of TRL, the chosen and the rejected one."""
        if "segment_ids" in inputs:
            return self._score(model, inputs).log_probs
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        known = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps"}
        model_kwargs = {name: value for name, value in inputs.items() if name not in known}
        outputs = model(**model_kwargs, labels=labels, use_cache=False, fused_lm_head=True)
        sums = outputs.log_probs[:, -(labels.size(1) - 1) :].sum(dim=1)
        return torch.stack(sums.chunk(2), dim=1)

    def _check_sharing(self, model: torch.nn.Module, inputs: Batch) -> bool:
        """Whether sharing gives the results of padded rows on the first batch; all processes come to the same answer."""
        dtype = torch.bfloat16 if self.args.bf16 or self.args.fp16 else self.model.dtype
        training = model.training
        model.eval()  # dropout, where it is left on, would make any two passes differ
        try:
            with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
                excess = sharing_excess(partial(self._score, model), inputs, self._tokenizer.pad_token_id, dtype)
        finally:
            model.train(training)
        excess = self.accelerator.gather(excess.reshape(1)).max().item()
        return sharing_holds(excess, self.args.prefix_sharing)

    def _lay_out(self, model: torch.nn.Module, inputs: Batch) -> Batch:
        """Shared-prefix rows if they are sound, else padded rows."""
        inputs = with_targets(inputs)
        if not is_shared(inputs):
            return inputs
        if self._share_prefix is None:
            self._share_prefix = self._check_sharing(model, inputs)
            if not self._share_prefix:
                self.data_collator.prefix_sharing = False
        # batches on their way from the workers are still shared
        return inputs if self._share_prefix else with_targets(expand_shared_rows(inputs, self._tokenizer.pad_token_id))

    def _compute_loss(
        self, model: torch.nn.Module, inputs: Batch, return_outputs: bool
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if "segment_ids" not in inputs:
            if self.ld_alpha is None:  # with which TRL weighs the tokens
                self._check_start(inputs)
            return super()._compute_loss(model, inputs, return_outputs)
        if return_outputs:
            raise ValueError(f"`predict` {_NO_LOGITS}")
        evaluation = not self.model.training
        inputs = self._lay_out(model, inputs)
        exists = inputs["completion_exists"]  # (B, C)
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

        logratios = scores.log_probs - ref_scores.log_probs  # (B, C), column 0 the chosen
        losses = multi_preference_losses(self.args, self.loss_weights, scores, ref_scores, exists)  # (B,)
        if not (self.model.training and self.accelerator.scaler is not None):  # which skips such steps itself
            check_finite(losses, inputs.get("record_id"), self.state.global_step, self.accelerator)
        loss = losses.mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * scores.aux_loss
        record_losses = (losses + (loss - losses.mean())).detach()  # with the auxiliary loss
        rewards = self.beta * logratios.detach()
        columns = logged_columns(inputs, scores, rewards, exists, record_losses, evaluation)
        sums = self._metric_sums["eval" if evaluation else "train"]
        sums.add(columns, self.accelerator, evaluation, inputs.get("record_id"))
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # Metrics are sums over records here, where the parent's are means over batches
        evaluation = not self.model.training
        trained = self._metric_sums["train"].read()
        num_tokens = self._total_train_tokens + int(trained.get("num_tokens", (0,))[0]) // self._tp_size
        sums = self._metric_sums["eval"].read() if evaluation else trained
        if sums:
            # The parent says "eval_" whatever the name of the dataset; the name is in the keys that it logs
            loss_key = next((key for key in logs if key.endswith("_loss")), "eval_loss")
            prefix = loss_key.removesuffix("loss") if evaluation else ""
            logs.update({f"{prefix}{name}": total / max(count, 1) for name, (total, count) in sums.items()})
            logs[f"{prefix}num_tokens"] = num_tokens  # as the parent's, a running total of training
            if evaluation:
                name = prefix.removeprefix("eval_").removesuffix("_") or None
                self._eval_sizes[name] = int(sums["loss"][1])
            else:
                self._total_train_tokens = num_tokens
            self._metric_sums["eval" if evaluation else "train"].clear()
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        resume_from_checkpoint = resolve_checkpoint(
            resume_from_checkpoint, self.args.output_dir, self.args.save_only_model
        )
        if resume_from_checkpoint:
            self._reference_files.resume(resume_from_checkpoint)
        self._start_is_checked |= bool(resume_from_checkpoint)
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        check_trained(self.state, self.args)
        return output

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        """As [`~transformers.Trainer.evaluation_loop`]. What one that broke off has left is not counted again."""
        self._metric_sums["eval"].clear()
        self._metrics["eval"].clear()
        output = super().evaluation_loop(*args, **kwargs)
        if output.num_samples == 0:
            raise ValueError(
                "The evaluation has read no record: every record of its stream is longer than "
                f"`max_length={self.args.max_length}`, or there is none. Raise `max_length`, or check the data."
            )
        return output

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        # of a run before, or of a batch that did not fit, which `auto_find_batch_size` begins anew
        self._metric_sums["train"].clear()
        epochs_trained, steps_trained_in_current_epoch = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if self.state.global_step >= max_steps:
            # The parent would take one more step, since it looks at the number after a step only
            return num_train_epochs, 0
        if resume_from_checkpoint is None or isinstance(self.train_dataset, Dataset):
            return epochs_trained, steps_trained_in_current_epoch
        # The parent takes all steps of a stream as those of its first pass
        passes, batches = place_in_stream(resume_from_checkpoint, self.args.gradient_accumulation_steps)
        return passes, 0 if self.args.ignore_data_skip else batches

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self.args.should_save:
            invalidate_checkpoint(self._get_output_dir(trial=trial), self.state.global_step)
        self._saving_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_checkpoint = False

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The state of the trainer is written next, and says that what every process writes is there
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        # A checkpoint needs the reference adapter to resume from; elsewhere a model is the policy alone
        model = self.accelerator.unwrap_model(self.model)
        has_ref_adapter = is_peft_model(model) and self.ref_model is None and "ref" in model.peft_config
        if not self.args.should_save:
            return
        output_dir = output_dir or self.args.output_dir
        if is_peft_model(model):
            keep_trained_adapter(model, output_dir)
        if self._not_reloaded is not None and not self._saving_checkpoint:
            logger.warning(self._not_reloaded)
        if self._saving_checkpoint:
            self._reference_files.save(output_dir)
        elif has_ref_adapter:
            remove_saved_adapter(output_dir, "ref")

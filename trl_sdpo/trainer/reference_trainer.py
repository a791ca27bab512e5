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
# This file re-states the reference forward of `trl/trainer/dpo_trainer.py` of TRL 1.16, against another reference.

"""DPO against the policy exactly as it was passed in: see `reference.py` for the ways to have it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.trainer_utils import TrainOutput
from trl import DPOConfig, DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from ..prefix_sharing.masks import base_model
from ..prefix_sharing.rows import has_plain_head, head_excess
from ..tokenization import check_tokens_have_embeddings
from .adapters import (
    AdapterPrecision,
    complete_reference_adapter,
    keep_4bit_layers_differentiable,
)
from .dataset_preparation import shared_by_processes
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
from .reference_files import ReferenceFiles, cache_key, data_facts, warn_of_other_data, write_data_facts
from .saving import check_active_adapter, keep_trained_adapter, remove_saved_adapter, why_not_reloaded


logger = get_logger(__name__)


class FixedReferenceTrainer(DPOTrainer):
    """[`~trl.DPOTrainer`] whose reference is the policy as it was passed in, whatever its history, also after a resume."""

    _saving_checkpoint = False
    _largest_pool = 0  # most rejected completions of a record, in any dataset

    def _choose_reference(
        self,
        model: "str | PreTrainedModel | PeftModel",
        ref_model: "str | PreTrainedModel | PeftModel | None",
        args: DPOConfig,
        peft_config: PeftConfig | None,
        quantization_config: BitsAndBytesConfig | None,
    ) -> Any:
        """What to hand to the parent as `ref_model`, see [`choose_reference`]. To be called before its `__init__`."""
        self._models_are_ready = False
        self._reference_weights = None  # their hash, where log-probabilities are computed ahead of training
        self._start_is_checked = ref_model is not None  # or once there was a step
        self._head_is_checked = False
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
        return ref_model

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
        self._dtype = self.model.dtype
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        keep_4bit_layers_differentiable(self.model)
        if not sharded:
            self._adapter_precision.restore(self.model)
        if self.ref_model is not None:
            check_tokens_have_embeddings(self.ref_model, self._tokenizer, datasets, name="reference")
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

    def _take_in_unfrozen(self) -> None:
        """What was made trainable after the trainer was built, and would move the reference, is copied for it, too."""
        if not isinstance(self.ref_model, InitialPolicy) or not self.ref_model.missing():
            return
        if self.state.global_step:
            raise ValueError(
                f"`{self.ref_model.missing()[0]}` was made trainable after a run that the reference is the beginning of. Build "
                "the trainer anew, from the model as it is to begin with."
            )
        self.ref_model = self.ref_model.with_all_that_trains()
        if self.accelerator.num_processes > 1:
            share_from_first_process(self.ref_model)
        self._reference_files = ReferenceFiles(self.model, self.ref_model, self.args.sync_ref_model, sharded=False)

    def _unwrapped_models(self) -> list[torch.nn.Module]:
        """The policy and, if it is a model of its own, the reference."""
        own = [] if self.ref_model is None or isinstance(self.ref_model, InitialPolicy) else [self.ref_model]
        return [self.accelerator.unwrap_model(model) for model in (self.model, *own)]

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self._prepare_models()  # the parent precomputes within its __init__
        if isinstance(dataset, Dataset):  # the parent refuses streams
            folder = os.path.join(self.args.output_dir, ".precomputed", name)
            dataset = shared_by_processes(dataset, folder, self.accelerator)
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

    def compute_ref_log_probs(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> tuple:
        model = self.ref_model if isinstance(self.ref_model, InitialPolicy) else model
        with evaluation_mode(model):
            return super().compute_ref_log_probs(model, inputs)

    def _build_accelerator_args(self, **kwargs) -> dict[str, Any]:
        args = super()._build_accelerator_args(**kwargs)
        # `torch_compile`: the layers, which is where the time goes. TRL's LM head, whose tiles have several sizes, does not
        # trace, and whoever exchanges parameters of the outer modules for the reference does so outside of what is compiled
        args["dynamo_plugin"].use_regional_compilation = True
        return args

    def _follow_mode(self, model: torch.nn.Module) -> None:
        """Compiled by layers, what is called is a copy of the outer modules of `self.model`, whose mode that does not hear."""
        if model.training:
            self.model.training = True

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool) -> Any:
        self._follow_mode(model)
        if not has_plain_head(self.accelerator.unwrap_model(model)):
            raise ValueError(
                "The LM head is wrapped by an adapter (`trainable_token_indices` with tied embeddings, for one), which "
                "TRL's fused LM head does not take. Make `rejected` a list of one completion: such records are trained "
                "with the head of the model itself."
            )
        if self.ld_alpha is None:  # with which TRL weighs the tokens
            self._check_start(inputs)
        return super()._compute_loss(model, inputs, return_outputs)

    @contextmanager
    def _reference(self) -> Iterator[torch.nn.Module]:
        """The reference model, or the policy as it was, in an evaluation pass."""
        # When gradient checkpointing is enabled with use_reentrant=True (non default), calling the model inside a
        # torch.no_grad() block triggers a harmless PyTorch warning ("None of the inputs have requires_grad=True").
        # Temporarily disable checkpointing to avoid this warning during inference.
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            if isinstance(self.ref_model, InitialPolicy):
                with self.ref_model.active():
                    yield self.model_wrapped if self.args.torch_compile else self.model
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
                yield self.model if self.ref_model is None else self.ref_model

    def _check_start(self, inputs: dict[str, torch.Tensor], exists: torch.Tensor | None = None) -> None:
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

    def _log_probs_of(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities `(B, 2)` of preference data of TRL, the chosen and the rejected one."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        known = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps"}
        model_kwargs = {name: value for name, value in inputs.items() if name not in known}
        outputs = model(**model_kwargs, labels=labels, use_cache=False, fused_lm_head=True)
        sums = outputs.log_probs[:, -(labels.size(1) - 1) :].sum(dim=1)
        return torch.stack(sums.chunk(2), dim=1)

    def _check_head(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
        """Once: the head that training multiplies with gives what the model itself gives, on all processes."""
        if self._head_is_checked or not has_plain_head(self.accelerator.unwrap_model(model)):
            return
        self._head_is_checked = True
        dtype = torch.bfloat16 if self.args.bf16 or self.args.fp16 else self.model.dtype
        with (
            evaluation_mode(model),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
        ):
            unwrapped = self.accelerator.unwrap_model(model)
            excess = head_excess(model, inputs, self._tokenizer.pad_token_id, dtype, unwrapped)
        excess = self.accelerator.gather(excess.reshape(1)).max().item()
        if excess > 0:
            raise ValueError(
                f"TRL's fused LM head, which training multiplies with, is {excess:.3g} nats a token beyond rounding off the "
                f"logits of {type(base_model(unwrapped)).__name__} itself: its head is more than a weight and a scale (such "
                "as an adapter on it, a bias of its own, or a dense layer in front), and another model would be trained. "
                "Leave the head out of the adapter, or use another model."
            )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        if torch.finfo(self.model.dtype).bits < torch.finfo(self._dtype).bits:
            raise ValueError(
                f"The model was cast from {self._dtype} to {self.model.dtype} after the trainer was built, as `evaluate` does with "
                "`bf16_full_eval` and `fp16_full_eval`: it would train in that precision. Build the trainer anew, or leave these out."
            )
        self._take_in_unfrozen()
        if resume_from_checkpoint:
            path = cast("str | os.PathLike", resume_from_checkpoint)  # True is a path by now
            self._reference_files.resume(path)
            warn_of_other_data(path, data_facts(self.train_dataset, self.args))
        self._start_is_checked |= bool(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

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
            write_data_facts(output_dir, data_facts(self.train_dataset, self.args))
        elif has_ref_adapter:
            remove_saved_adapter(output_dir, "ref")

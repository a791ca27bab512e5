"""The trainers of both stages for multi-preference records, with the same tokens in both."""

from typing import Any, TypeAlias

import torch
from datasets import Dataset, IterableDataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from ..hub.trainer_pushes import remove_private_names, write_model_card
from ..trainer.softmax_dpo_config import SoftmaxDPOConfig
from ..trainer.softmax_dpo_trainer import SoftmaxDPOTrainer
from .stage_records import chosen_rows, completions_are_lines, tokenize_lines


Records: TypeAlias = Dataset | IterableDataset
Model: TypeAlias = str | PreTrainedModel | PeftModel


class PublicCardSFTTrainer(SFTTrainer):
    """
    [`~trl.SFTTrainer`] with the card of a recommender, as [`SoftmaxDPOTrainer`] has one: TRL and PEFT write the path of a
    local base model into theirs, and TRL a question that no recommender was trained to answer.
    """

    _saving_checkpoint = False  # whether what is saved is a checkpoint, and not the model of the run

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        write_model_card(self, model_name, dataset_name, tags, method="sft", with_figure=not self._saving_checkpoint)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self._saving_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_checkpoint = False

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            remove_private_names(output_dir or self.args.output_dir, self.args.hub_token)


def make_sft_trainer(
    model: Model,
    args: SFTConfig,
    train: Records,
    tokenizer: PreTrainedTokenizerBase,
    evaluation: Records | None = None,
    **kwargs: Any,
) -> PublicCardSFTTrainer:
    """
    The trainer of supervised fine-tuning on the chosen completions of records.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model.
        args ([`~trl.SFTConfig`]):
            Its configuration. The loss is that of the completions unless `completion_only_loss` is `False`.
        train ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Multi-preference records, of which none is cut, see [`chosen_rows`]; or rows with `input_ids` and a
            `completion_mask` of their own, which stay as they are.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        evaluation ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            Records to evaluate on.
        **kwargs:
            Passed to [`~trl.SFTTrainer`], such as `peft_config`.

    Returns:
        [`~trl.SFTTrainer`]: The trainer.
    """
    if args.completion_only_loss is None:
        args.completion_only_loss = True  # which TRL sees in a column that these rows do not need
    eos_token = "" if completions_are_lines(train) else tokenizer.eos_token
    options = tokenizer, eos_token, args.max_length, args.dataset_num_proc
    if "input_ids" not in (train.column_names or ()):
        train = chosen_rows(train, "train", *options)
    return PublicCardSFTTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=None if evaluation is None else chosen_rows(evaluation, "eval", *options),
        processing_class=tokenizer,
        **kwargs,
    )


def make_softmax_dpo_trainer(
    model: Model,
    args: SoftmaxDPOConfig,
    train: Records,
    tokenizer: PreTrainedTokenizerBase,
    evaluation: Records | None = None,
    **kwargs: Any,
) -> SoftmaxDPOTrainer:
    """
    The trainer of Softmax-DPO, with the tokens of [`make_sft_trainer`]: no EOS token behind completions that are lines.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]), args ([`SoftmaxDPOConfig`]), train
            ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]), tokenizer
            ([`~transformers.PreTrainedTokenizerBase`]), evaluation ([`~datasets.Dataset`] or
            [`~datasets.IterableDataset`], *optional*):
            See [`SoftmaxDPOTrainer`].
        **kwargs:
            Passed to [`SoftmaxDPOTrainer`], such as `peft_config`.

    Returns:
        [`SoftmaxDPOTrainer`]: The trainer.
    """
    for name, records in (("train", train), ("evaluation", evaluation)):
        if records is not None:
            _check_columns(records, name)
    if completions_are_lines(train):
        options = tokenizer, args.dataset_num_proc
        train = tokenize_lines(train, "train", *options)
        evaluation = None if evaluation is None else tokenize_lines(evaluation, "eval", *options)
    return SoftmaxDPOTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        **kwargs,
    )


def _check_columns(records: Records, name: str) -> None:
    """TRL's error would be a `KeyError` of a process that tokenizes."""
    columns = list(records.column_names or next(iter(records), {}))
    missing = [one for one in ("chosen", "rejected") if one not in columns and f"{one}_ids" not in columns]
    if missing:
        raise ValueError(
            f"The {name} dataset has no column {' and no column '.join(map(repr, missing))}, only {columns}. Records have "
            "`prompt`, `chosen` and a list `rejected`: rename the columns, or make records with `trl-sdpo prepare`."
        )

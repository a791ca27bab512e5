"""What a run refuses before it starts: models, data and options that are not defined for what the trainer does."""

import math
from collections.abc import Collection
from typing import Any

import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import parse_flag_from_env
from datasets import Dataset, IterableDataset
from transformers import AutoConfig, PreTrainedModel, TrainerState
from transformers.utils.peft_utils import find_adapter_config_file
from trl import DPOConfig

from ..losses.graded import LOG
from ..losses.loss_types import (
    MULTI_PREFERENCE_LOSS_TYPES,
    PAIRWISE_LOSSES,
    REFERENCE_FREE_LOSSES,
    graded_loss_types,
)


# Losses of the difference of two rewards, in which the constant that a divergence adds to both cancels: as in TRL
F_DIVERGENCE_LOSS_TYPES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
LOSSES_WITHOUT_BETA = ("mppo", "sft")
LABEL_SMOOTHING_LOSS_TYPES = ("exo_pair", "robust")
# What is refused and why. In tables stands what an option and the losses alone decide. What is left depends on models, data
# and machines, each in another way, and is code: as a table it would be functions for its conditions and its messages.
#
# Options that have a meaning in some losses: the option, its value without effect, these losses, and why no others
_DEFINED_FOR: tuple[tuple[str, Any, tuple[str, ...], str], ...] = (
    ("f_divergence_type", "reverse_kl", F_DIVERGENCE_LOSS_TYPES, "they are derived for the reverse KL divergence"),
    (
        "ld_alpha",
        None,
        (*PAIRWISE_LOSSES, "sft"),
        "LD-DPO cuts at the shorter completion of a pair, so the chosen one has no single log-probability",
    ),
    ("use_weighting", False, (*PAIRWISE_LOSSES,), "the weights of WPO are those of pairs"),
)
# Options of a single loss, which would change nothing without it, in silence: the option, its default, the loss
_BELONGS_TO: tuple[tuple[str, Any, str], ...] = (
    ("score_margin", LOG, "softmax_margin"),
    ("score_margin_scale", 1.0, "softmax_margin"),
    ("score_temperature", None, "infonca"),
)
NO_LOGITS = (
    "wants logits per label, which rows with several completions do not have. Use `evaluate` without `compute_metrics`: "
    "hr@k, ndcg@k and mrr are logged in every evaluation. For scores per record, use "
    "`trl_sdpo.scoring.log_probs.completion_log_probs`."
)


def check_supported(
    model: str | PreTrainedModel,
    args: DPOConfig,
    train_dataset: Dataset | IterableDataset | None,
    eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None,
) -> None:
    """
    Refuse models, data and machines that are out of scope.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            Model to be trained.
        args ([`~trl.DPOConfig`]):
            Configuration, of which `trust_remote_code`, `model_init_kwargs` and `activation_offloading` are read.
        train_dataset, eval_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            Data of the run; `eval_dataset` may be a `dict` of them.

    Raises:
        `ValueError`: If the model is an encoder-decoder or has no LM head, if the data have images, or if activations
            are to be offloaded and there is nothing to offload them from. The message says why, and what to use
            instead.
    """
    if args.activation_offloading and not torch.accelerator.is_available():
        raise ValueError(
            "`activation_offloading=True` moves activations from an accelerator to the CPU, and this machine has no "
            "accelerator. Use `gradient_checkpointing=True` to save memory here."
        )
    if not 0.0 < args.beta < math.inf and set(args.loss_type) - set(LOSSES_WITHOUT_BETA):
        raise ValueError(
            f"`beta={args.beta}` must be above 0: with 0 nothing is learned, and below it what is rejected is preferred."
        )
    _check_model(model, args)
    if isinstance(eval_dataset, dict) and not eval_dataset:
        raise ValueError("`eval_dataset` is a dict without a dataset, so nothing would be evaluated. Leave it out.")
    datasets = {"train": train_dataset}
    datasets |= eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    for name, dataset in datasets.items():
        if dataset is not None:
            _check_columns(dataset, name)


def check_trainable(model: torch.nn.Module) -> None:
    """Refuse a model in which training would change nothing."""
    if not any(param.requires_grad for param in model.parameters()):
        raise ValueError(
            "The model has no trainable parameter, so training would change nothing. An adapter is loaded for "
            "training with `PeftModel.from_pretrained(..., is_trainable=True)`; `merge_and_unload` of PEFT leaves the base "
            "frozen: call `model.requires_grad_(True)`, or pass a `peft_config`."
        )


def check_compute_metrics(is_given: bool) -> None:
    """Refuse `compute_metrics`, which would be handed what there is not."""
    if is_given:
        raise ValueError(f"`compute_metrics` is not supported with several rejected completions: it {NO_LOGITS}")


def check_strategies(args: DPOConfig) -> None:
    """
    Refuse to wait for the end of a pass where each process reads its own shards of a stream, and has passes of its own.

    Args:
        args ([`~trl.DPOConfig`]):
            Configuration, of which `logging_strategy`, `eval_strategy` and `save_strategy` are read.

    Raises:
        `ValueError`: If one of them is `"epoch"`. The message names it.
    """
    for name in ("logging_strategy", "eval_strategy", "save_strategy"):
        if getattr(args, name) == "epoch":
            raise ValueError(
                f"`{name}='epoch'` never comes: each process reads its own shards of the training stream, in passes that end at "
                f"other steps than those of the others. Use `{name}='steps'`."
            )


def check_trained(state: TrainerState, args: DPOConfig) -> None:
    """
    Refuse to let a run that took no step pass for a success.

    Args:
        state ([`~transformers.TrainerState`]):
            State after training.
        args ([`~trl.DPOConfig`]):
            Configuration, of which `max_length` and `dataloader_drop_last` are read.

    Raises:
        `ValueError`: If no step was taken. The message says what may be the cause.
    """
    if state.global_step == 0 and state.max_steps > 0:
        causes = [f"every record of a stream is longer than `max_length={args.max_length}`, or it has none"]
        if args.dataloader_drop_last:
            causes.append("there are fewer records than a batch has, which `dataloader_drop_last=True` leaves out")
        raise ValueError(
            f"Training ended at step 0 of {state.max_steps}: the training data gave no batch. Either {', or '.join(causes)}. "
            "Raise `max_length`, or check the data."
        )


def check_evaluated(num_records: int, args: DPOConfig) -> None:
    """Refuse an evaluation that has read no record, as [`check_trained`] does a run without a step."""
    if num_records == 0:
        raise ValueError(
            "The evaluation has read no record: every record of its stream is longer than "
            f"`max_length={args.max_length}`, or there is none. Raise `max_length`, or check the data."
        )


def _check_model(model: str | PreTrainedModel, args: DPOConfig) -> None:
    if isinstance(model, (torch.nn.DataParallel, torch._dynamo.OptimizedModule)):
        inside = "module" if isinstance(model, torch.nn.DataParallel) else "_orig_mod"
        raise ValueError(
            f"`model` is wrapped in `{type(model).__name__}`. Pass the model itself, `model.{inside}`: the trainer wraps it."
        )
    if isinstance(model, str):
        if find_adapter_config_file(model) is not None:
            raise ValueError(
                f"`model={model!r}` is an adapter. Load it on its base, to train it further, with "
                "`AutoPeftModelForCausalLM.from_pretrained(model, is_trainable=True)`, and pass that."
            )
        options = args.model_init_kwargs or {}
        config = AutoConfig.from_pretrained(
            model, trust_remote_code=options.get("trust_remote_code", args.trust_remote_code)
        )
        name = (config.architectures or [model])[0]
    else:
        config, name = model.config, type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder-decoder model: its prompt goes to the encoder, while the log-probabilities here are of "
            "prompt and completion in one row of a decoder. Use a causal language model."
        )
    if getattr(config, "return_dict", True) is False:
        raise ValueError(
            f"{name} returns tuples (`config.return_dict=False`), in which log-probabilities have no place. Set "
            "`model.config.return_dict = True`."
        )
    if not isinstance(model, str) and model.get_output_embeddings() is None:
        raise ValueError(
            f"{name} has no LM head, and so no log-probabilities of completions. Load the model with "
            "`AutoModelForCausalLM`."
        )


def _check_columns(dataset: Dataset | IterableDataset, name: str) -> None:
    # the columns of a stream may be unknown until it is read
    columns: Any = dataset.column_names or next(iter(dataset), {})
    if images := [column for column in ("image", "images") if column in columns]:
        raise ValueError(
            f"The {name} dataset has a column `{images[0]}`: images are not supported, since their tokens would have to be "
            "laid out with the prompt that several completions share. Remove the column to train on the text alone, or "
            "use `trl.DPOTrainer`, with one rejected completion per record (`to_preference_pairs`)."
        )


def check_preference_options(loss_types: list[str], graded_types: Collection[str] = ()) -> None:
    """
    Refuse the losses that are not defined for the preference data of TRL, one rejected completion per record.

    Args:
        loss_types (`list[str]`):
            Loss types of a run on preference data.
        graded_types (`Collection[str]`, *optional*):
            Those that take scores, which TRL's data have not.

    Raises:
        `ValueError`: If TRL has no such loss. The message names it and the remedy.
    """
    if unknown := [name for name in loss_types if name in (*REFERENCE_FREE_LOSSES, *graded_types)]:
        raise ValueError(
            f"`loss_type={unknown}` is not a loss of TRL, by which records with a single rejected completion are "
            "trained. Make `rejected` a list of one completion to use it."
        )


def check_multi_preference_options(args: DPOConfig, loss_types: list[str] | None = None) -> None:
    """
    Refuse the options of [`~trl.DPOConfig`] that are not defined for several rejected completions.

    Args:
        args ([`~trl.DPOConfig`]):
            Configuration of a run on multi-preference data.
        loss_types (`list[str]`, *optional*):
            Loss types of the run, `args.loss_type` by default.

    Raises:
        `ValueError`: If an option is set that has no meaning there. The message names it, its value and the remedy.
    """
    loss_types = args.loss_type if loss_types is None else loss_types
    _check_loss_types(loss_types)
    for option, neutral, allowed, reason in _DEFINED_FOR:
        value, others = getattr(args, option), [name for name in loss_types if name not in allowed]
        if value != neutral and others:
            raise ValueError(
                f"`{option}={value!r}` is not defined for `loss_type={others}` over several rejected completions: {reason}. "
                f"Leave it out, or use {list(allowed)}."
            )
    if args.ld_alpha is not None:
        _check_ld_alpha(args)
    if args.label_smoothing != 0.0:
        _check_label_smoothing(args.label_smoothing, loss_types)
    _check_scores(args, loss_types)
    _check_parallelism(args)
    _check_checkpointing(args)
    _check_without_effect(args)


def _check_scores(args: DPOConfig, loss_types: list[str]) -> None:
    for option, default, loss in _BELONGS_TO:
        value = getattr(args, option, default)
        if value != default and loss not in loss_types:
            raise ValueError(
                f"`{option}={value!r}` changes nothing in `loss_type={loss_types}`: it belongs to {[loss]}. Leave it out, or "
                "use that loss."
            )
    if getattr(args, "boundary_negatives", False) and set(loss_types) <= {"sft"}:
        raise ValueError(
            f"`boundary_negatives=True` changes nothing in `loss_type={loss_types}`, which has no rejected completions. Leave "
            "it out."
        )
    unrated = getattr(args, "unrated_score", None)
    if unrated is not None and not graded_loss_types(args, loss_types):
        raise ValueError(
            f"`unrated_score={unrated}` changes nothing in `loss_type={loss_types}`, which takes no scores. Leave it out, or "
            "use 'softmax_margin', 'plackett_luce', or 'infonca' with `score_temperature`."
        )


def _check_parallelism(args: DPOConfig) -> None:
    config = args.parallelism_config
    if config is None and parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG"):
        config = ParallelismConfig()  # of `accelerate launch`, in the environment
    sizes = {} if config is None else {"cp_size": config.cp_size, "sp_size": config.sp_size}
    if split := ", ".join(f"{name}={size}" for name, size in sizes.items() if size > 1):
        raise ValueError(
            f"`parallelism_config` with {split} is not supported with several rejected completions: it splits a row over "
            "devices, under a causal mask that would let a completion see those before it, and a log-probability is a sum "
            "over the whole row. To save memory use `gradient_checkpointing`, `fsdp` or `deepspeed`, or `tp_size`; or use "
            "`to_preference_pairs`, which gives records with one rejected completion."
        )


def _check_checkpointing(args: DPOConfig) -> None:
    options = getattr(args, "activation_checkpointing_kwargs", None) or {}  # of transformers 5.23 and later
    if others := sorted(options.keys() & {"every_n_layers", "offload"}):
        raise ValueError(
            f"`activation_checkpointing_kwargs` with {others} is not supported: `trl.models.utils."
            "disable_gradient_checkpointing`, which turns checkpointing off for the reference, hands all of them to torch "
            "when it turns it on again. Leave them out."
        )


def _check_without_effect(args: DPOConfig) -> None:
    if args.fp16 and args.device.type == "cpu":
        raise ValueError(
            "`fp16=True` has no effect on a CPU, where accelerate goes on computing in float32. Use `bf16=True`, or leave "
            "it out."
        )
    if args.truncation_mode != "keep_start" and args.max_length is not None:
        raise ValueError(
            f"`truncation_mode={args.truncation_mode!r}` does not apply to several rejected completions: records are not "
            "cut, and those longer than `max_length` are dropped. Leave it out, and shorten the prompts in the data."
        )
    if args.label_smoothing_factor != 0.0:
        raise ValueError(
            f"`label_smoothing_factor={args.label_smoothing_factor}` smooths the labels of a cross-entropy over tokens, "
            "which these losses are not. Leave it out, or use `label_smoothing` with `loss_type='robust'`."
        )


def _check_loss_types(loss_types: list[str]) -> None:
    if sorting := [name for name in loss_types if name in ("aot", "aot_unpaired")]:
        raise ValueError(
            f"`loss_type={sorting}` is not defined for several rejected completions: it sorts the log-ratios of a batch, "
            "so that its terms belong to ranks in the batch, not to pairs of a record. Use `to_preference_pairs` to get "
            "one record per pair, or another of the pairwise losses, such as 'sigmoid'."
        )
    if unknown := [name for name in loss_types if name not in MULTI_PREFERENCE_LOSS_TYPES]:
        raise ValueError(
            f"`loss_type={unknown}` is not defined for several rejected completions, only "
            f"{list(MULTI_PREFERENCE_LOSS_TYPES)}."
        )


def _check_ld_alpha(args: DPOConfig) -> None:
    if not 0.0 <= args.ld_alpha <= 1.0:
        raise ValueError(f"`ld_alpha` must be in [0.0, 1.0], got {args.ld_alpha}.")
    if args.precompute_ref_log_probs:
        raise ValueError(
            f"`ld_alpha={args.ld_alpha}` cannot be used with `precompute_ref_log_probs=True` over several rejected "
            "completions: it cuts the chosen completion for each pair anew, and one log-probability per completion is "
            "precomputed. Set `precompute_ref_log_probs=False`."
        )


def _check_label_smoothing(label_smoothing: float, loss_types: list[str]) -> None:
    if not set(loss_types) & set(LABEL_SMOOTHING_LOSS_TYPES):
        raise ValueError(
            f"`label_smoothing={label_smoothing}` changes nothing in `loss_type={loss_types}`: only "
            f"{list(LABEL_SMOOTHING_LOSS_TYPES)} smooth labels. Leave it out, or use 'robust', which is DPO with smoothed "
            "labels."
        )
    if "robust" in loss_types and not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"`label_smoothing` must be in [0.0, 0.5) for the 'robust' loss, got {label_smoothing}.")
    if "exo_pair" in loss_types and not 0.0 < label_smoothing < 1.0:
        raise ValueError(f"`label_smoothing` must be in (0.0, 1.0) for the 'exo_pair' loss, got {label_smoothing}.")

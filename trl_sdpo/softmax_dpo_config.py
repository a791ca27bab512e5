from dataclasses import dataclass, field, fields

from transformers.utils import logging
from trl import DPOConfig

from .loss_types import MULTI_PREFERENCE_LOSS_TYPES, PAIRWISE_LOSSES, REFERENCE_FREE_LOSSES


logger = logging.get_logger(__name__)

# Losses of the difference of two rewards, in which the constant that a divergence adds to both cancels: as in TRL
F_DIVERGENCE_LOSS_TYPES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
LABEL_SMOOTHING_LOSS_TYPES = ("exo_pair", "robust")


@dataclass
class SoftmaxDPOConfig(DPOConfig):
    r"""
    Configuration class for the [`SoftmaxDPOTrainer`].

    This class includes only the parameters that are specific to Softmax-DPO training, and those whose default value
    differs from [`~trl.DPOConfig`]. For a full list of training arguments, please refer to the [`~trl.DPOConfig`] and
    [`~transformers.TrainingArguments`] documentation.

    Parameters:
        num_negatives (`int`, *optional*):
            Number K of rejected completions that a training step takes from the pool of each record. They are drawn
            anew in every epoch, as a function of the seed, the epoch and the record. If `None`, the whole pool is
            used. A record with a smaller pool uses all of it. Evaluation always takes the whole pool.
        prefix_sharing (`str`, *optional*, defaults to `"auto"`):
            Whether the 1 + K completions of a record share one row, in which the prompt is computed once. Possible
            values are: `"auto"` (share where the model allows it, otherwise fall back to one padded row per
            completion, with one warning that says why), `"true"` (an error where the model does not allow it) and
            `"false"`. Booleans are accepted. The results are the same up to rounding.

    > [!NOTE]
    > These parameters have default values different from [`~trl.DPOConfig`]:
    > - `loss_type`: Defaults to `["softmax"]` instead of `["sigmoid"]`. `"softmax"` is the loss of the
    >   [paper](https://huggingface.co/papers/2406.09215). `"infonca"` (the same for one chosen completion), `"nca"`,
    >   `"dmpo"` and `"mppo"` are its relatives over all K rejected completions; the loss types of
    >   [`~trl.DPOConfig`] but `"aot"` and `"aot_unpaired"` are taken of the K pairs of a record and averaged over them,
    >   so that `"sigmoid"` is DPO over K pairs; `"sft"` is the negative log-likelihood of the chosen completion per
    >   token. Several are combined with `loss_weights`. `ld_alpha`, `f_divergence_type`, `use_weighting` and
    >   `label_smoothing` go with the pairwise ones. Plain preference data (one rejected completion) take every loss
    >   type of [`~trl.DPOConfig`]; there `"softmax"`, `"infonca"` and `"dmpo"` are `"sigmoid"`, and `"nca"` is
    >   `"nca_pair"`.
    > - `beta`: Defaults to `1.0` instead of `0.1`, the value of the paper.
    > - `learning_rate`: Defaults to `1e-5` instead of `1e-6`, the value of the paper.
    """

    # Parameters whose default values are overridden from DPOConfig
    learning_rate: float = field(
        default=1e-5,
        metadata={"help": "The initial learning rate for AdamW."},
    )
    loss_type: list[str] = field(
        default_factory=lambda: ["softmax"],
        metadata={
            "help": "Type of loss to use. Over all rejected completions of a record: `'softmax'`, `'infonca'`, `'nca'`, "
            "`'dmpo'`, `'mppo'`. Over its pairs, averaged: `'sigmoid'`, `'hinge'`, `'ipo'`, `'exo_pair'`, `'nca_pair'`, "
            "`'robust'`, `'bco_pair'`, `'sppo_hard'`, `'apo_zero'`, `'apo_down'`, `'discopop'`, `'sigmoid_norm'`. Over "
            "the chosen completion: `'sft'`. Plain preference data take every loss type of `DPOConfig`. If multiple "
            "loss types are provided, they will be combined using the weights specified in `loss_weights`.",
        },
    )
    beta: float = field(
        default=1.0,
        metadata={
            "help": "Parameter controlling the deviation from the reference model. Higher β means less deviation from "
            "the reference model."
        },
    )

    # Parameters that are specific to Softmax-DPO
    num_negatives: int | None = field(
        default=None,
        metadata={
            "help": "Number K of rejected completions that a training step draws from the pool of each record, anew in "
            "every epoch. If `None`, the whole pool is used."
        },
    )
    prefix_sharing: str = field(
        default="auto",
        metadata={
            "help": "Whether the completions of a record share one row, in which the prompt is computed once: 'auto' "
            "(where the model allows it), 'true' or 'false'.",
        },
    )

    def __post_init__(self):
        self.prefix_sharing = str(self.prefix_sharing).lower()
        if self.prefix_sharing not in ("auto", "true", "false"):
            raise ValueError(f"`prefix_sharing` must be 'auto', 'true' or 'false', got {self.prefix_sharing!r}.")
        if self.num_negatives is not None and self.num_negatives < 1:
            raise ValueError(
                f"`num_negatives` must be at least 1, got {self.num_negatives}. Leave it out to use every rejected "
                "completion of a record."
            )
        super().__post_init__()


def to_softmax_dpo_config(args: DPOConfig) -> SoftmaxDPOConfig:
    """
    Turn a plain [`~trl.DPOConfig`] into a [`SoftmaxDPOConfig`] with the same values, so that an existing DPO script
    runs with one line changed.

    `loss_type=["sigmoid"]`, the default of [`~trl.DPOConfig`], becomes `["softmax"]`, which is the same loss for one
    rejected completion. To average DPO's loss over the pairs instead, use `SoftmaxDPOConfig(loss_type="sigmoid")`.

    Args:
        args ([`~trl.DPOConfig`]):
            Configuration to convert. A [`SoftmaxDPOConfig`] is returned as it is.

    Returns:
        [`SoftmaxDPOConfig`]: The configuration with all of its values kept.
    """
    if isinstance(args, SoftmaxDPOConfig):
        return args
    dict_args = args.to_dict()
    # to_dict puts a placeholder for whatever is called a token: hub_token, pad_token
    dict_args |= {name: getattr(args, name) for name in dict_args if name.endswith("_token")}
    if args.loss_type == ["sigmoid"]:
        dict_args["loss_type"] = ["softmax"]
        logger.warning(
            "A `DPOConfig` was passed to `SoftmaxDPOTrainer`: its values are kept (beta=%s), and `loss_type='sigmoid'` "
            "becomes 'softmax', which is the same for one rejected completion. Pass a `SoftmaxDPOConfig` to choose.",
            args.beta,
        )
    # a subclass of the user's own may have fields that ours has not
    known = {field.name for field in fields(SoftmaxDPOConfig)}
    if unknown := sorted(dict_args.keys() - known):
        raise ValueError(
            f"`{type(args).__name__}` has fields that `SoftmaxDPOConfig` has not: {unknown}. Derive it from "
            "`SoftmaxDPOConfig`."
        )
    return SoftmaxDPOConfig(**dict_args)


def check_preference_options(loss_types: list[str]) -> None:
    """
    Refuse the losses that are not defined for the preference data of TRL, one rejected completion per record.

    Args:
        loss_types (`list[str]`):
            Loss types of a run on preference data.

    Raises:
        `ValueError`: If TRL has no such loss. The message names it and the remedy.
    """
    if unknown := [name for name in loss_types if name in REFERENCE_FREE_LOSSES]:
        raise ValueError(
            f"`loss_type={unknown}` is not a loss of TRL, by which records with a single rejected completion are "
            "trained. Make `rejected` a list of one completion to use it."
        )


def check_multi_preference_options(args: SoftmaxDPOConfig, loss_types: list[str] | None = None) -> None:
    """
    Refuse the options of [`~trl.DPOConfig`] that are not defined for several rejected completions.

    Args:
        args ([`SoftmaxDPOConfig`]):
            Configuration of a run on multi-preference data.
        loss_types (`list[str]`, *optional*):
            Loss types of the run, `args.loss_type` by default.

    Raises:
        `ValueError`: If an option is set that has no meaning there. The message names it, its value and the remedy.
    """
    loss_types = args.loss_type if loss_types is None else loss_types
    _check_loss_types(loss_types)
    pairwise = list(PAIRWISE_LOSSES)

    def check_every(option, allowed, reason):
        if others := [name for name in loss_types if name not in allowed]:
            raise ValueError(
                f"`{option}={getattr(args, option)!r}` is not defined for `loss_type={others}` over several rejected "
                f"completions: {reason}. Leave it out, or use {list(allowed)}."
            )

    if args.f_divergence_type != "reverse_kl":
        reason = "they are derived for the reverse KL divergence"
        check_every("f_divergence_type", F_DIVERGENCE_LOSS_TYPES, reason)
    if args.ld_alpha is not None:  # 0.0 is a value
        reason = "LD-DPO cuts at the shorter completion of a pair, so the chosen one has no single log-probability"
        check_every("ld_alpha", (*pairwise, "sft"), reason)
        _check_ld_alpha(args)
    if args.use_weighting:
        check_every("use_weighting", pairwise, "the weights of WPO are those of pairs")
    if args.label_smoothing != 0.0:
        _check_label_smoothing(args.label_smoothing, loss_types)


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


def _check_ld_alpha(args: SoftmaxDPOConfig) -> None:
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

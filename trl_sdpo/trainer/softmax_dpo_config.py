import math
from dataclasses import dataclass, field, fields
from typing import Any

from transformers.utils import logging
from trl import DPOConfig

from ..losses.graded import SCORE_MARGINS


logger = logging.get_logger(__name__)


class HubToken(str):
    """
    A token that is not saved: `Trainer` pickles its arguments to `training_args.bin`, which lies beside every model and
    goes to the Hub with it. Pickled, the token is `None`. Copies within the process keep it.
    """

    def __reduce__(self) -> tuple[type, tuple]:
        return type(None), ()

    def __deepcopy__(self, memo: dict) -> "HubToken":
        return self

    def __copy__(self) -> "HubToken":
        return self

    def __repr__(self) -> str:
        return "<HUB_TOKEN>"


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
        max_row_length (`int`, *optional*):
            Most tokens of a row that completions share. A record with more has several rows, the prompt repeated in each,
            with the same results. If `None`, `max_length`. Larger rows compute a prompt less often, in more memory.
        max_tokens_per_pass (`int`, *optional*, defaults to `65536`):
            Most tokens, padding included, of a forward pass over padded rows, of which a record has 1 + K. A batch with more
            is several passes, with the same results. Rows are not cut, and batches of a mixture of experts, whose
            load-balancing loss is one of all rows, are one pass. With `gradient_checkpointing` that also bounds the memory
            of the backward pass, but for what is kept of each layer.
        boundary_negatives (`bool`, *optional*, defaults to `False`):
            Whether a record's loss is over those of its rejected completions alone that the policy finds at least as likely
            as the chosen one, or else the likeliest of them, see [`~losses.multi_negative.boundary_negatives`].
        score_margin (`str`, *optional*, defaults to `"log"`):
            How `loss_type="softmax_margin"` makes a margin of two scores: `"log"`, `"ratio"` or `"difference"`, see
            [`score_margins`].
        score_margin_scale (`float`, *optional*, defaults to `1.0`):
            What those margins are multiplied by, in units of the reward.
        score_temperature (`float`, *optional*):
            Temperature of the target that `loss_type="infonca"` makes of scores, see [`infonca_loss`]. If `None`, the
            target is the chosen completion alone, and no scores are needed.
        unrated_score (`float`, *optional*):
            What a completion without a score counts as. If `None`, a record that lacks one is an error where the loss
            takes scores.
        redistribution_permitted (`bool`, *optional*, defaults to `False`):
            The statement that you may pass on the titles of the data, so that pushes to the Hub take `catalogue.json`
            with them. Without it, that file stays behind where the licence of its source forbids redistribution, and
            where the licence is unknown and `hub_private_repo` is not `True`.

    > [!NOTE]
    > These parameters have default values different from [`~trl.DPOConfig`]:
    > - `loss_type`: Defaults to `["softmax"]` instead of `["sigmoid"]`. `"softmax"` is the loss of the
    >   [paper](https://huggingface.co/papers/2406.09215). `"infonca"` (the same for one chosen completion), `"nca"`,
    >   `"dmpo"` and `"mppo"` are its relatives over all K rejected completions; `"softmax_margin"`, `"plackett_luce"` and,
    >   with `score_temperature`, `"infonca"` take the scores of the completions as well; the loss types of
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
            "`'dmpo'`, `'mppo'`, and with their scores `'softmax_margin'`, `'plackett_luce'`. Over its pairs, averaged: `'sigmoid'`, `'hinge'`, `'ipo'`, `'exo_pair'`, `'nca_pair'`, "
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

    max_row_length: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of a row that completions share; a record with more has several rows, the prompt repeated. "
            "If `None`, `max_length`."
        },
    )

    max_tokens_per_pass: int = field(
        default=65_536,
        metadata={
            "help": "Most tokens, padding included, of a forward pass over padded rows; a batch with more is several passes."
        },
    )

    boundary_negatives: bool = field(
        default=False,
        metadata={
            "help": "Whether the loss is over those rejected completions alone that the policy finds as likely as the chosen "
            "one, or else the likeliest (DynamicPO)."
        },
    )

    score_margin: str = field(
        default="log",
        metadata={"help": "Margin of `loss_type='softmax_margin'`, of two scores: 'log', 'ratio' or 'difference'."},
    )

    score_margin_scale: float = field(default=1.0, metadata={"help": "What those margins are multiplied by."})

    score_temperature: float | None = field(
        default=None,
        metadata={
            "help": "Temperature of the target that `loss_type='infonca'` makes of scores. If `None`, it needs none."
        },
    )

    unrated_score: float | None = field(
        default=None,
        metadata={
            "help": "What a completion without a score counts as. If `None`, one is an error where the loss takes scores."
        },
    )

    redistribution_permitted: bool = field(
        default=False,
        metadata={
            "help": "The statement that you may pass on the titles of the data, so that pushes to the Hub take "
            "`catalogue.json` with them also where the licence of its source forbids redistribution."
        },
    )

    def __post_init__(self) -> None:
        check_values(self)
        self.prefix_sharing = str(self.prefix_sharing).lower()
        # TRL's default has the name that `transformers` deprecates, and that is no fault of who leaves it as it is
        if getattr(self, "activation_checkpointing", False) is None:
            self.activation_checkpointing = self.gradient_checkpointing
        super().__post_init__()
        if self.hub_token is not None:
            self.hub_token = HubToken(self.hub_token)


def check_values(args: Any) -> None:
    """
    Check the parameters that are specific to Softmax-DPO, before anything is loaded.

    Args:
        args ([`SoftmaxDPOConfig`] or `argparse.Namespace`):
            What has them.

    Raises:
        `ValueError`: If one is out of range. The message names it.
    """
    if (sharing := str(args.prefix_sharing).lower()) not in ("auto", "true", "false"):
        raise ValueError(f"`prefix_sharing` must be 'auto', 'true' or 'false', got {sharing!r}.")
    if args.num_negatives is not None and args.num_negatives < 1:
        raise ValueError(
            f"`num_negatives` must be at least 1, got {args.num_negatives}. Leave it out to use every rejected "
            "completion of a record."
        )
    if args.max_row_length is not None and args.max_row_length < 1:
        raise ValueError(
            f"`max_row_length` must be at least 1, got {args.max_row_length}. Leave it out for `max_length`."
        )
    if args.max_tokens_per_pass < 1:
        raise ValueError(f"`max_tokens_per_pass` must be at least 1, got {args.max_tokens_per_pass}.")
    if args.score_margin not in SCORE_MARGINS:
        raise ValueError(f"`score_margin` must be one of {SCORE_MARGINS}, got {args.score_margin!r}.")
    for name in ("score_margin_scale", "score_temperature"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be above 0 and finite, got {value}.")
    if args.unrated_score is not None and not math.isfinite(args.unrated_score):
        raise ValueError(f"`unrated_score` must be finite, got {args.unrated_score}.")


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

"""
The options of making records, in one place for the Python call, the command line and files; and named sets of them: the
honest one, and the one that made the published records.
"""

from dataclasses import dataclass, field, replace

from ..negatives.strategies import COLD, LOW_RATED, UNIFORM, parse_negatives
from ..prompts.templates import PROMPT_STYLES, PromptTemplate
from ..prompts.wordings import DOMAINS, select_templates
from .phases import EXCLUSIONS, EXISTENCE, FIRST_EVENT, OFF, PHASE
from .sequences import CORE_PERIODS, K_CORES, ORDERS, WHOLE
from .splits import BY_ITEM, SPLIT_KINDS, TEMPORAL
from .targets import ALL, parse_windows


CANDIDATE_SEEDS = ("record", "target")
EVAL_CANDIDATES = (ALL, COLD)


def _help(text: str, **checks) -> dict:
    return {"help": text, **checks}


@dataclass
class RecordConfig:
    """
    How interactions become records, see [`build_preference_dataset`] and [`prepare`].

    Args:
        seed (`int`, *optional*, defaults to `0`):
            The seed of everything that is drawn.
        prompt_style (`str`, *optional*, defaults to `"history"`):
            `"history"`, or `"candidates"` to show the list in the prompt.
        template (`str` or [`PromptTemplate`], *optional*):
            A name, a template, or `"random"` for one of the style per record. By default the first of the style.
        item_format (`str`, *optional*), completion_format (`str`, *optional*):
            What history and list, and what completions say of an item, such as `"{title}[ ({genres:3})]"`, in place of
            those of the template, see [`PromptTemplate`]. Attributes are what the loader kept (`attributes=`).
        domain (`str`, *optional*, defaults to `"movies"`):
            The words of the templates: `"movies"`, `"books"`, `"music"` or `"items"`.
        conversational (`bool`, *optional*, defaults to `False`):
            Make `prompt`, `chosen` and every rejected a list of messages. The title is the whole answer.
        history_size (`int`, *optional*, defaults to `10`):
            How many of the last titles the prompt holds at most.
        min_history (`int`, *optional*, defaults to `3`):
            Targets with fewer events before them are dropped and counted.
        max_length (`int`, *optional*):
            Most tokens of a prompt with its longest completion. Histories are shortened from their oldest item; what
            does not fit with one item is dropped and counted. Needs a tokenizer.
        num_candidates (`int`, *optional*, defaults to `20`):
            The length of the list: the target and `num_candidates - 1` negatives.
        pool_size (`int`, *optional*):
            How many rejected a training record has; by default `num_candidates - 1`, of which the list is the first.
            Records of the other splits have those of the list.
        negatives (`str` or `dict[str, float]`, *optional*, defaults to `"uniform"`):
            Where the negatives of training records come from, see [`sample_negatives`]: `"uniform"`, `"popularity"`,
            `"hard"`, `"low-rated"` (see `low_rating`), or several with shares, as `"uniform:0.5,hard:0.5"`.
        eval_negatives (`str` or `dict[str, float]`, *optional*, defaults to `"uniform"`):
            The same for validation and test.
        eval_candidates (`str`, *optional*, defaults to `"all"`):
            `"all"`, or `"cold"`: validation and test records whose target and negatives all lack a training event. Others
            are dropped and counted; training records stay as they are.
        popularity_alpha (`float`, *optional*, defaults to `1.0`):
            The exponent of popularity.
        low_rating (`float`, *optional*):
            The highest rating of a negative of the kind `"low-rated"`: an item that the user took in the training period and
            never rated above it, nor as high as the target. Training records only.
        scores (`bool`, *optional*, defaults to `False`):
            Whether records have `chosen_score`, the user's rating of the target, and `rejected_scores`, null for what the
            user had not rated by the end of the record's phase.
        candidate_seed (`str`, *optional*, defaults to `"record"`):
            `"record"` draws by (seed, user, position). `"target"` draws by the target alone, as the published S-DPO
            records do, so that a list tells its target: for comparison only, see [`leak_probe`].
        exclude_seen (`str`, *optional*, defaults to `"phase"`):
            What a negative must not be: an item that the user touched up to the end of the record's own phase (training;
            training and validation; all), or `"ever"`. The latter leaks: what was ever a user's negative in training
            is then no target of the test.
        existence (`str`, *optional*):
            The catalogue of a record. `"first-event"`: items that somebody had met before the time of the record.
            `"release-year"`: also those whose title ends in a year that is not later. `"off"`: all items, also those of
            the future. By default `"first-event"` with the temporal split, else `"off"`. A target that is not in the
            catalogue of its record is dropped and counted.
        min_rating (`float`, *optional*), min_interactions (`int`, *optional*, defaults to `1`), k_core (`str`,
            *optional*, defaults to `"fixed-point"`), min_length (`int`, *optional*, defaults to `1`), merge_repeats
            (`bool`, *optional*, defaults to `True`), order (`str`, *optional*, defaults to `"time"`):
            See [`build_sequences`].
        core_period (`str`, *optional*, defaults to `"all"`):
            The events that `min_interactions` counts: `"all"`, or those of `"train"`, so that what happens later does not
            decide what stays. Later events stay if their item does, and their user does or is new.
        split (`str`, *optional*, defaults to `"temporal"`):
            `"temporal"`, see [`temporal_split`], `"leave-one-out"`, see [`leave_one_out_split`], `"user"` and
            `"user-by-time"`, see [`user_split`], with users drawn by the seed or in the order of their first events, or
            `"items"`, see [`item_split`].
        held_out_items (`float`, *optional*, defaults to `0.1`):
            The share of items that `split="items"` holds out of training.
        ratios (`tuple[float, float, float]`, *optional*, defaults to `(0.8, 0.1, 0.1)`):
            Shares of train, validation and test. A split with share 0 is left out. Not used by leave-one-out.
        file_order (`bool`, *optional*, defaults to `False`):
            See [`leave_one_out_split`].
        windows (`str` or `int`, *optional*, defaults to `"all"`):
            Training targets of a user: `"all"`, the `"last"`, or so many of the last.
        eval_windows (`str` or `int`, *optional*, defaults to `"all"`):
            The same for validation and test.
        train_stride (`int`, *optional*, defaults to `1`):
            Keep every so many-th training target of a user, counted back from the last one. With `history_size + 1`
            the windows of a user do not overlap.
        max_train_users (`int`, *optional*):
            Learn from so many users alone, drawn uniformly among those with a training event: for learning curves. The
            training events of others make no record and count for nothing, but stand in the histories of their own
            validation and test records, which are the same. A smaller number gives a subset of a larger one.
        max_train_records, max_validation_records, max_test_records (`int`, *optional*):
            Keep this many of the split, drawn uniformly. A smaller number gives a subset of a larger one.

    Raises:
        ValueError: an option is out of range.
    """

    seed: int = field(default=0, metadata=_help("Seed of everything that is drawn."))
    prompt_style: str = field(
        default="history",
        metadata=_help("Whether the prompt shows the candidates: 'candidates' or 'history'.", choices=PROMPT_STYLES),
    )
    template: str | PromptTemplate | None = field(
        default=None,
        metadata=_help(
            "Wording: a name, 'random', or a .json file with the fields of a template. Default: the first of the style."
        ),
    )
    item_format: str | None = field(
        default=None, metadata=_help("What prompts show of an item, as '{title}[ ({genres:3})]'. Default: the title.")
    )
    completion_format: str | None = field(
        default=None,
        metadata=_help("What completions say of an item, as '[{genres:2}: ]{title}'. Default: the title."),
    )
    domain: str = field(default="movies", metadata=_help("Words of the templates.", choices=DOMAINS))
    conversational: bool = field(default=False, metadata=_help("Make prompt and completions lists of messages."))
    history_size: int = field(default=10, metadata=_help("Titles of the history at most.", lowest=1))
    min_history: int = field(default=3, metadata=_help("Fewest titles before a target.", lowest=1))
    max_length: int | None = field(
        default=None,
        metadata=_help(
            "Most tokens of a prompt with its longest completion; histories are shortened. Needs a tokenizer.",
            lowest=2,
        ),
    )
    num_candidates: int = field(default=20, metadata=_help("Length of the list, the target among it.", lowest=2))
    pool_size: int | None = field(
        default=None, metadata=_help("Negatives of a training record. Default: those of the list.", lowest=1)
    )
    negatives: str | dict[str, float] = field(
        default="uniform",
        metadata=_help(
            "Negatives of training records: 'uniform', 'popularity', 'hard', 'low-rated', or as 'uniform:0.5,hard:0.5'."
        ),
    )
    eval_negatives: str | dict[str, float] = field(
        default="uniform", metadata=_help("Negatives of validation and test records.")
    )
    eval_candidates: str = field(
        default=ALL,
        metadata=_help(
            "Validation and test records of 'all' items, or 'cold': target and negatives without a training event.",
            choices=EVAL_CANDIDATES,
        ),
    )
    popularity_alpha: float = field(default=1.0, metadata=_help("Exponent of popularity."))
    low_rating: float | None = field(
        default=None, metadata=_help("Highest rating of negatives of the kind 'low-rated'.")
    )
    scores: bool = field(
        default=False,
        metadata=_help("Write the user's ratings as chosen_score and rejected_scores, where a source has any."),
    )
    candidate_seed: str = field(
        default="record",
        metadata=_help("Draw candidates by (seed, user, position) or, leaking, by 'target'.", choices=CANDIDATE_SEEDS),
    )
    exclude_seen: str = field(
        default=PHASE,
        metadata=_help(
            "Negatives are none that the user touched up to the end of the record's phase, or, leaking, 'ever'.",
            choices=EXCLUSIONS,
        ),
    )
    existence: str | None = field(
        default=None,
        metadata=_help(
            "Catalogue of a record: items with an event before it ('first-event', the default of the temporal split), "
            "or by their 'release-year', or all ('off')."
        ),
    )
    min_rating: float | None = field(default=None, metadata=_help("Keep events with at least this rating."))
    min_interactions: int = field(
        default=1, metadata=_help("Keep users and items with at least this many events.", lowest=1)
    )
    k_core: str = field(
        default="fixed-point", metadata=_help("Repeat that until all have them, or do it once.", choices=K_CORES)
    )
    core_period: str = field(
        default=WHOLE,
        metadata=_help("Count that over all events, or over those for training alone.", choices=CORE_PERIODS),
    )
    min_length: int = field(
        default=1, metadata=_help("Keep users with at least this many events after that.", lowest=1)
    )
    merge_repeats: bool = field(
        default=True, metadata=_help("Keep only the first of a user's events with the same item.")
    )
    order: str = field(
        default="time",
        metadata=_help(
            "Order of a user's events: in time, or as in the file; two more, leaking, are of published records.",
            choices=ORDERS,
        ),
    )
    split: str = field(
        default="temporal", metadata=_help("How train, validation and test are told apart.", choices=SPLIT_KINDS)
    )
    ratios: tuple[float, float, float] = field(
        default=(0.8, 0.1, 0.1), metadata=_help("Shares of train, validation and test.")
    )
    held_out_items: float = field(
        default=0.1, metadata=_help("Share of items that --split items holds out of training.")
    )
    file_order: bool = field(
        default=False, metadata=_help("Leave one out in the order of the file, for a source without time.")
    )
    windows: str | int = field(
        default="all", metadata=_help("Training targets of a user: 'all', 'last', or how many of the last.")
    )
    eval_windows: str | int = field(default="all", metadata=_help("The same for validation and test."))
    train_stride: int = field(default=1, metadata=_help("Keep every so many-th training target of a user.", lowest=1))
    max_train_users: int | None = field(
        default=None, metadata=_help("Users to learn from at most, as for learning curves.", lowest=1)
    )
    max_train_records: int | None = field(default=None, metadata=_help("Training records at most.", lowest=1))
    max_validation_records: int | None = field(default=None, metadata=_help("Validation records at most.", lowest=1))
    max_test_records: int | None = field(default=None, metadata=_help("Test records at most.", lowest=1))

    def __post_init__(self) -> None:
        for name, one in self.__dataclass_fields__.items():
            value, lowest, choices = getattr(self, name), one.metadata.get("lowest"), one.metadata.get("choices")
            if lowest is not None and value is not None and value < lowest:
                raise ValueError(f"{name}={value} is below {lowest}. Pass at least {lowest}.")
            if choices is not None and value not in choices:
                raise ValueError(f"{name}={value!r} is none of {choices}. Pass one of them.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} is negative. Pass a whole number from 0.")
        if self.pool_size is not None and self.pool_size < self.num_candidates - 1:
            raise ValueError(
                f"pool_size={self.pool_size} is below the {self.num_candidates - 1} negatives of the list. Pass at "
                "least that many, or None."
            )
        shares = [parse_negatives(getattr(self, name)) for name in ("negatives", "eval_negatives")]
        if self.candidate_seed == "target" and (
            self.pool_size is not None or any("uniform" not in one for one in shares)
        ):
            raise ValueError(
                "candidate_seed='target' draws uniformly and has no pool. Pass neither negatives nor pool_size."
            )
        if self.existence is not None and self.existence not in EXISTENCE:
            raise ValueError(f"existence={self.existence!r} is none of {EXISTENCE}. Pass one of them.")
        if self.candidate_seed == "target" and self.existence not in (None, OFF):
            raise ValueError(
                f"candidate_seed='target' draws from all items, existence={self.existence!r} does not. Pass 'off'."
            )
        self._check_low_rated(*shares)
        self._check_cold(shares[1])
        _ = self.templates
        for name in ("windows", "eval_windows"):
            parse_windows(getattr(self, name))

    def _check_low_rated(self, training: dict[str, float], evaluation: dict[str, float]) -> None:
        if LOW_RATED in evaluation:
            raise ValueError(
                "eval_negatives='low-rated': candidates would be items that the user has had, which a recommender leaves "
                "out. Pass it as negatives alone."
            )
        if (LOW_RATED in training) != (self.low_rating is not None):
            raise ValueError(
                f"negatives={self.negatives!r} and low_rating={self.low_rating}: 'low-rated' and the rating that is low go "
                "together. Pass both, or neither."
            )
        if LOW_RATED in training and self.exclude_seen != PHASE:
            raise ValueError(f"'low-rated' negatives need exclude_seen='{PHASE}', not {self.exclude_seen!r}.")

    def _check_cold(self, evaluation: dict[str, float]) -> None:
        if self.eval_candidates == COLD and (set(evaluation) != {UNIFORM} or self.candidate_seed == "target"):
            raise ValueError(
                "eval_candidates='cold' draws uniformly among the items without a training event, by (seed, user, position). "
                "Leave eval_negatives and candidate_seed out."
            )
        if self.split == BY_ITEM and (self.core_period != WHOLE or self.candidate_seed == "target"):
            raise ValueError(
                "split='items' holds items out of training, which core_period='train' would drop, and candidate_seed="
                "'target' would show in training lists. Leave them out."
            )

    @property
    def templates(self) -> tuple[PromptTemplate, ...]:
        """The wordings, see [`select_templates`], with the formats of items."""
        names = ("item_format", "completion_format")
        formats = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        chosen = select_templates(self.prompt_style, self.template, self.domain)
        return tuple(replace(template, **formats) for template in chosen) if formats else chosen

    @property
    def resolved_existence(self) -> str:
        """The catalogue of a record, with the default of the split."""
        if self.existence is not None:
            return self.existence
        return FIRST_EVENT if self.split in (TEMPORAL, BY_ITEM) and self.candidate_seed == "record" else OFF

    def shares_of(self, split: str) -> dict[str, float]:
        """By what the negatives of a split are drawn, see [`parse_negatives`]."""
        if split == "train":
            return parse_negatives(self.negatives)
        return {COLD: 1.0} if self.eval_candidates == COLD else parse_negatives(self.eval_negatives)

    def num_negatives_of(self, split: str) -> int:
        """Negatives of a record of a split."""
        return self.pool_size if split == "train" and self.pool_size is not None else self.num_candidates - 1


DEFAULT, S_DPO = RECIPES = ("default", "s-dpo")

# The words of prompts by the first part of a source's name.
SOURCE_DOMAINS = {
    "movielens": "movies",
    "goodreads": "books",
    "goodbooks": "books",
    "lastfm": "music",
    "steam": "games",
}

# What the published records of the S-DPO paper (https://huggingface.co/papers/2406.09215) were made with, read off the
# files: docs/recipes.md says what differs from the default, and what that does to results.
_S_DPO = {
    "lastfm": {
        "min_interactions": 4,
        "k_core": "once",
        "order": "file-unchecked",
        "split": "user-by-time",
        "candidate_seed": "target",
        "prompt_style": "candidates",
    },
    "movielens": {
        "min_rating": 3.0,
        "order": "time-then-item",
        "split": "user-by-time",
        "eval_windows": "last",
        "candidate_seed": "target",
        "prompt_style": "candidates",
    },
}


def recipe_options(recipe: str, source: str) -> dict:
    """
    The options of a recipe for a source, as fields of [`RecordConfig`].

    Args:
        recipe (`str`):
            `"default"`: order by time, split by time, candidates by (seed, user, position). `"s-dpo"`: what the
            published S-DPO records did, leaks included, for `lastfm` and `movielens`.
        source (`str`):
            The name of a source, as [`load_source`] takes it.

    Returns:
        `dict`: The options that differ from the defaults of [`RecordConfig`].

    Raises:
        ValueError: there is no such recipe, or not for this source.

    Example:
        ```python
        >>> recipe_options("default", "lastfm")
        {'domain': 'music'}
        >>> recipe_options("s-dpo", "movielens-100k")["min_rating"]
        3.0

        ```
    """
    family = source.partition("-")[0]
    domain = {"domain": SOURCE_DOMAINS.get(family, DOMAINS[-1])}
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is none of {RECIPES}. Pass one of them.")
    if recipe == DEFAULT:
        return domain
    if family not in _S_DPO or source == "lastfm-1k":
        raise ValueError(f"recipe 's-dpo' is known for {sorted(_S_DPO)}, not for {source!r}. Pass recipe='default'.")
    return domain | _S_DPO[family]


def recipe_loader_options(recipe: str, source: str) -> dict:
    """What the loader of the source needs to know of the recipe: published MovieLens ids with one title stay apart."""
    return {"merge_titles": False} if recipe == S_DPO and source.startswith("movielens") else {}

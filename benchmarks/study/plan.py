"""What the study consists of: its data sets, its sizes, and the systems of the second stage."""

from dataclasses import dataclass, field


SMALL_LLAMA = "small-llama"
# Of records and candidates, of the base model and of SFT: the same in all runs
SEED = 0
HISTORY_SIZE, NUM_CANDIDATES = 10, 20
ATTRIBUTES, TITLES = FORMS = ("attributes", "titles")
MORE_SFT, FEW, MANY = "SFT, as many more steps", 3, 15


@dataclass(frozen=True)
class Source:
    """
    A data set.

    Args:
        source (`str`):
            What [`~trl_sdpo.recsys.load_source`] takes.
        item_format (`str`):
            What history and completions say of an item, where attributes are shown.
        attributes (`tuple[str, ...]`):
            What the loader keeps of the items.
        options (`dict`):
            Fields of [`~trl_sdpo.recsys.RecordConfig`].
        lowest_rating (`float`, *optional*):
            What an item without a rating counts as in losses that take ratings; `None` where there are no ratings.
    """

    source: str
    item_format: str
    attributes: tuple[str, ...] = ("genres", "year")
    options: dict = field(default_factory=dict)
    lowest_rating: float | None = None


_FILM = "[{decade} ][{genres:2}: ]{title}"
SOURCES = {
    # A film is there for all from the year in its title on, whether or not somebody has rated it yet
    "ml-latest-small": Source(
        "movielens-latest-small", _FILM, options={"domain": "movies", "existence": "release-year"}, lowest_rating=0.5
    ),
    # Tags are the events themselves: those of the training period alone are shown
    "lastfm": Source("lastfm", "[{tags:2}: ]{title}", (), {"domain": "music"}),
    # As in the tables that were made before the attributes came
    "ml-100k": Source("movielens-100k", _FILM, options={"domain": "movies"}, lowest_rating=1.0),
}


@dataclass(frozen=True)
class Size:
    """
    How large the study is.

    Args:
        model (`str`):
            `"small-llama"`, or a model on the Hub, which is trained with LoRA.
        sft_epochs (`int`), sft_batch_size (`int`), sft_learning_rate (`float`), rankings (`int`), ranked (`int`):
            The first stage; how often an epoch it is ranked, on how many validation records. The best is taken.
        validation_records (`int`), test_records (`int`), cold_records (`int`), catalogue_records (`int`):
            Held-out records: of fits and searches, of the tables, of those among cold candidates, and of the whole
            catalogue.
        preference_records (`int`), batch_size (`int`):
            Training records of the second stage, in one pass.
        learning_rates (`tuple[float, ...]`):
            Of the second stage, searched for S-DPO with K = 15, which all losses on preferences share, and for SFT.
        beta (`float`):
            β, as in the paper.
        lora_r (`int`), micro_batch_size (`int`):
            Rank of the adapters; records in memory at once.
        base (`dict`):
            More arguments of [`~trl_sdpo.pipeline.make_small_llama`].
    """

    model: str = SMALL_LLAMA
    sft_epochs: int = 3
    sft_batch_size: int = 32
    sft_learning_rate: float = 2e-3
    rankings: int = 4
    ranked: int = 400
    validation_records: int = 1000
    test_records: int = 2000
    cold_records: int = 600
    catalogue_records: int = 300
    preference_records: int = 1280
    batch_size: int = 64
    learning_rates: tuple[float, ...] = (1e-4, 3e-4)
    beta: float = 1.0
    lora_r: int = 16
    micro_batch_size: int = 32
    base: dict = field(default_factory=dict)


SIZES = {
    "cpu": Size(),
    # not run yet: it needs a GPU
    "gpu": Size(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        sft_batch_size=128,
        sft_learning_rate=2e-4,
        ranked=1000,
        validation_records=2000,
        test_records=5000,
        cold_records=2000,
        preference_records=20_000,
    ),
    "tiny": Size(
        sft_epochs=1,
        sft_batch_size=8,
        rankings=2,
        ranked=10,
        validation_records=20,
        test_records=30,
        cold_records=20,
        catalogue_records=5,
        preference_records=16,
        batch_size=8,
        learning_rates=(1e-3,),
        lora_r=2,
        micro_batch_size=8,
        base={"vocab_size": 600, "hidden_size": 64, "num_layers": 1},
    ),
}


@dataclass(frozen=True)
class System:
    """
    A row of the table: a training of the second stage, from the SFT checkpoint.

    Args:
        name (`str`):
            The name of the row.
        loss (`str`):
            `"sft"`, or the `loss_type` of [`~trl_sdpo.SoftmaxDPOConfig`].
        num_negatives (`int`, *optional*):
            K.
        negatives (`str`, *optional*, defaults to `"uniform"`):
            Where the pool of a record comes from, a key of `NEGATIVES`.
        whole (`bool`, *optional*, defaults to `False`):
            Whether it is trained with all seeds, fitted with others, and ranked among cold candidates, too.
    """

    name: str
    loss: str
    num_negatives: int | None = None
    negatives: str = "uniform"
    whole: bool = False

    def folder(self, learning_rate: float, seed: int) -> str:
        """The folder of a run, which says all of it."""
        parts = [self.loss, *([] if self.num_negatives is None else [f"k{self.num_negatives}"])]
        parts += [] if self.negatives == "uniform" else [self.negatives]
        return "runs/" + "-".join([*parts, f"lr{learning_rate:g}", f"seed{seed}"])


# Options of records by where their negatives come from
NEGATIVES = {
    "uniform": {},
    "hard": {"negatives": "hard:0.5,uniform:0.5"},
    "rated": {"negatives": "low-rated:0.3,uniform:0.7", "low_rating": 2.5, "scores": True},
}
_MAIN = System(f"S-DPO, K = {MANY}", "softmax", MANY, whole=True)


def systems(source: Source) -> list[System]:
    """The systems of the second stage; with those that need ratings, where there are any."""
    found = [System(MORE_SFT, "sft", whole=True), System("DPO, 1 negative", "sigmoid", 1, whole=True), _MAIN]
    if source.lowest_rating is not None:
        found += [
            System(f"S-DPO with margins by ratings, K = {MANY}", "softmax_margin", MANY, "rated"),
            System(f"Plackett-Luce by ratings, K = {MANY}", "plackett_luce", MANY, "rated"),
        ]
    hard = System(f"S-DPO, K = {MANY}, half of them hard", "softmax", MANY, "hard")
    return [*found, System(f"S-DPO, K = {FEW}", "softmax", FEW), hard]


def searched(system: System) -> System:
    """The system whose learning rate a system takes."""
    return system if system.loss == "sft" else _MAIN

"""What the table consists of: the sizes, the runs, and the values that are searched."""

from dataclasses import dataclass, replace


SMALL_LLAMA = "small-llama"
STYLES = ("history", "candidates")
# Each title is a line of its own in both, and the one with the list ends in the one without.
TEMPLATES = {"history": "lines", "candidates": "list-and-lines"}


@dataclass(frozen=True)
class SftSize:
    """
    Supervised fine-tuning: epochs at most, records of a step, learning rate, rankings an epoch and how many of them
    without a new best end it; the number of records, if they are not windows; records in memory at once.
    """

    epochs: float
    batch_size: int
    learning_rate: float
    rankings: int
    patience: int
    records: int | None = None
    micro_batch_size: int = 32


@dataclass(frozen=True)
class Size:
    """
    How large the table is.

    Args:
        model (`str`):
            `"small-llama"`, or a model on the Hub.
        curve_records (`int`), validation_records (`int`), test_records (`int`):
            Held-out records of the curve of SFT, of the search, and of the table.
        preference_records (`dict[str, int]`):
            Training records of the second stage, by prompt style.
        sft (`dict[str, SftSize]`):
            The first stage, by prompt style.
        pool_size (`int`):
            Negatives stored with a training record of the style without a list.
        few (`int`), many (`int`):
            K of the two rows of S-DPO.
        learning_rates (`tuple[float, ...]`), sft_learning_rates (`tuple[float, ...]`):
            What the search of a system of the second stage goes through: as many points for each.
        search_styles (`tuple[str, ...]`):
            Styles with a search of their own. The others take what was chosen for the first.
        beta (`float`):
            β, as in the paper. The sweep has others.
        sweep_negatives (`tuple[int, ...]`), sweep_betas (`tuple[float, ...]`), sweep_learning_rates (`tuple[float, ...]`), sweep_records (`tuple[int, ...]`):
            K, β, learning rates and training records of the sweeps.
        sweep_training_records (`int`), sweep_step (`int`):
            Training records where something else is changed, and which test records the sweeps are measured on: the
            first and then every so many.
    """

    model: str
    curve_records: int
    validation_records: int
    test_records: int
    preference_records: dict[str, int]
    sft: dict[str, SftSize]
    vocab_size: int = 8192
    hidden_size: int = 256
    num_layers: int = 2
    lora_r: int = 16
    batch_size: int = 64
    micro_batch_size: int = 16
    max_grad_norm: float = 1.0
    pool_size: int = 63
    num_candidates: int = 20
    history_size: int = 10
    few: int = 3
    many: int = 15
    learning_rates: tuple[float, ...] = (1e-4, 3e-4)
    sft_learning_rates: tuple[float, ...] = (1e-4, 3e-4)
    search_styles: tuple[str, ...] = STYLES
    beta: float = 1.0
    sweep_negatives: tuple[int, ...] = (1, 3, 7, 15, 63)
    sweep_betas: tuple[float, ...] = (0.1, 1.0, 3.0)
    sweep_learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    sweep_records: tuple[int, ...] = (640, 1280, 2560)
    sweep_training_records: int = 1280
    sweep_step: int = 2


SIZES = {
    "cpu": Size(
        model=SMALL_LLAMA,
        curve_records=500,
        validation_records=1000,
        test_records=2000,
        preference_records={"history": 2560, "candidates": 1280},
        # No early stop: hr@1 of 500 records falls back by its own noise for a quarter of the steps, and then rises again
        sft={"history": SftSize(4, 32, 2e-3, 4, 16), "candidates": SftSize(1, 32, 5e-4, 4, 3)},
        search_styles=("history",),
        micro_batch_size=32,
    ),
    # not run yet: it needs a GPU
    "gpu": Size(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        curve_records=1000,
        validation_records=2000,
        test_records=5000,
        preference_records={"history": 20_000, "candidates": 20_000},
        sft={"history": SftSize(5, 128, 1e-4, 2, 4), "candidates": SftSize(5, 128, 1e-4, 2, 4, records=40_000)},
        micro_batch_size=32,
        max_grad_norm=0.3,
    ),
    "tiny": Size(
        model=SMALL_LLAMA,
        curve_records=10,
        validation_records=10,
        test_records=20,
        preference_records={"history": 16, "candidates": 16},
        sft={"history": SftSize(1, 16, 2e-3, 2, 2, records=32), "candidates": SftSize(1, 16, 1e-3, 2, 2, records=32)},
        vocab_size=600,
        hidden_size=64,
        num_layers=1,
        lora_r=2,
        batch_size=8,
        pool_size=19,
        many=5,
        learning_rates=(1e-3,),
        sft_learning_rates=(1e-3,),
        sweep_negatives=(1, 5),
        sweep_betas=(0.1, 1.0),
        sweep_learning_rates=(1e-3,),
        sweep_records=(8, 16),
        sweep_training_records=8,
    ),
}


@dataclass(frozen=True)
class Run:
    """
    One training of the second stage, from the SFT checkpoint of its style.

    Args:
        system (`str`):
            The row of the table.
        loss (`str`):
            `"sft"`, or the `loss_type` of [`~trl_sdpo.SoftmaxDPOConfig`].
        num_negatives (`int`, *optional*):
            K.
        learning_rate (`float`), beta (`float`, *optional*):
            Of the second stage.
        seed (`int`):
            Seed of the records, their order, the draw of negatives and the adapter.
        negatives (`str`, *optional*, defaults to `"uniform"`):
            Where the pool of negatives comes from, see [`runs.training_records`].
        records (`int`, *optional*):
            Training records. If `None`, as many as all systems of the style have.
    """

    system: str
    loss: str
    num_negatives: int | None = None
    learning_rate: float | None = None
    beta: float | None = None
    seed: int = 0
    negatives: str = "uniform"
    records: int | None = None

    @property
    def name(self) -> str:
        """The folder of the run, which says all of it."""
        parts = [self.loss, f"lr{self.learning_rate:g}"]
        parts += [f"k{self.num_negatives}", f"beta{self.beta:g}"] if self.loss != "sft" else []
        parts += [self.negatives] if self.negatives != "uniform" else []
        parts += [f"n{self.records}"] if self.records is not None else []
        return "-".join([*parts, f"seed{self.seed}"])


def systems(size: Size) -> list[Run]:
    """The systems of the second stage, without what is searched for them."""
    few, many = size.few, size.many
    return [
        Run("SFT, as many more steps", "sft"),
        Run("DPO, 1 negative", "sigmoid", 1),
        Run(f"DPO, {few} pairs", "sigmoid", few),
        Run(f"S-DPO, K = {few}", "softmax", few),
        Run(f"S-DPO, K = {many}", "softmax", many),
    ]


def searched(system: Run, size: Size) -> list[Run]:
    """The runs that are compared on validation records to set a system's learning rate."""
    if system.loss == "sft":
        return [replace(system, learning_rate=rate) for rate in size.sft_learning_rates]
    return [replace(system, learning_rate=rate, beta=size.beta) for rate in size.learning_rates]


def sweeps(chosen: Run, size: Size) -> dict[str, list[Run]]:
    """Runs that change one thing of a run: K, β, where the negatives come from, the learning rate, or the records."""
    usual = size.preference_records["history"]
    small = replace(chosen, records=size.sweep_training_records)
    counts = [None if count == usual else count for count in size.sweep_records]
    sources = ("uniform", "popularity", "hard", "mined", "sasrec")
    return {
        "K": [replace(small, num_negatives=number) for number in size.sweep_negatives],
        "β": [replace(small, beta=beta) for beta in size.sweep_betas],
        "negatives": [replace(small, negatives=source) for source in sources],
        "learning rate": [replace(chosen, learning_rate=rate) for rate in size.sweep_learning_rates],
        "records": [replace(chosen, records=count) for count in counts],
    }

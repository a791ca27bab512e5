"""What the table consists of: the sizes, the runs, and the values that are searched. Imported by paper_table.py."""

from dataclasses import asdict, dataclass, replace


STYLES = ("history", "candidates")
# Each title is a line of its own in both, and the one with the list ends in the one without.
TEMPLATES = {"history": "lines", "candidates": "list-and-lines"}
# What the search of a system goes through, as many points each: learning rate and β. The paper's β; the sweep has more.
SEARCHED = ((1e-4, 1.0), (3e-4, 1.0))
SEARCHED_SFT = ((1e-4, None), (3e-4, None))
# The value of the sweeps and of S-DPO in the table
MANY = 15


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
        sweep_negatives (`tuple[int, ...]`), sweep_betas (`tuple[float, ...]`):
            K and β of the sweeps.
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
    many: int = MANY
    sweep_negatives: tuple[int, ...] = (1, 3, 7, 15, 63)
    sweep_betas: tuple[float, ...] = (0.1, 1.0, 3.0)


SIZES = {
    "cpu": Size(
        model="small-llama",
        curve_records=500,
        validation_records=1000,
        test_records=2000,
        preference_records={"history": 2560, "candidates": 1280},
        sft={"history": SftSize(4, 32, 2e-3, 4, 5), "candidates": SftSize(1, 32, 5e-4, 4, 3)},
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
        model="small-llama",
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
        sweep_negatives=(1, 5),
        sweep_betas=(0.1, 1.0),
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
            Where the pool of negatives comes from, see [`paper_table_runs.training_records`].
    """

    system: str
    loss: str
    num_negatives: int | None = None
    learning_rate: float | None = None
    beta: float | None = None
    seed: int = 0
    negatives: str = "uniform"

    @property
    def name(self) -> str:
        """The folder of the run, which says all of it."""
        parts = [self.loss, f"lr{self.learning_rate:g}"]
        parts += [f"k{self.num_negatives}", f"beta{self.beta:g}"] if self.loss != "sft" else []
        parts += [self.negatives] if self.negatives != "uniform" else []
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


def searched(system: Run) -> list[Run]:
    """The runs that are compared on validation records to set a system's learning rate and β."""
    grid = SEARCHED_SFT if system.loss == "sft" else SEARCHED
    return [replace(system, learning_rate=rate, beta=beta) for rate, beta in grid]


def sweeps(chosen: Run, size: Size) -> dict[str, list[Run]]:
    """Runs that change one thing of a run: K, β, or where the negatives come from."""
    return {
        "K": [replace(chosen, num_negatives=number) for number in size.sweep_negatives],
        "β": [replace(chosen, beta=beta) for beta in size.sweep_betas],
        "negatives": [
            replace(chosen, negatives=source)
            for source in ("uniform", "popularity", "hard", "mined", "half-mined", "sasrec")
        ],
    }


def describe(run: Run) -> dict:
    """All that the result of a run depends on, but the model that it begins with."""
    return asdict(run)

"""
MovieLens-100k from end to end: supervised fine-tuning, Softmax-DPO, and a ranking of 20 candidates before and after.

    python examples/movielens.py                                                 # minutes on a laptop
    python examples/movielens.py --model HuggingFaceTB/SmolLM2-135M-Instruct     # any causal language model
    python examples/movielens.py --help

Without a GPU the default is a Llama of a few million parameters, made and trained here from nothing; with one it is
SmolLM2-135M-Instruct with LoRA, in the setting of the S-DPO paper (https://huggingface.co/papers/2406.09215).
"""

import dataclasses
import logging
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path


# One process on one GPU: with several in sight, `Trainer` would take them all through `nn.DataParallel`
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

import datasets  # torch reads the variable
import language_models
import numpy as np
import polars as pl
import report
import stages
import torch
from small_llama import build_small_llama, train_title_tokenizer
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase

from trl_sdpo.recsys import TEMPLATES, build_preference_dataset, build_sequences, popularity_scores, temporal_split
from trl_sdpo.recsys.movielens_100k import load_movielens_100k
from trl_sdpo.recsys.prompts import PROMPT_STYLES, select_templates
from trl_sdpo.recsys.ranking import completion_log_probs


logger = logging.getLogger("movielens")

SMALL_LLAMA = "small-llama"

# What a flag is when it is not given, by road. The small Llama's were searched on validation records, see README.md;
# those of the GPU are the paper's.
DEFAULTS = {
    "small-llama": {
        "prompt_style": "history",
        "sft_on": "all",
        "sft_epochs": 3,
        "sft_batch_size": 32,
        "sft_learning_rate": 2e-3,
        "dpo_records": 3840,
        "dpo_epochs": 1,
        "dpo_batch_size": 64,
        "more_sft_learning_rate": 3e-4,
        "dpo_learning_rate": 1e-4,
        "num_negatives": 15,
        "beta": 3.0,
        "max_grad_norm": 1.0,
        "lora_r": 16,
        "eval_records": 2000,
    },
    "cpu": {
        "prompt_style": "history",
        "sft_on": "all",
        "sft_records": 320,
        "sft_epochs": 1,
        "sft_batch_size": 16,
        "sft_learning_rate": 1e-3,
        "more_sft_learning_rate": 2e-4,
        "max_grad_norm": 1.0,
        "dpo_records": 80,
        "dpo_epochs": 1,
        "dpo_batch_size": 8,
        "dpo_learning_rate": 1e-4,
        "num_negatives": 15,
        "beta": 1.0,
        "lora_r": 16,
        "eval_records": 200,
    },
    "gpu": {
        "prompt_style": "candidates",
        "template": "random",
        "sft_on": "completion",
        "sft_epochs": 5,
        "sft_batch_size": 128,
        "sft_learning_rate": 1e-4,
        "more_sft_learning_rate": 2e-5,
        "max_grad_norm": 0.3,
        "dpo_records": None,
        "dpo_epochs": 3,
        "dpo_batch_size": 128,
        "dpo_learning_rate": 1e-5,
        "num_negatives": 3,
        "beta": 1.0,
        "lora_r": 8,
        "eval_records": 2000,
    },
}


@dataclass
class MovieLensArguments:
    """Flags of the example. Those without a default take one that suits the machine and the model."""

    model: str | None = field(
        default=None,
        metadata={
            "help": f"'{SMALL_LLAMA}' (a Llama from scratch), a directory, or a model on the Hub. Default: {SMALL_LLAMA} "
            f"on a CPU, {language_models.SMOLLM2} on a GPU."
        },
    )
    data: str | None = field(
        default=None, metadata={"help": "Directory or zip of MovieLens-100k. Default: downloaded once and cached."}
    )
    output_dir: str = field(default="outputs/movielens", metadata={"help": "Where results and models go."})
    seed: int = field(default=0, metadata={"help": "Seed of everything that is drawn."})
    resume: bool = field(
        default=False, metadata={"help": "Take up the finished and half-finished stages of an earlier run."}
    )
    prompt_style: str | None = field(
        default=None, metadata={"help": "Show the candidates in the prompt or not: 'candidates' or 'history'."}
    )
    template: str | None = field(
        default=None, metadata={"help": f"Wording: 'random', or one of {', '.join(TEMPLATES)}."}
    )
    history_size: int = field(default=10, metadata={"help": "Titles of the history at most."})
    num_candidates: int = field(default=20, metadata={"help": "Candidates to rank, with the target."})
    eval_records: int | None = field(default=None, metadata={"help": "Held-out records to rank."})
    max_length: int = field(default=1024, metadata={"help": "Most tokens of a prompt with its completion."})
    sft_on: str | None = field(
        default=None, metadata={"help": "Tokens that SFT learns: 'all' of the row or the 'completion' alone."}
    )
    sft_records: int | None = field(
        default=None,
        metadata={"help": "Training records of SFT at most. Default: windows that do not overlap, or all."},
    )
    sft_epochs: int | None = field(default=None, metadata={"help": "Epochs of SFT."})
    sft_batch_size: int | None = field(default=None, metadata={"help": "Records of an optimizer step of SFT."})
    sft_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of SFT."})
    more_sft: bool = field(
        default=True, metadata={"help": "Also continue SFT for as many seconds as S-DPO takes, to compare."}
    )
    more_sft_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the continued SFT."}
    )
    dpo_records: int | None = field(default=None, metadata={"help": "Training records of S-DPO at most."})
    dpo_epochs: int | None = field(default=None, metadata={"help": "Epochs of S-DPO."})
    dpo_batch_size: int | None = field(default=None, metadata={"help": "Records of an optimizer step of S-DPO."})
    dpo_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of S-DPO."})
    num_negatives: int | None = field(default=None, metadata={"help": "Negatives K of a record in a step of S-DPO."})
    pool_size: int | None = field(
        default=None,
        metadata={"help": "Negatives stored with a record, to draw from. Default: the larger of K and 19."},
    )
    beta: float | None = field(default=None, metadata={"help": "β of S-DPO."})
    lora_r: int | None = field(default=None, metadata={"help": "Rank of LoRA."})
    max_grad_norm: float | None = field(default=None, metadata={"help": "Norm at which gradients are clipped."})
    dtype: str = field(
        default="float32", metadata={"help": "Type of the weights: 'bfloat16' halves the memory of a large base."}
    )
    micro_batch_size: int = field(
        default=16, metadata={"help": "Records in memory at once; a step accumulates as many as it needs."}
    )
    vocab_size: int = field(default=8192, metadata={"help": f"Vocabulary of {SMALL_LLAMA}."})
    hidden_size: int = field(default=256, metadata={"help": f"Width of {SMALL_LLAMA}."})
    num_layers: int = field(default=2, metadata={"help": f"Layers of {SMALL_LLAMA}."})

    def __post_init__(self):
        gpu = torch.cuda.is_available()
        self.model = self.model or (language_models.SMOLLM2 if gpu else SMALL_LLAMA)
        road = SMALL_LLAMA if self.model == SMALL_LLAMA else "gpu" if gpu else "cpu"
        for name, value in DEFAULTS[road].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name, value in vars(self).items():
            if name not in ("seed", "resume", "more_sft") and isinstance(value, (int, float)) and value <= 0:
                raise ValueError(f"--{name} must be above 0, got {value}.")
        self.pool_size = self.pool_size or max(self.num_negatives, self.num_candidates - 1)
        if self.sft_on not in ("all", "completion"):
            raise ValueError(f"--sft_on must be 'all' or 'completion', got {self.sft_on!r}.")
        if self.prompt_style not in PROMPT_STYLES:
            raise ValueError(f"--prompt_style must be one of {PROMPT_STYLES}, got {self.prompt_style!r}.")

    @property
    def from_scratch(self) -> bool:
        return self.model == SMALL_LLAMA

    @property
    def lines(self) -> bool:
        """Whether each title of a prompt is a line, as a completion is."""
        return all(template.completion_suffix for template in select_templates(self.prompt_style, self.template))

    @property
    def windows(self) -> bool:
        """Whether every title of a row is learned, so that rows which overlap would repeat each other."""
        return self.lines and self.sft_on == "all" and self.sft_records is None


@dataclass
class Run:
    """What the stages of a run have in common."""

    args: MovieLensArguments
    directory: Path
    base: str
    tokenizer: PreTrainedTokenizerBase
    records: dict[str, datasets.Dataset]


def load_records(args: MovieLensArguments) -> tuple[dict[str, datasets.Dataset], pl.DataFrame, dict]:
    """Records of each stage and of the test, the items, and counts."""
    interactions = load_movielens_100k(args.data)
    dataset, counts = build_preference_dataset(
        interactions,
        seed=args.seed,
        prompt_style=args.prompt_style,
        template=args.template,
        history_size=args.history_size,
        num_candidates=args.num_candidates,
        pool_size=args.pool_size,
        max_validation_records=1,
        max_test_records=args.eval_records,
    )
    everything = dataset["train"]

    def sample(size, seed):
        return everything if size is None else everything.shuffle(seed=seed).select(range(min(size, len(everything))))

    def sft(seed):
        if args.windows:
            window = args.history_size + 1
            return everything.select(stages.window_indices(everything, window, args.sft_epochs, seed))
        return sample(args.sft_records, seed)

    records = {
        "sft": sft(args.seed).remove_columns("rejected"),
        "more sft": sft(args.seed + 1).remove_columns("rejected"),
        "s-dpo": sample(args.dpo_records, args.seed),
        "test": dataset["test"],
    }
    events = temporal_split(build_sequences(interactions))
    popularity = popularity_scores(events.filter(pl.col("split") == "train"), records["test"])
    return records, interactions.items, {"counts": counts, "popularity": popularity}


def make_base(args: MovieLensArguments, items: pl.DataFrame, directory: Path) -> str:
    """The model to begin with: its id, or the directory of a new one."""
    if not args.from_scratch:
        return args.model
    headers = [
        template.text.partition("{history}")[0] for template in select_templates(args.prompt_style, args.template)
    ]
    tokenizer = train_title_tokenizer(items["title"].to_list(), headers, args.vocab_size)
    model = build_small_llama(tokenizer, args.hidden_size, args.num_layers, args.seed)
    logger.info("%s: %.1f million parameters, %d tokens.", args.model, model.num_parameters() / 1e6, len(tokenizer))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def training_arguments(run: Run, stage: str, records: datasets.Dataset, name: str) -> dict:
    """Arguments of a stage, `sft` or `dpo`, from the flags."""
    args = run.args
    sizes = {
        # a cut into windows for each epoch is among the records already
        "epochs": 1 if stage == "sft" and args.windows else getattr(args, f"{stage}_epochs"),
        "batch_size": getattr(args, f"{stage}_batch_size"),
        "learning_rate": getattr(args, f"{stage}_learning_rate"),
        "micro_batch_size": args.micro_batch_size,
        "max_grad_norm": args.max_grad_norm,
    }
    return stages.training_arguments(run.directory / name, len(records), sizes, args.seed)


def stage_settings(args: MovieLensArguments, **more) -> dict:
    """The flags that SFT depends on, with what another stage depends on too."""
    others = ("dpo_", "more_sft", "beta", "num_negatives", "pool_size", "eval_records", "output_dir", "resume")
    return {name: value for name, value in dataclasses.asdict(args).items() if not name.startswith(others)} | more


def sft_stage(run: Run) -> dict:
    """Supervised fine-tuning: of all weights of a model from scratch, else of an adapter."""
    args, records = run.args, run.records["sft"]

    def make_trainer():
        return stages.sft_trainer(
            stages.load_model(run.base, args.dtype),
            run.tokenizer,
            records,
            training_arguments(run, "sft", records, "sft"),
            all_tokens=args.sft_on == "all",
            lora_r=None if args.from_scratch else args.lora_r,
        )

    return stages.run_stage(run.directory / "sft", stage_settings(args), args.resume, make_trainer)


def softmax_dpo_stage(run: Run) -> dict:
    """Softmax-DPO: continues the adapter, or begins one on a model from scratch."""
    args, records = run.args, run.records["s-dpo"]

    def make_trainer():
        return stages.softmax_dpo_trainer(
            stages.load_model(run.directory / "sft", args.dtype, trainable=True),
            run.tokenizer,
            records,
            training_arguments(run, "dpo", records, "s-dpo"),
            lora_r=args.lora_r if args.from_scratch else None,
            beta=args.beta,
            num_negatives=args.num_negatives,
            max_length=args.max_length,
        )

    names = ("dpo_records", "dpo_epochs", "dpo_batch_size", "dpo_learning_rate", "num_negatives", "pool_size", "beta")
    settings = stage_settings(args, **{name: getattr(args, name) for name in names})
    return stages.run_stage(run.directory / "s-dpo", settings, args.resume, make_trainer)


def more_sft_stage(run: Run, sft: dict, softmax_dpo: dict) -> dict:
    """Continued SFT for the seconds that S-DPO took, on rows cut anew."""
    args, records = run.args, run.records["more sft"]
    pace = max(entry["step"] for entry in sft["log"]) / sft["seconds"]
    changes = {
        "max_steps": max(1, round(pace * softmax_dpo["seconds"])),
        "learning_rate": args.more_sft_learning_rate,
        "seed": args.seed + 1,
    }

    def make_trainer():
        return stages.sft_trainer(
            stages.load_model(run.directory / "sft", args.dtype, trainable=True),
            run.tokenizer,
            records,
            training_arguments(run, "sft", records, "more-sft") | changes,
            all_tokens=args.sft_on == "all",
        )

    settings = stage_settings(args, **changes)
    return stages.run_stage(run.directory / "more-sft", settings, args.resume, make_trainer)


def rank(run: Run, popularity: np.ndarray) -> dict:
    """Scores of the candidates by stage, the target first."""
    places = {"base": run.base, "sft": run.directory / "sft"}
    if run.args.more_sft:
        places["more sft"] = run.directory / "more-sft"
    places["s-dpo"] = run.directory / "s-dpo"
    scores = {"popularity": popularity}
    for name, place in places.items():
        model = stages.load_model(place, run.args.dtype)
        log_probs = completion_log_probs(model, run.records["test"], run.tokenizer, desc=f"Ranking, {name}")
        scores[name] = np.array(log_probs)
    # β is positive and the same for all candidates, so it does not change the order
    scores["s-dpo (implicit reward)"] = scores["s-dpo"] - scores["sft"]
    return scores


def main(args: MovieLensArguments) -> None:
    """Run the example."""
    directory = Path(args.output_dir).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    clock, start = stages.Clock(), time.perf_counter()
    with clock.phase("data"):
        records, items, facts = load_records(args)
    with clock.phase("model"):
        base = make_base(args, items, directory / "base")
        tokenizer = AutoTokenizer.from_pretrained(stages.resolve_model(base))
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if args.lines:
            records = {name: stages.tokenize_without_eos(value, tokenizer) for name, value in records.items()}
    run = Run(args, directory, base, tokenizer, records)
    done = {}
    with clock.phase("SFT"):
        done["sft"] = sft_stage(run)
    with clock.phase("S-DPO"):
        done["s-dpo"] = softmax_dpo_stage(run)
    if args.more_sft:
        with clock.phase("more SFT"):
            done["more sft"] = more_sft_stage(run, done["sft"], done["s-dpo"])
    with clock.phase("ranking"):
        scores = rank(run, facts["popularity"])
    clock.seconds["total"] = round(time.perf_counter() - start, 1)

    results = report.compare(scores, args.num_candidates, args.seed)
    facts_of_run = {
        "settings": dataclasses.asdict(args) | stages.environment(),
        "records": {name: len(value) for name, value in records.items()},
        "data": facts["counts"],
        "seconds": clock.seconds,
        "training_seconds": {name: stage["seconds"] for name, stage in done.items()},
    }
    stages.write_json(directory / "results.json", results | facts_of_run)
    title = f"MovieLens-100k, {args.model}, K = {args.num_negatives}, seed {args.seed}"
    report.plot_run(results["stages"], done["sft"]["log"], done["s-dpo"]["log"], directory / "results.png", title)
    print(f"\n{title}: ranking {args.num_candidates} sampled candidates, the target among them\n")
    print(report.format_table(results["stages"]), end="\n\n")
    for baseline in report.baselines(scores):
        print(report.verdict(results["differences"], "s-dpo", baseline))
    print(f"\n{directory}: results.json, results.png, the adapter in s-dpo/. {clock.seconds['total']:.0f} s in all.")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.exit("This example runs in one process: start it with `python`, not with a launcher.")
    stages.keep_freed_memory()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    main(HfArgumentParser(MovieLensArguments).parse_args_into_dataclasses()[0])

"""
What the examples of this directory share: supervised fine-tuning, Softmax-DPO, and a ranking of 20 candidates before and
after, on the interactions of one source. Imported by the examples as a sibling module.

Without a GPU the default is a Llama of a few million parameters, made and trained here from nothing; with one it is
SmolLM2-135M-Instruct with LoRA, in the setting of the S-DPO paper (https://huggingface.co/papers/2406.09215).
"""

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


# One process on one GPU: with several in sight, `Trainer` would take them all through `nn.DataParallel`
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

import datasets  # torch reads the variable
import numpy as np
import polars as pl
import report
import stages
from arguments import RecommendationArguments
from small_llama import build_small_llama, train_title_tokenizer
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase

from trl_sdpo import Catalogue, RecommenderConfig, RecommenderFiles, save_recommender_files
from trl_sdpo.recsys import (
    ITEM_ID,
    Interactions,
    build_preference_dataset,
    build_sequences,
    popularity_scores,
    sampled_label,
    temporal_split,
)
from trl_sdpo.recsys.prompts.templates import select_templates
from trl_sdpo.scoring.log_probs import completion_log_probs


logger = logging.getLogger("recommendation")


@dataclass(frozen=True)
class Source:
    """
    What an example is about.

    Args:
        name (`str`):
            Its name, as [`load_source`] takes it.
        title (`str`):
            What results are headed with.
        load (`Callable`):
            From `--data`, which may be `None`, to interactions.
        domain (`str`):
            The words of the prompts, see [`RecordConfig`].
        min_interactions (`int`, *optional*, defaults to `1`):
            See [`build_sequences`].
    """

    name: str
    title: str
    load: Callable[[str | None], Interactions]
    domain: str
    min_interactions: int = 1


@dataclass
class Run:
    """What the stages of a run have in common."""

    args: RecommendationArguments
    directory: Path
    base: str
    tokenizer: PreTrainedTokenizerBase
    records: dict[str, datasets.Dataset]
    files: RecommenderFiles


def load_records(
    args: RecommendationArguments, source: Source
) -> tuple[dict[str, datasets.Dataset], pl.DataFrame, dict]:
    """Records of each stage and of the test, the items, and counts."""
    interactions = source.load(args.data)
    dataset, counts = build_preference_dataset(
        interactions,
        seed=args.seed,
        prompt_style=args.prompt_style,
        template=args.template,
        domain=source.domain,
        min_interactions=source.min_interactions,
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
    events = temporal_split(build_sequences(interactions, min_interactions=source.min_interactions))
    train = events.filter(pl.col("split") == "train")
    catalogue = (
        interactions.items.join(events, on=ITEM_ID, how="semi")
        .join(train.group_by(ITEM_ID).len(), on=ITEM_ID, how="left")
        .sort(ITEM_ID)
        .with_columns(pl.col("len").fill_null(0))
    )
    facts = {"counts": counts, "popularity": popularity_scores(train, records["test"])}
    facts["catalogue"] = Catalogue(*(catalogue[column].to_list() for column in (ITEM_ID, "title", "len")))
    return records, interactions.items, facts


def recommender_files(args: RecommendationArguments, source: Source, facts: dict) -> RecommenderFiles:
    """What travels with the model of every stage, so that it is served as it was trained."""
    config = RecommenderConfig(
        select_templates(args.prompt_style, args.template, source.domain),
        history_size=args.history_size,
        append_eos=not args.lines,
        domain=source.domain,
        source=source.name,
    )
    return RecommenderFiles(config, facts["catalogue"])


def make_base(args: RecommendationArguments, source: Source, items: pl.DataFrame, directory: Path) -> str:
    """The model to begin with: its id, or the directory of a new one."""
    if not args.from_scratch:
        return args.model
    templates = select_templates(args.prompt_style, args.template, source.domain)
    headers = [template.text.partition("{history}")[0] for template in templates]
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


def run_stage(run: Run, name: str, settings: dict, make_trainer: Callable) -> dict:
    """Train a stage, see [`stages.run_stage`], and put beside its model what a recommender needs."""
    done = stages.run_stage(run.directory / name, settings, run.args.resume, make_trainer)
    save_recommender_files(run.directory / name, run.files.config, run.files.catalogue)
    return done


def stage_settings(args: RecommendationArguments, **more) -> dict:
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

    return run_stage(run, "sft", stage_settings(args), make_trainer)


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
    return run_stage(run, "s-dpo", settings, make_trainer)


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
    return run_stage(run, "more-sft", settings, make_trainer)


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


def main(args: RecommendationArguments, source: Source) -> None:
    """Run the example on a source."""
    directory = Path(args.output_dir).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    clock, start = stages.Clock(), time.perf_counter()
    with clock.phase("data"):
        records, items, facts = load_records(args, source)
    with clock.phase("model"):
        base = make_base(args, source, items, directory / "base")
        tokenizer = AutoTokenizer.from_pretrained(stages.resolve_model(base))
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if args.lines:
            records = {name: stages.tokenize_without_eos(value, tokenizer) for name, value in records.items()}
    run = Run(args, directory, base, tokenizer, records, recommender_files(args, source, facts))
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
    title = f"{source.title}, {args.model}, K = {args.num_negatives}, seed {args.seed}"
    report.plot_run(results["stages"], done["sft"]["log"], done["s-dpo"]["log"], directory / "results.png", title)
    print(f"\n{title}\n{sampled_label(args.num_candidates)}\n")
    print(report.format_table(results["stages"]), end="\n\n")
    for baseline in report.baselines(scores):
        print(report.verdict(results["differences"], "s-dpo", baseline))
    print(f"\n{directory}: results.json, results.png, the adapter in s-dpo/. {clock.seconds['total']:.0f} s in all.")


def parse(arguments: type[RecommendationArguments]) -> RecommendationArguments:
    """The flags with which an example is started; also sets up its process."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.exit("This example runs in one process: start it with `python`, not with a launcher.")
    stages.keep_freed_memory()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return HfArgumentParser(arguments).parse_args_into_dataclasses()[0]

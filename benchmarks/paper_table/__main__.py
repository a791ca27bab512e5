"""
The comparison of the S-DPO paper (https://huggingface.co/papers/2406.09215) on MovieLens-100k, without its leaks.

    python -m benchmarks.paper_table                  # a small Llama, on two CPU cores in about an hour and a half
    python -m benchmarks.paper_table --size gpu       # SmolLM2-135M with LoRA and more records: not run yet
    python -m benchmarks.paper_table --report_only    # tables and plot of what is there

All systems of a prompt style begin with one SFT checkpoint, trained until hr@1 of validation records stops rising, and
see the same training records: SFT for as many more steps, DPO with one negative, DPO over three pairs, S-DPO. The
learning rate of each is chosen on validation records among three. The seeds are those of the second stage: its
records, their order, the draw of negatives and the adapter; the SFT checkpoint and the candidates are the same for all.

Every run is a folder under --output_dir with its settings, adapter, log and scores. A second start takes what is there
and goes on with the rest; one whose settings have changed is refused, and named.
"""

import argparse
import json
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path

from trl_sdpo.files import write_text
from trl_sdpo.pipeline import TrainedStage, keep_freed_memory, log_to_terminal
from trl_sdpo.pipeline.run import environment
from trl_sdpo.recsys import mean_reciprocal_rank, ranks
from trl_sdpo.recsys.interactions.movielens_100k import load_movielens_100k

from .baselines import score_baselines, trained_scorer
from .models import Style, make_base, train_sft
from .plan import SIZES, STYLES, Run, Size, searched, sweeps, systems
from .report import CHOSEN, read_chosen, write_report
from .runs import generate, score, train


logger = logging.getLogger("paper_table")

PARTS = ("baselines", "sft", "search", "table", "generation", "sweeps")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", default="cpu", choices=list(SIZES))
    parser.add_argument("--data", help="directory or zip of MovieLens-100k (default: downloaded once and cached)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/paper_table"))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the second stage (default: %(default)s)")
    parser.add_argument("--styles", nargs="+", default=list(STYLES), choices=STYLES, help="prompt styles, in order")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to do (default: all)")
    parser.add_argument("--report_only", action="store_true", help="write tables and plot of what is there")
    return parser.parse_args(arguments)


def run_folder(style: Style, run: Run) -> Path:
    return style.directory / "runs" / run.name


def choose(style: Style, system: Run, sft: TrainedStage) -> Run:
    """The point of the search of a system with the highest mrr on validation records, which is less noisy than hr@1."""
    found = {}
    for run in searched(system, style.size):
        train(style, run, sft)
        found[run] = mean_reciprocal_rank(ranks(score(style, run_folder(style, run), "validation")))
    return max(found, key=found.get)


def choose_all(style: Style, sft: TrainedStage) -> list[Run]:
    """The systems of the second stage with what was chosen for them, written to a file for the report."""
    score(style, style.directory / "sft", "validation")
    if style.name in style.size.search_styles:
        chosen = [choose(style, system, sft) for system in systems(style.size)]
    else:
        source = style.directory.parent / style.size.search_styles[0]
        chosen = list(read_chosen(source, style.size).values())
    write_text(style.directory / CHOSEN, json.dumps({run.system: run.name for run in chosen}))
    return chosen


def run_table(style: Style, chosen: list[Run], sft: TrainedStage, seeds: int) -> None:
    """Train and score the systems: seed by seed, so that what is there after an interruption can be compared."""
    score(style, style.directory / "sft", "test")
    for seed in range(seeds):
        for system in chosen:
            run = replace(system, seed=seed)
            train(style, run, sft)
            score(style, run_folder(style, run), "test")


def run_generation(style: Style, chosen: list[Run], seeds: int) -> None:
    """Greedy answers, where the prompt shows what may be answered."""
    generate(style, style.directory / "sft")
    for seed in range(seeds):
        for system in chosen:
            generate(style, run_folder(style, replace(system, seed=seed)))


def run_sweeps(style: Style, chosen: Run, sft: TrainedStage) -> None:
    """Runs of one seed that change one thing, on the test records, which nothing is chosen on."""
    sasrec = trained_scorer(style.directory.parent / "baselines", "SASRec")
    for name, runs in sweeps(chosen, style.size).items():
        for run in runs:
            if run.negatives == "sasrec" and sasrec is None:
                logger.warning("Sweep of %s: SASRec-mined negatives need the part 'baselines'.", name)
                continue
            train(style, run, sft, sasrec)
            if not (run_folder(style, run) / "test.parquet").is_file():
                score(style, run_folder(style, run), "sweep")


def run_style(style: Style, begin: str | Path, options: argparse.Namespace) -> None:
    """All parts of a style."""
    if "sft" not in options.parts:
        return
    sft = train_sft(style, begin)
    score(style, style.directory / "sft", "test")
    if "search" not in options.parts:
        return
    chosen = choose_all(style, sft)
    if "table" in options.parts:
        run_table(style, chosen, sft, options.seeds)
    if "generation" in options.parts and style.name == "candidates":
        run_generation(style, chosen, options.seeds)
    if "sweeps" in options.parts and style.name == "history":
        run_sweeps(style, chosen[-1], sft)


def main(options: argparse.Namespace) -> None:
    """Run the parts, then report."""
    size: Size = SIZES[options.size]
    directory = options.output_dir.resolve() / options.size
    start = time.perf_counter()
    if not options.report_only:
        directory.mkdir(parents=True, exist_ok=True)
        interactions = load_movielens_100k(options.data)
        tokenizer, base = make_base(size, interactions, directory / "base")
        styles = {name: Style(name, size, directory / name, interactions, tokenizer, base) for name in STYLES}
        users = [str(user) for user in styles["history"].records["test"]["user_id"]]
        (directory / "test_users.json").write_text(json.dumps(users), encoding="utf-8")
        if "baselines" in options.parts:
            score_baselines(styles["history"], directory / "baselines")
        for name in options.styles:
            # the model without the list has learned what follows what; with the list it goes on from there
            begin = base if name == "history" else directory / "history" / "sft"
            run_style(styles[name], begin, options)
    write_text(directory / "environment.json", json.dumps(environment()))
    write_report(directory, size)
    logger.info("%s: results.md, results.png, results.json; %.0f s.", directory, time.perf_counter() - start)


if __name__ == "__main__":
    log_to_terminal(stream=sys.stdout)
    keep_freed_memory()
    main(parse_arguments())

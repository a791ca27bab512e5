"""
Where a text model earns its place: popularity, item-kNN, SASRec and GRU4Rec, a language model after SFT, and what
continued SFT, DPO, S-DPO and losses of ratings make of it; alone, and fitted together with the models of ids.

    python -m benchmarks.study                              # ml-latest-small, lastfm, ml-100k with a small Llama, on a CPU
    python -m benchmarks.study --datasets lastfm --paths lastfm=hetrec2011-lastfm-2k.zip
    python -m benchmarks.study --size gpu                   # SmolLM2-135M with LoRA: not run yet
    python -m benchmarks.study --report_only                # tables and plot of what is there

Records are split in time, with 20 candidates, or with candidates that are all without training events, or ranked in the
whole catalogue. All systems of the second stage begin with one SFT checkpoint and see the same training records; the
seeds are those of the second stage. Intervals and tests are over users.

Every stage is a folder under --output_dir with its settings, model, log and scores. A second start takes what is there
and goes on with the rest; one whose settings have changed is refused, and named.
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path

from trl_sdpo.files import write_text
from trl_sdpo.pipeline import TrainedStage, keep_freed_memory
from trl_sdpo.pipeline.run import environment
from trl_sdpo.recsys import mean_reciprocal_rank, ranks

from .data import Setting, load_interactions
from .plan import ATTRIBUTES, FORMS, MANY, SIZES, SOURCES, TITLES, Size, System, searched, systems
from .report import SFT, SFT_TITLES, Model, collect, read_results
from .scores import BASELINES, SASREC_TEXT, SPLITS, TEXT, read, score_baselines, score_model
from .stages import make_base, sft_curve, train, train_sft
from .tables import markdown, plot


logger = logging.getLogger("study")

# What is ranked in the whole catalogue and by the parts of its completions, too
_ASKED_MORE = (f"S-DPO, K = {MANY}",)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="cpu", choices=list(SIZES))
    parser.add_argument("--datasets", nargs="+", default=list(SOURCES), choices=list(SOURCES), help="in this order")
    parser.add_argument("--paths", nargs="+", default=[], help="NAME=PATH: files of a data set (default: downloaded)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/study"))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the second stage (default: %(default)s)")
    parser.add_argument("--report_only", action="store_true", help="write tables and plot of what is there")
    return parser.parse_args(arguments)


class Study:
    """
    The study of one data set.

    Args:
        name (`str`):
            A key of `SOURCES`.
        size ([`Size`]):
            How large it is.
        path (`Path`, *optional*):
            The files of the data set.
        directory (`Path`):
            Where everything goes.
        seeds (`int`):
            Seeds of the second stage.
    """

    def __init__(self, name: str, size: Size, path: Path | None, directory: Path, seeds: int):
        self.source, self.directory, self.seeds = SOURCES[name], directory, seeds
        interactions = load_interactions(self.source, path)
        self.settings = {form: Setting(self.source, size, interactions, form, directory) for form in FORMS}
        self.main = self.settings[ATTRIBUTES]
        self.models: dict[str, Model] = {}
        self.curves: dict[str, list] = {}
        self.search: list[dict] = []

    def execute(self) -> None:
        """All parts, the most telling first, with a report of what is there after each seed."""
        score_baselines(self.main, BASELINES)
        sft = self.first_stage(SFT, ATTRIBUTES)
        score_baselines(self.main, (TEXT,), sft.directory)
        rates = self.search_rates(sft)
        for seed in range(self.seeds):
            for system in [one for one in systems(self.source) if one.whole or seed == 0]:
                self.second_stage(system, rates[searched(system).name], seed, sft)
            self.report()
        self.first_stage(SFT_TITLES, TITLES)
        self.report()
        score_baselines(self.main, (SASREC_TEXT,), sft.directory)
        self.report()

    def first_stage(self, name: str, form: str) -> TrainedStage:
        """SFT in a wording, and its scores."""
        setting = self.settings[form]
        stage = train_sft(setting, make_base(setting))
        score_model(setting, stage.directory, more=True)
        self.models[name] = Model(setting, [stage.directory])
        self.curves[form] = sft_curve(stage)
        return stage

    def search_rates(self, sft: TrainedStage) -> dict[str, float]:
        """
        The learning rate of each system that is searched: that with the highest mrr on validation records, which is less
        noisy than hr@1, with the first seed.
        """
        chosen = {}
        for system in dict.fromkeys(map(searched, systems(self.source))):
            found = {}
            for rate in self.main.size.learning_rates:
                stage = train(self.main, system, rate, 0, sft)
                score_model(self.main, stage.directory, ("validation",))
                placed = ranks(read(self.main, stage.directory, "validation"))
                found[rate] = mean_reciprocal_rank(placed)
            chosen[system.name] = max(found, key=found.get)
            self.search += [
                {"system": system.name, "learning_rate": rate, "mrr": mrr, "chosen": rate == chosen[system.name]}
                for rate, mrr in found.items()
            ]
        return chosen

    def second_stage(self, system: System, rate: float, seed: int, sft: TrainedStage) -> None:
        """Train a system with a seed, and score."""
        stage = train(self.main, system, rate, seed, sft)
        splits = SPLITS if system.whole else ("test",)
        score_model(self.main, stage.directory, splits, more=system.name in _ASKED_MORE)
        model = self.models.setdefault(system.name, Model(self.main, [], stage, rate))
        model.places.append(stage.directory)

    def report(self) -> None:
        """Write results.json of the data set."""
        content = collect(self.main, self.models, self.search, self.curves)
        write_text(self.directory / "results.json", json.dumps(content | {"environment": environment()}, indent=2))


def write_report(directory: Path) -> None:
    """Write results.md and results.png of all data sets that are there."""
    results = read_results(directory)
    write_text(directory / "results.md", markdown(results))
    plot(results, directory / "results.png")


def main(options: argparse.Namespace) -> None:
    """Run the data sets one after the other, and report."""
    directory, start = options.output_dir.resolve() / options.size, time.perf_counter()
    paths = dict(one.split("=", 1) for one in options.paths)
    if unknown := [name for name in paths if name not in SOURCES]:
        raise ValueError(f"--paths: {unknown} are none of the data sets {list(SOURCES)}. Pass NAME=PATH.")
    for name in [] if options.report_only else options.datasets:
        path = Path(paths[name]) if name in paths else None
        Study(name, SIZES[options.size], path, directory / name, options.seeds).execute()
        write_report(directory)
        logger.info("%s: done, %.0f s since the start.", name, time.perf_counter() - start)
    write_report(directory)
    logger.info("%s: results.md, results.png, and results.json of each data set.", directory)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    keep_freed_memory()
    main(parse_arguments())

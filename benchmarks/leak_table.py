"""
What each setting leaks: rules that know nothing of tastes on test records of three sources, for docs/recipes.md.

    python benchmarks/leak_table.py --movielens_100k DIR --movielens_small DIR --lastfm DIR

Each directory holds the publisher's files, see docs/data.md. Records are made anew for every setting with seed 0, 2,000 for
the test at most, and rules learn from 50,000 training records at most. Renumbered: the items of the source got ids drawn at
random before anything else was done, so that ids say nothing and what a rule of ids still finds is the order of events.
"""

import argparse
import logging
from collections.abc import Iterator

import numpy as np
import polars as pl

from trl_sdpo.recsys import Interactions, build_preference_dataset, load_source, recipe_options
from trl_sdpo.recsys.metrics.probes import Probe, leak_probes
from trl_sdpo.recsys.records.config import recipe_loader_options


OLD = {"order": "time-then-item", "exclude_seen": "ever", "existence": "off"}
SETTINGS = {
    "default": {},
    "default, renumbered": {},
    "`--split leave-one-out`": {"split": "leave-one-out"},
    "`--split leave-one-out --existence first-event`": {"split": "leave-one-out", "existence": "first-event"},
    "`--order time-then-item`": {"order": "time-then-item"},
    "`--order time-then-item`, renumbered": {"order": "time-then-item"},
    "`--exclude_seen ever`": {"exclude_seen": "ever"},
    "`--existence off`": {"existence": "off"},
    "`--eval_negatives hard`": {"eval_negatives": "hard"},
    "`--candidate_seed target`": {"candidate_seed": "target"},
    "`--recipe s-dpo`": None,
}
RULES = (
    "list lookup",
    "id above the last",
    "id below the last",
    "never a training negative",
    "existed by then",
    "not a neighbour",
)


def renumbered(source: Interactions) -> Interactions:
    """The same events, of items with ids drawn at random."""
    ids = source.items["item_id"].sort()
    drawn = pl.Series("drawn", np.random.default_rng(0).permutation(len(ids)))
    table = pl.DataFrame({"item_id": ids, "drawn": drawn})

    def of(frame: pl.DataFrame) -> pl.DataFrame:
        return (
            frame.join(table, on="item_id", how="left", maintain_order="left")
            .drop("item_id")
            .rename({"drawn": "item_id"})
        )

    return Interactions(of(source.events), of(source.items), source.name)


def probes_of(source: Interactions, options: dict) -> dict[str, Probe]:
    """All rules on the test records of a setting."""
    limits = {"max_train_records": 50_000, "max_test_records": 2_000, "max_validation_records": 1}
    dataset, _ = build_preference_dataset(source, seed=0, **{**options, **limits})
    return {probe.name: probe for probe in leak_probes(dataset["test"], dataset["train"])}


def rows_of(name: str, path: str) -> Iterator[list[str]]:
    """A row of the table for each setting of a source."""
    whole = load_source(name, path)
    for setting, options in SETTINGS.items():
        source, chosen = renumbered(whole) if "renumbered" in setting else whole, options
        if chosen is None:
            if name not in ("movielens-100k", "lastfm"):
                continue
            source = load_source(name, path, **recipe_loader_options("s-dpo", name))
            chosen = recipe_options("s-dpo", name)
        probes = probes_of(source, {**recipe_options("default", name), **chosen})
        first = probes[RULES[0]]
        popular = f"{number(first.popularity)} ({number(first.popularity_ci[0])} to {number(first.popularity_ci[1])})"
        cells = [cell(probes.get(rule)) for rule in RULES]
        yield [setting, f"{first.n:,}, {first.users:,}", popular, *cells]


def cell(probe: Probe | None) -> str:
    """A rule's hit rate and interval, and what popularity explains of it; in bold where it leaks."""
    if probe is None:
        return ""
    rate = f"**{number(probe.hr_at_1)}**" if probe.leaks else number(probe.hr_at_1)
    text = f"{rate} ({number(probe.ci[0])} to {number(probe.ci[1])})"
    return text if probe.matched is None else f"{text}; {number(probe.matched)}"


def number(value: float) -> str:
    """Three digits behind the point, without the 0 before it."""
    return f"{value:.3f}".removeprefix("0")


def main() -> None:
    """Print a table for each source that is there."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sources = {"movielens_100k": "movielens-100k", "movielens_small": "movielens-latest-small", "lastfm": "lastfm"}
    for flag, name in sources.items():
        parser.add_argument(f"--{flag}", metavar="DIR", help=f"Files of {name}.")
    args = parser.parse_args()
    for flag, name in sources.items():
        if path := getattr(args, flag):
            print(f"\n| {name} | n, users | popularity | {' | '.join(RULES)} |", flush=True)
            print(f"| --- | ---: | --- |{' --- |' * len(RULES)}", flush=True)
            for row in rows_of(name, path):
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()

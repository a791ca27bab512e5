"""Small prepared data sets of made-up films, each made once. Imported by tests as a sibling module."""

import numpy as np
import polars as pl
import pytest
from datasets import load_dataset

from trl_sdpo.recsys import Interactions, prepare


WORDS = ["River", "Hotel", "Train", "Summer", "Light", "Mile"]
TITLES = [f"{first} {second} ({1950 + 2 * number})" for number, (first, second) in enumerate(
    (first, second) for first in WORDS for second in WORDS[:5]
)]  # fmt: skip
IDS = [100 + number for number in range(len(TITLES))]


def make_interactions() -> Interactions:
    """12 users with 16 of 30 items each, one after the other."""
    generator = np.random.default_rng(0)
    items = np.concatenate([generator.permutation(IDS)[:16] for _ in range(12)])
    users = np.repeat(np.arange(12), 16)
    events = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(len(items)) * 10})
    return Interactions(events, pl.DataFrame({"item_id": IDS, "title": TITLES}), "tiny")


class Prepared:
    """Makes the directory of a data set, and loads it."""

    def __init__(self, tmp_path_factory):
        self.tmp_path_factory, self.made = tmp_path_factory, {}

    def __call__(self, template="watched", style="history", **options):
        key = (template, style, *options.items())
        if key not in self.made:
            folder = self.tmp_path_factory.mktemp("data") / "set"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("trl_sdpo.recsys.records.preparation.plot_report", lambda *args: False)  # takes a second
                prepare(
                    make_interactions(), folder, num_candidates=5, template=template, prompt_style=style,
                    num_workers=1, domain="movies", history_size=4, **options,
                )  # fmt: skip
            cache = self.tmp_path_factory.mktemp("cache")
            self.made[key] = folder, load_dataset(str(folder), cache_dir=str(cache))
        return self.made[key]

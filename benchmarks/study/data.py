"""Interactions with attributes, and the records of a data set in one of its wordings."""

import io
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import polars as pl
from datasets import Dataset, DatasetDict

from trl_sdpo.evaluation.baselines import consumed_items
from trl_sdpo.pipeline import Run
from trl_sdpo.recsys import Interactions, build_preference_dataset, build_sequences, load_source, temporal_split
from trl_sdpo.recsys.interactions.attributes import most_frequent, with_attributes
from trl_sdpo.recsys.interactions.published import fetch_source
from trl_sdpo.recsys.interactions.readers.release_files import open_release
from trl_sdpo.recsys.records.recommender_files import Catalogue, load_recommender_files

from .plan import ATTRIBUTES, HISTORY_SIZE, NEGATIVES, NUM_CANDIDATES, SEED, Size, Source


_TAGGED, _TAGS = "user_taggedartists.dat", "tags.dat"


def load_interactions(source: Source, path: Path | None) -> Interactions:
    """
    A data set with the attributes that its prompts show.

    Args:
        source ([`Source`]):
            The data set.
        path (`Path`, *optional*):
            Its files. By default they are downloaded once and cached.

    Returns:
        [`~trl_sdpo.recsys.Interactions`]: The items of films with `decade`, artists with the `tags` of the training period.
    """
    if source.source == "lastfm":
        path = fetch_source(source.source) if path is None else path
        interactions = load_source(source.source, path)
        return replace(interactions, items=with_attributes(interactions.items, training_tags(interactions, path)))
    interactions = load_source(source.source, path, attributes=source.attributes)
    decade = (pl.col("year") // 10 * 10).cast(pl.String) + "s"
    return replace(interactions, items=interactions.items.with_columns(decade.alias("decade")))


def training_tags(interactions: Interactions, path: Path) -> pl.DataFrame:
    """
    For every artist of HetRec 2011 the words that it was tagged with in the training period, the most frequent first.

    An event is that a user tagged an artist, so the tags of later are the events of validation and test themselves.

    Args:
        interactions ([`~trl_sdpo.recsys.Interactions`]):
            The events.
        path (`Path`):
            Folder or zip of the release.

    Returns:
        `polars.DataFrame`: `item_id` and a list of texts in the column `tags`.
    """
    events = temporal_split(build_sequences(interactions, seed=SEED))
    last = events.filter(pl.col("split") == "train")["timestamp"].max()
    _, files = open_release(path, ((_TAGGED, _TAGS),))

    def read(name: str) -> pl.DataFrame:
        content = files[name][1]
        text = (content if isinstance(content, bytes) else content.read_bytes()).decode("latin-1")
        return pl.read_csv(io.StringIO(text.replace("\r", "")), separator="\t", quote_char=None)

    given, words = read(_TAGGED), read(_TAGS)
    given = given.filter(pl.datetime("year", "month", "day").dt.epoch("s") <= last)
    pairs = given.join(words, on="tagID").select(
        pl.col("artistID").alias("item_id"), pl.col("tagValue").cast(pl.String).alias("tags")
    )
    return most_frequent(pairs, "tags")


class Setting:
    """
    A data set in one wording: its records, its catalogue, and the directory of its stages.

    Args:
        source ([`Source`]):
            The data set.
        size ([`Size`]):
            How large the study is.
        interactions ([`~trl_sdpo.recsys.Interactions`]):
            See [`load_interactions`].
        form (`str`):
            `"attributes"` before the titles, or `"titles"` alone.
        directory (`Path`):
            Where everything goes.
    """

    def __init__(self, source: Source, size: Size, interactions: Interactions, form: str, directory: Path):
        self.source, self.size, self.interactions, self.form = source, size, interactions, form
        self.run = Run(directory / form)
        shown = {"item_format": source.item_format, "completion_format": source.item_format}
        self.options = {
            "seed": SEED,
            "history_size": HISTORY_SIZE,
            "num_candidates": NUM_CANDIDATES,
            "max_validation_records": size.validation_records,
            "max_test_records": size.test_records,
            **source.options,
            **(shown if form == ATTRIBUTES else {}),
        }
        self.records = self.run.prepare(interactions, **self.options)
        self.files = load_recommender_files(self.run.data)

    @property
    def directory(self) -> Path:
        """The directory of all stages."""
        return self.run.directory

    @property
    def catalogue(self) -> Catalogue:
        """All items, with their training events."""
        return self.files.catalogue

    def held_out(self, split: str) -> Dataset:
        """Records of `"validation"`, `"test"`, of these among cold candidates, or those that the catalogue is ranked for."""
        if split.startswith("cold-"):
            return self.cold[split.removeprefix("cold-")]
        if split == "catalogue":
            return self.records["test"].select(range(min(self.size.catalogue_records, len(self.records["test"]))))
        return self.records[split]

    def excluded(self) -> list[list[str]]:
        """What each user of the records of `"catalogue"` had before, which no list from it holds."""
        return consumed_items(self.held_out("catalogue"))[0]

    def preference_records(self, negatives: str, seed: int) -> Dataset:
        """Training records of the second stage: of a seed the same prompts and targets, whatever their negatives."""
        if negatives not in self._pools:
            options = {**self.options, **NEGATIVES[negatives], "max_validation_records": 1, "max_test_records": 1}
            dataset, _ = build_preference_dataset(self.interactions, **options)
            self._pools[negatives] = dataset["train"]
        records = self._pools[negatives].shuffle(seed=seed)
        return records.select(range(min(self.size.preference_records, len(records))))

    @cached_property
    def _pools(self) -> dict[str, Dataset]:
        return {"uniform": self.records["train"]}

    @cached_property
    def cold(self) -> DatasetDict:
        """Validation and test records whose candidates are all without a training event, the target too."""
        sizes = {"max_validation_records": self.size.cold_records // 2, "max_test_records": self.size.cold_records}
        options = {**self.options, **sizes, "eval_candidates": "cold", "max_train_records": 1}
        return build_preference_dataset(self.interactions, **options)[0]

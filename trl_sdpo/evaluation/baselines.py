"""Baselines, and scores of any system, in every protocol: as scores of candidates, as answers, and as lists."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer

from ..recsys.baselines.content import content_scorer
from ..recsys.baselines.counting import cooccurrence_scorer, events_of_records, item_knn_scorer, popularity_scorer
from ..recsys.baselines.scores import Scorer
from ..recsys.metrics.columns import read_columns
from ..recsys.metrics.ranking import ranks
from ..recsys.records.recommender_files import Catalogue, RecommenderConfig
from ..scoring.title_embeddings import title_embeddings


TEXT_BASELINES = ("text", "sasrec-text")
# Of what is known of items: they need a catalogue.
CONTENT_BASELINES = ("content", *TEXT_BASELINES)
BASELINES = ("popularity", "cooccurrence", "item-knn", "sasrec", "gru4rec", *CONTENT_BASELINES)
_RECORDS_AT_ONCE = 128


def train_baseline(
    name: str,
    train: Dataset,
    validation: Dataset | None = None,
    catalogue: Catalogue | None = None,
    *,
    seed: int,
    vectors: Mapping[str, np.ndarray] | None = None,
) -> Scorer:
    """
    A baseline of the events that training records hold, see docs/baselines.md.

    Args:
        name (`str`):
            One of `BASELINES`.
        train (`Dataset`):
            The training records, see [`events_of_records`].
        validation (`Dataset`, *optional*):
            The validation records, by which `"sasrec"`, `"sasrec-text"` and `"gru4rec"` choose their epoch.
        catalogue ([`Catalogue`], *optional*):
            With training counts, which `"popularity"` takes where they are there: they are of all training events. With
            the attributes of items for `"content"`.
        seed (`int`):
            Seed of the training.
        vectors (`Mapping[str, numpy.ndarray]`, *optional*):
            A vector for each item id, see [`title_vectors`], for `"text"` and `"sasrec-text"`.

    Returns:
        `Callable`: A scorer, see [`score_records`].

    Raises:
        ValueError: there is no such baseline, the records lack a column, or there is no catalogue or vector for a baseline
            that needs it.
    """
    if name not in BASELINES:
        raise ValueError(f"{name!r} is none of the baselines {list(BASELINES)}.")
    if name in TEXT_BASELINES and vectors is None:
        raise ValueError(f"{name!r} needs vectors of items. Pass those of `title_vectors` (--text_model).")
    if name == "popularity" and catalogue is not None and catalogue.train_counts is not None:
        counts = dict(zip(catalogue.item_ids, catalogue.train_counts, strict=True))
        return lambda histories, candidates: [np.array([counts.get(item, 0) for item in row]) for row in candidates]
    events = events_of_records(train)
    counting = {"popularity": popularity_scorer, "cooccurrence": cooccurrence_scorer, "item-knn": item_knn_scorer}
    if name in counting:
        return counting[name](events)
    if name in ("content", "text"):
        return content_scorer(
            events, _items_of(name, catalogue), seed=seed, vectors=vectors if name == "text" else None
        )
    from ..recsys.baselines.sequential import train_gru4rec, train_sasrec

    options = {"seed": seed, "validation": None if validation is None else validation[:]}
    if name == "gru4rec":
        return train_gru4rec(events, **options)
    return train_sasrec(events, **options, item_embeddings=vectors if name == "sasrec-text" else None)


def _items_of(name: str, catalogue: Catalogue | None) -> pl.DataFrame:
    """The items as [`content_scorer`] takes them: with all that is known of them, or for `"text"` with nothing else."""
    if catalogue is None:
        raise ValueError(f"{name!r} needs a catalogue. Make the records with `trl-sdpo prepare`, which writes one.")
    columns = {"item_id": catalogue.item_ids}
    if name == "content":
        columns |= {"title": catalogue.titles, **(catalogue.attributes or {})}
    return pl.DataFrame({key: list(values) for key, values in columns.items()}, strict=False)


def title_vectors(
    model: str, catalogue: Catalogue, config: RecommenderConfig | None = None, *, device: str | None = None
) -> dict[str, np.ndarray]:
    """
    A vector for each item of a catalogue, by what prompts show of it, see [`title_embeddings`].

    Args:
        model (`str`):
            Directory or Hub id of a language model, of an adapter, or of an encoder of sentences.
        catalogue ([`Catalogue`]):
            The items.
        config ([`RecommenderConfig`], *optional*):
            How prompts show items. By default their titles.
        device (`str`, *optional*):
            Where to. By default the CPU.

    Returns:
        `dict[str, numpy.ndarray]`: Vectors by item id.
    """
    texts = catalogue.titles
    if config is not None:
        texts = config.templates[0].shown(catalogue.titles, catalogue.attributes)
    encoder = AutoModel.from_pretrained(model).to(device or "cpu")
    vectors = title_embeddings(encoder, AutoTokenizer.from_pretrained(model), list(texts))
    return dict(zip(catalogue.item_ids, vectors, strict=True))


def answers_of_scores(scores: Sequence[np.ndarray], candidates: Sequence[Sequence[str]]) -> list[str]:
    """
    The answers of a system that scores candidates: the title of the best.

    Args:
        scores (`Sequence[numpy.ndarray]`):
            Of the candidates of each record, the target first.
        candidates (`Sequence[Sequence[str]]`):
            Their titles.

    Returns:
        `list[str]`: A title for each record; the target's where it is above all others, since ties count against it.

    Example:
        ```python
        >>> answers_of_scores([np.array([1.0, 1.0, 0.5])], [["Heat", "Ran", "Jaws"]])
        ['Ran']

        ```
    """
    hits = ranks(scores) == 1
    return [
        titles[0 if hit else 1 + int(np.argmax(row[1:]))]
        for hit, row, titles in zip(hits, scores, candidates, strict=True)
    ]


def lists_of_scorer(
    scorer: Scorer,
    records: Dataset,
    catalogue: Catalogue,
    top_k: int,
    exclude: Sequence[Sequence[str]] | None = None,
) -> list[list[str]]:
    """
    The best items of the whole catalogue for each record.

    Args:
        scorer (`Callable`):
            See [`score_records`].
        records (`Dataset`):
            With `history_item_ids` and `item_id`. The target is read only to count ties against it.
        catalogue ([`Catalogue`]):
            All items.
        top_k (`int`):
            Length of the lists.
        exclude (`Sequence[Sequence[str]]`, *optional*):
            For each record the item ids that are left out.

    Returns:
        `list[list[str]]`: Item ids for each record, the best first; fewer than `top_k` where no more are left.
    """
    items = list(catalogue.item_ids)
    places = {item: place for place, item in enumerate(items)}
    histories = [list(map(str, row)) for row in records["history_item_ids"]]
    targets = [places.get(str(item), -1) for item in records["item_id"]]
    lists = []
    for begin in range(0, len(histories), _RECORDS_AT_ONCE):
        some = histories[begin : begin + _RECORDS_AT_ONCE]
        for row, scores in enumerate(scorer(some, [items] * len(some)), start=begin):
            values = np.asarray(scores, dtype=np.float64).copy()
            values[
                [places[item] for item in (exclude[row] if exclude is not None else ()) if item in places]
            ] = -np.inf
            # of equal ones the target is the last
            best = np.lexsort((np.arange(len(items)) == targets[row], -values))[:top_k]
            lists.append([items[place] for place in best if values[place] > -np.inf])
    return lists


def consumed_items(records: Dataset, others: Sequence[Dataset] = ()) -> tuple[list[list[str]], bool]:
    """
    What the user of each record had before its target.

    Args:
        records (`Dataset`):
            With `consumed_item_ids`, which has all of it, or else `history_item_ids`, the last of it.
        others (`Sequence[Dataset]`):
            More records of the same users, such as those of other splits: with `user_id` and `position` their targets
            and histories say what was before.

    Returns:
        `tuple[list[list[str]], bool]`: Item ids for each record, and whether they are all that the user had.
    """
    consumed = records["consumed_item_ids"][:] if "consumed_item_ids" in records.column_names else [None]
    if None not in consumed:  # as in training records
        return [list(map(str, row)) for row in consumed], True
    histories = [list(map(str, row)) for row in records["history_item_ids"]]
    needed = ["user_id", "position", "item_id", "history_item_ids"]
    known = [_with_ends(one) for one in (records, *others) if set(needed) <= set(one.column_names)]
    if not known or not set(needed) <= set(records.column_names):
        return histories, False
    events = pl.concat([_events(one) for one in known]).unique()
    asked = known[0].select(pl.col("user_id").cast(pl.String), "end")
    before = (
        asked.with_row_index("row")
        .join(events, on="user_id")
        .filter(pl.col("place") < pl.col("end"))
        .group_by("row")
        .agg(pl.col("item").unique())
    )
    had = dict(zip(before["row"].to_list(), before["item"].to_list(), strict=True))
    return [list(dict.fromkeys([*row, *had.get(number, ())])) for number, row in enumerate(histories)], False


def _with_ends(records: Dataset) -> pl.DataFrame:
    """Records with `end`, how many events of the user were earlier than the target: not those of the same time."""
    names = ["user_id", "position", "item_id", "history_item_ids"]
    frame = read_columns(records, [*names, *(["num_earlier"] if "num_earlier" in records.column_names else [])])
    return frame.with_columns(pl.col("num_earlier" if "num_earlier" in frame.columns else "position").alias("end"))


def _events(frame: pl.DataFrame) -> pl.DataFrame:
    """Targets and items of histories, each with a place among the events that it was at the latest."""
    user = pl.col("user_id").cast(pl.String)
    targets = frame.select(user, pl.col("item_id").cast(pl.String).alias("item"), pl.col("position").alias("place"))
    items = pl.col("history_item_ids").cast(pl.List(pl.String)).alias("item")
    histories = frame.select(user, items, (pl.col("end") - 1).alias("place")).explode("item").drop_nulls()
    return pl.concat([targets, histories], how="vertical_relaxed")

"""From interactions to multi-preference records: prompt, chosen, and a list of rejected."""

import logging
from collections.abc import Sequence

import numpy as np
import polars as pl
from datasets import Dataset, DatasetDict

from ._streams import SUBSAMPLE_STREAM, TEMPLATE_STREAM, hash_keys, random_numbers, stream_keys
from .candidates import CANDIDATES, NEGATIVES, sample_negatives
from .interactions import ITEM_ID, TIMESTAMP, TITLE, USER_ID, Interactions
from .prompts import PromptTemplate, select_templates
from .sequences import POSITION, build_sequences_with_report
from .splits import SPLIT, SPLITS, temporal_split


logger = logging.getLogger(__name__)

_ROW = "row"


def build_preference_dataset(
    interactions: Interactions,
    *,
    seed: int,
    prompt_style: str = "history",
    template: str | PromptTemplate | None = None,
    history_size: int = 10,
    min_history: int = 3,
    num_candidates: int = 20,
    pool_size: int | None = None,
    min_rating: float | None = None,
    min_interactions: int = 1,
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1),
    max_train_records: int | None = None,
    max_validation_records: int | None = None,
    max_test_records: int | None = None,
    train_stride: int = 1,
    conversational: bool = False,
) -> tuple[DatasetDict, dict]:
    """
    Turn interactions into records of a history, the item that came next, and items that the user never took.

    The steps are those of the modules beside this one: [`build_sequences`], [`temporal_split`],
    [`sample_negatives`], [`PromptTemplate`]; what they promise and leak is said there. A history is the user's own
    events before the target, from whichever split. Negatives come from the items that have an event left after the
    filters, without any item that the user ever touched, filtered or not. The setting of the S-DPO paper
    (https://huggingface.co/papers/2406.09215) is `prompt_style="candidates"` with the defaults here.

    Args:
        interactions ([`Interactions`]):
            The source.
        seed (`int`):
            The seed of everything that is drawn.
        prompt_style (`str`, *optional*, defaults to `"history"`):
            `"history"`, or `"candidates"` to show the list in the prompt.
        template (`str` or [`PromptTemplate`], *optional*):
            A name, a template, or `"random"` for one of the style per record. By default the first of the style.
        history_size (`int`, *optional*, defaults to `10`):
            How many of the last titles the prompt holds at most.
        min_history (`int`, *optional*, defaults to `3`):
            Targets with fewer events before them are dropped and counted.
        num_candidates (`int`, *optional*, defaults to `20`):
            The length of the list: the target and `num_candidates - 1` negatives.
        pool_size (`int`, *optional*):
            How many rejected a training record has; by default `num_candidates - 1`, of which the list is the first.
            Records of the other splits have those of the list.
        min_rating (`float`, *optional*), min_interactions (`int`, *optional*, defaults to `1`):
            See [`build_sequences`].
        ratios (`tuple[float, float, float]`, *optional*, defaults to `(0.8, 0.1, 0.1)`):
            See [`temporal_split`]. A split with share 0 is left out.
        max_train_records, max_validation_records, max_test_records (`int`, *optional*):
            Keep this many of the split, drawn uniformly. A smaller number gives a subset of a larger one.
        train_stride (`int`, *optional*, defaults to `1`):
            Keep every so many-th training target of a user, counted back from the last one. With `history_size + 1`
            the windows of a user do not overlap.
        conversational (`bool`, *optional*, defaults to `False`):
            Make `prompt`, `chosen` and every rejected a list of messages. The title is the whole answer.

    Returns:
        `tuple[DatasetDict, dict]`: The data set, in order of user and position, with the columns `prompt`, `chosen`,
        `rejected`, `user_id`, `item_id` (of the target), `rejected_item_ids`, `history_item_ids` (oldest first),
        `candidates` (titles in the order of the list), `timestamp`, `position`; and a report that counts, per split,
        targets, what was dropped and why, records, users and items.

    Raises:
        ValueError: an option is out of range, the source has no time, a split comes out empty, or a user has too few
            items to draw from.

    Example:
        ```python
        from trl_sdpo.recsys import build_preference_dataset, load_movielens

        dataset, report = build_preference_dataset(load_movielens("ml-100k.zip"), seed=0)
        dataset["train"][0]["chosen"]
        ```
    """
    _check_options(history_size, min_history, num_candidates, pool_size, train_stride)
    templates = select_templates(prompt_style, template)
    sequences, source_report = build_sequences_with_report(
        interactions, min_rating=min_rating, min_interactions=min_interactions
    )
    events = temporal_split(sequences, ratios).with_row_index(_ROW)
    catalogue = interactions.items.join(events, on=ITEM_ID, how="semi")
    report = {"source": interactions.name, "seed": seed, **source_report}
    limits = (max_train_records, max_validation_records, max_test_records)
    dataset = DatasetDict()
    for split, ratio, limit in zip(SPLITS, ratios, limits, strict=True):
        if ratio == 0:
            continue
        stride = train_stride if split == "train" else 1
        targets, report[split] = _select_targets(events, split, min_history, stride, limit, seed)
        pool = pool_size if split == "train" else None
        drawn = sample_negatives(
            targets, interactions.events, catalogue, num_negatives=num_candidates - 1, seed=seed, pool_size=pool
        )
        records = _records(drawn, events, catalogue, templates, history_size, seed, conversational)
        dataset[split] = Dataset.from_dict(records)
    logger.info("%s: records: %s", interactions.name, report)
    return dataset, report


def _check_options(history_size, min_history, num_candidates, pool_size, train_stride) -> None:
    lowest = {"history_size": 1, "min_history": 1, "num_candidates": 2, "train_stride": 1}
    values = {
        "history_size": history_size,
        "min_history": min_history,
        "num_candidates": num_candidates,
        "train_stride": train_stride,
    }
    for name, value in values.items():
        if value < lowest[name]:
            raise ValueError(f"{name}={value} is below {lowest[name]}. Pass at least {lowest[name]}.")
    if pool_size is not None and pool_size < num_candidates - 1:
        raise ValueError(
            f"pool_size={pool_size} is below the {num_candidates - 1} negatives of the list. Pass at least that many, "
            "or None."
        )


def _select_targets(
    events: pl.DataFrame, split: str, min_history: int, stride: int, limit: int | None, seed: int
) -> tuple[pl.DataFrame, dict[str, int]]:
    if limit is not None and limit < 1:
        raise ValueError(f"max_{split}_records={limit} is below 1. Pass None for all, or a ratio of 0 for no split.")
    targets = events.filter(pl.col(SPLIT) == split)
    report = {"targets": targets.height}
    long_enough = targets.filter(pl.col(POSITION) >= min_history)
    report["dropped_short_history"] = targets.height - long_enough.height
    # From the last one back, so that every user keeps the target with the longest history.
    from_last = pl.int_range(pl.len()).reverse().over(USER_ID)
    strided = long_enough.filter(from_last % stride == 0)
    report["dropped_by_stride"] = long_enough.height - strided.height
    kept = strided
    if limit is not None and limit < strided.height:
        # The smallest of numbers that belong to (seed, user, position), so independent of the other targets.
        keys = stream_keys(seed, SUBSAMPLE_STREAM, hash_keys(strided[USER_ID]), strided[POSITION].to_numpy())
        kept = strided[np.sort(np.argsort(random_numbers(keys, 1)[:, 0], kind="stable")[:limit])]
    report["dropped_by_subsampling"] = strided.height - kept.height
    if kept.is_empty():
        raise ValueError(
            f"split '{split}' has no record: {report}. Lower min_history={min_history}, change the ratios, or use "
            "more data."
        )
    report |= {"records": kept.height, "users": kept[USER_ID].n_unique(), "items": kept[ITEM_ID].n_unique()}
    return kept, report


def _records(
    drawn: pl.DataFrame,
    events: pl.DataFrame,
    catalogue: pl.DataFrame,
    templates: tuple[PromptTemplate, ...],
    history_size: int,
    seed: int,
    conversational: bool,
) -> dict[str, list]:
    histories = _histories(drawn, events, history_size)
    codes = dict(zip(catalogue[ITEM_ID].to_list(), range(catalogue.height), strict=True))
    titles = catalogue[TITLE].to_numpy().astype(object)
    shown = titles[_encode(drawn[CANDIDATES], codes)].tolist()
    past = (titles[[codes[item] for item in history]].tolist() for history in histories)
    keys = stream_keys(seed, TEMPLATE_STREAM, hash_keys(drawn[USER_ID]), drawn[POSITION].to_numpy())
    wording = (random_numbers(keys, 1)[:, 0] % np.uint64(len(templates))).astype(np.int64)
    prompts = [templates[w].render(*texts) for w, *texts in zip(wording, past, shown, strict=True)]
    completions = np.array(
        [[title if conversational else template.complete(title) for title in titles] for template in templates],
        dtype=object,
    )
    chosen = completions[wording, _encode(drawn[ITEM_ID], codes)].tolist()
    rejected = completions[wording[:, None], _encode(drawn[NEGATIVES], codes)].tolist()
    if conversational:
        prompts = [_message("user", text) for text in prompts]
        chosen = [_message("assistant", text) for text in chosen]
        rejected = [[_message("assistant", text) for text in texts] for texts in rejected]
    return {
        "prompt": prompts,
        "chosen": chosen,
        "rejected": rejected,
        USER_ID: drawn[USER_ID].to_list(),
        ITEM_ID: drawn[ITEM_ID].to_list(),
        "rejected_item_ids": drawn[NEGATIVES].to_list(),
        "history_item_ids": histories,
        "candidates": shown,
        TIMESTAMP: drawn[TIMESTAMP].to_list(),
        POSITION: drawn[POSITION].to_list(),
    }


def _histories(drawn: pl.DataFrame, events: pl.DataFrame, history_size: int) -> list[list]:
    # The events of a user are neighbours in `events`, so the history of a target is a slice that ends before it.
    lengths = drawn[POSITION].clip(upper_bound=history_size)
    slices = pl.DataFrame({"end": drawn[_ROW].cast(pl.Int64), "length": lengths})
    rows = slices.select(pl.int_ranges(pl.col("end") - pl.col("length"), "end").alias("rows"))["rows"]
    items = events[ITEM_ID].gather(rows.explode())
    owner = np.repeat(np.arange(len(rows)), lengths.to_numpy())
    grouped = pl.DataFrame({"owner": owner, ITEM_ID: items}).group_by("owner", maintain_order=True).agg(ITEM_ID)
    return grouped[ITEM_ID].to_list()


def _encode(ids: pl.Series, codes: dict) -> np.ndarray:
    """Rows of the catalogue: shape `(n,)`, or `(n, k)` for lists of equal length."""
    flat = ids.explode() if isinstance(ids.dtype, pl.List) else ids
    result = flat.replace_strict(codes, return_dtype=pl.Int64).to_numpy()
    return result.reshape(len(ids), -1) if isinstance(ids.dtype, pl.List) else result


def _message(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def popularity_scores(train_events: pl.DataFrame, records: Dataset) -> np.ndarray | list[np.ndarray]:
    """
    The popularity baseline: score a candidate by its number of training events.

    Args:
        train_events (`polars.DataFrame`):
            The events to count, with `item_id`: those of the training split alone.
        records (`Dataset`, or `dict[str, Sequence]`):
            Records with `item_id` and `rejected_item_ids`, as [`build_preference_dataset`] makes them.

    Returns:
        `numpy.ndarray` or `list[numpy.ndarray]`: Per record the score of the target, then those of the rejected, for
        [`ranks`]: of shape `(n, 1 + K)`, or a list where K differs.

    Example:
        ```python
        >>> import polars as pl
        >>> train = pl.DataFrame({"item_id": [7, 7, 8]})
        >>> popularity_scores(train, {"item_id": [8], "rejected_item_ids": [[7, 9]]}).tolist()
        [[1, 2, 0]]

        ```
    """
    targets, rejected = records[ITEM_ID], records["rejected_item_ids"]
    rows: Sequence[Sequence] = [[target, *others] for target, others in zip(targets, rejected, strict=True)]
    if not rows:
        raise ValueError("records: no rows. Pass at least one record.")
    counts = train_events.group_by(ITEM_ID).len()
    flat = pl.Series([item for row in rows for item in row], dtype=train_events[ITEM_ID].dtype)
    scores = flat.replace_strict(counts[ITEM_ID], counts["len"], default=0, return_dtype=pl.Int64).to_numpy()
    lengths = [len(row) for row in rows]
    if min(lengths) == max(lengths):
        return scores.reshape(len(rows), -1)
    return np.split(scores, np.cumsum(lengths)[:-1])

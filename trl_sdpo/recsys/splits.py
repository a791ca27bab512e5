"""Which events are for training, which for validation, which for the test."""

import logging
import math

import polars as pl

from .interactions import TIMESTAMP


logger = logging.getLogger(__name__)

SPLIT = "split"
SPLITS = ("train", "validation", "test")


def temporal_split(sequences: pl.DataFrame, ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> pl.DataFrame:
    """
    Split by time over all interactions of all users, as S-DPO does (https://huggingface.co/papers/2406.09215).

    All events of one second go to the same side, the later one, so training ends strictly before validation begins,
    and validation before the test.

    What it leaks: filters before it (`min_interactions`, the merging of repeats and titles) have seen the whole data,
    and so has the catalogue: items that appear only later are among the negatives of earlier targets. Negatives are
    items with which the user *never* interacts, which is known only at the end. How popular an item is in the test
    period is not seen. What it costs: users who come late have no training target, others no test target; a history
    may hold events of the split before.

    Args:
        sequences (`polars.DataFrame`):
            What [`build_sequences`] returns.
        ratios (`tuple[float, float, float]`, *optional*, defaults to `(0.8, 0.1, 0.1)`):
            Shares of train, validation and test. A share of 0 leaves that split out.

    Returns:
        `polars.DataFrame`: The same rows with a column `split`, one of `train`, `validation`, `test`.

    Raises:
        ValueError: the source has no time, the ratios are not three shares that make 1, or a split with a share above
            0 gets no event.

    Example:
        ```python
        >>> import polars as pl
        >>> sequences = pl.DataFrame({"user_id": [1] * 5, "timestamp": [10, 20, 30, 30, 40]})
        >>> temporal_split(sequences, ratios=(0.6, 0.2, 0.2))["split"].to_list()
        ['train', 'train', 'validation', 'validation', 'test']

        ```
    """
    if len(ratios) != 3 or any(ratio < 0 for ratio in ratios) or not math.isclose(sum(ratios), 1.0, abs_tol=1e-9):
        raise ValueError(f"ratios={ratios} are not three shares that make 1. Pass such as (0.8, 0.1, 0.1).")
    timeless = sequences[TIMESTAMP].null_count()
    if timeless:
        raise ValueError(
            f"column '{TIMESTAMP}' is null in {timeless} of {sequences.height} rows: the source has no time, so it "
            "cannot be split by time. Use a source with times."
        )
    times = sequences[TIMESTAMP].sort()
    cuts = []
    for share in (ratios[0], ratios[0] + ratios[1]):
        index = round(share * len(times))
        # Behind the last event: everything stays on this side.
        cuts.append(times[index] if index < len(times) else times[-1] + 1)
    name = pl.when(pl.col(TIMESTAMP) < cuts[0]).then(pl.lit("train"))
    name = name.when(pl.col(TIMESTAMP) < cuts[1]).then(pl.lit("validation")).otherwise(pl.lit("test"))
    split = sequences.with_columns(name.alias(SPLIT))
    counts = {key: split.filter(pl.col(SPLIT) == key).height for key in SPLITS}
    for key, ratio in zip(SPLITS, ratios, strict=True):
        if ratio > 0 and not counts[key]:
            raise ValueError(
                f"split '{key}' gets none of {sequences.height} events, ratio {ratio}: too few events, or too many in "
                f"one second. Events per split: {counts}. Pass other ratios or more data."
            )
    logger.info("Temporal split at %s: %s events", cuts, counts)
    return split

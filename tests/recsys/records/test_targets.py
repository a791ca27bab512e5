import polars as pl
import pytest

from trl_sdpo.recsys.records.targets import parse_windows, select_targets


EVENTS = pl.DataFrame(
    {
        "user_id": [1] * 6 + [2] * 1 + [3] * 4,
        "item_id": list(range(11)),
        "position": [*range(6), 0, *range(4)],
        "split": ["train"] * 6 + ["train"] + ["train", "train", "train", "test"],
    }
)


def rows(split="train", **options):
    targets, report = select_targets(EVENTS, split, **{"min_history": 1, "seed": 0} | options)
    return targets.select("user_id", "position").rows(), report


def test_a_user_with_one_item_has_no_target():
    kept, report = rows()
    assert kept == [*((1, position) for position in range(1, 6)), (3, 1), (3, 2)]
    assert report == {
        "targets": 10,
        "dropped_short_history": 3,
        "dropped_by_stride": 0,
        "dropped_by_windows": 0,
        "dropped_by_subsampling": 0,
        "records": 7,
        "users": 2,
        "items": 7,
    }


def test_windows_are_the_last_of_a_user():
    assert rows(windows="last")[0] == [(1, 5), (3, 2)]
    kept, report = rows(windows=2)
    assert kept == [(1, 4), (1, 5), (3, 1), (3, 2)]
    assert report["dropped_by_windows"] == 3
    assert rows(windows="2")[0] == kept


def test_windows_are_taken_of_what_the_stride_leaves():
    assert rows(stride=2)[0] == [(1, 1), (1, 3), (1, 5), (3, 2)]
    assert rows(stride=2, windows=2)[0] == [(1, 3), (1, 5), (3, 2)]


def test_a_history_may_lie_in_another_split():
    assert rows("test", min_history=3)[0] == [(3, 3)]


@pytest.mark.parametrize("windows", ["first", 0, "0", -1, 1.5, "", None])
def test_what_is_no_number_of_windows(windows):
    with pytest.raises(ValueError, match="pass 'all', 'last', or the number"):
        parse_windows(windows)

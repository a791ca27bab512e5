import polars as pl
import pytest

from trl_sdpo.recsys import temporal_split


def split_of(times, ratios):
    frame = pl.DataFrame({"user_id": list(range(len(times))), "timestamp": times})
    return temporal_split(frame, ratios)["split"].to_list()


def test_shares_by_time_whatever_the_order_of_rows():
    times = [90, 10, 80, 20, 70, 30, 60, 40, 50, 100]
    expected = ["validation" if time == 90 else "test" if time == 100 else "train" for time in times]
    assert split_of(times, (0.8, 0.1, 0.1)) == expected


def test_events_of_one_second_go_to_the_later_side():
    assert (
        split_of([1, 2, 3, 3, 3, 4, 5, 5, 6, 7], (0.4, 0.3, 0.3)) == ["train"] * 2 + ["validation"] * 4 + ["test"] * 4
    )


def test_train_ends_before_validation_begins():
    times = [(7 * number * number) % 50 for number in range(400)]
    frame = pl.DataFrame({"timestamp": times})
    bounds = temporal_split(frame).group_by("split").agg(low=pl.min("timestamp"), high=pl.max("timestamp"))
    bounds = {name: (low, high) for name, low, high in bounds.rows()}
    assert bounds["train"][1] < bounds["validation"][0] <= bounds["validation"][1] < bounds["test"][0]


def test_a_share_of_0_leaves_the_split_out():
    assert split_of([1, 2, 3, 4], (0.75, 0, 0.25)) == ["train"] * 3 + ["test"]
    assert split_of([1, 2, 3, 4], (0.75, 0.25, 0)) == ["train"] * 3 + ["validation"]
    assert split_of([1, 2], (1.0, 0.0, 0.0)) == ["train"] * 2


def test_nothing_but_the_new_column_changes():
    frame = pl.DataFrame({"user_id": [2, 1], "timestamp": [2, 1], "position": [0, 0]})
    assert temporal_split(frame, (0.5, 0, 0.5)).drop("split").equals(frame)


def test_errors():
    with pytest.raises(ValueError, match="column 'timestamp' is null in 1 of 2 rows: the source has no time"):
        split_of([1, None], (0.8, 0.1, 0.1))
    with pytest.raises(ValueError, match=r"split 'train' gets none of 5 events, ratio 0\.8: .* in one second"):
        split_of([3] * 5, (0.8, 0.1, 0.1))
    with pytest.raises(ValueError, match="split 'validation' gets none of 2 events"):
        split_of([1, 2], (0.8, 0.1, 0.1))


@pytest.mark.parametrize("ratios", [(0.8, 0.1), (0.8, 0.1, 0.2), (1.2, -0.1, -0.1)])
def test_ratios_must_be_three_shares(ratios):
    with pytest.raises(ValueError, match="are not three shares that make 1"):
        split_of([1, 2, 3], ratios)

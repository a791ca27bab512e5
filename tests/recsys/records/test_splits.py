import polars as pl
import pytest

from trl_sdpo.recsys import leave_one_out_split, split_leaks, temporal_split, user_split


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


USERS = pl.DataFrame(
    {
        "user_id": [1, 1, 1, 1, 2, 2, 3, 4, 4, 4],
        "item_id": [5, 6, 7, 8, 5, 6, 5, 6, 7, 9],
        "timestamp": [10, 20, 30, 40, 1, 2, 3, 35, 50, 60],
    }
)


def test_leave_one_out_takes_the_last_two_of_users_with_three_events():
    split = leave_one_out_split(USERS)
    assert split["split"].to_list() == [
        *("train", "train", "validation", "test"),
        *("train", "train"),
        "train",
        *("train", "validation", "test"),
    ]
    # the event of user 4 at 35 is not before that of user 1 for validation at 30
    assert split_leaks(split) == {
        "train_events_after_evaluation_begins": 1,
        "users_in_train_and_evaluation": 2,
        "evaluation_items_without_train_event": 3,
    }


def test_leave_one_out_of_a_source_without_time_needs_the_order_of_the_file():
    timeless = USERS.with_columns(timestamp=pl.lit(None, dtype=pl.Int64))
    with pytest.raises(ValueError, match=r"null in 10 of 10 rows.*Pass file_order=True"):
        leave_one_out_split(timeless)
    split = leave_one_out_split(timeless, file_order=True)
    assert split["split"].to_list() == leave_one_out_split(USERS)["split"].to_list()
    assert split_leaks(split)["train_events_after_evaluation_begins"] is None


def test_leave_one_out_without_anybody_to_test():
    with pytest.raises(ValueError, match="none of 2 users has three events"):
        leave_one_out_split(USERS.filter(pl.col("user_id").is_in([2, 3])))


def test_users_go_whole_to_one_split_in_the_order_of_their_first_events():
    split = user_split(USERS, (0.5, 0.25, 0.25))
    by_user = dict(split.select("user_id", pl.col("split").cast(pl.String)).unique().rows())
    assert by_user == {2: "train", 3: "train", 1: "validation", 4: "test"}
    assert split.drop("split").equals(USERS)
    assert split_leaks(split)["users_in_train_and_evaluation"] == 0


def test_users_drawn_by_the_seed():
    many = pl.DataFrame({"user_id": range(200), "item_id": [1] * 200, "timestamp": range(200)})
    splits = [user_split(many, seed=seed)["split"].to_list() for seed in (0, 0, 1)]
    assert [splits[0].count(name) for name in ("train", "validation", "test")] == [160, 20, 20]
    assert splits[0] == splits[1] != splits[2]
    # where a user goes does not hang on the order of the rows
    assert user_split(many.reverse(), seed=0)["split"].to_list() == splits[0][::-1]


def test_users_without_time_need_a_seed():
    timeless = USERS.with_columns(timestamp=pl.lit(None, dtype=pl.Int64))
    with pytest.raises(ValueError, match="Pass a seed to draw the users"):
        user_split(timeless)
    assert user_split(timeless, (0.5, 0.25, 0.25), seed=0)["split"].null_count() == 0


def test_sizes_of_splits_by_user():
    many = pl.DataFrame({"user_id": range(943), "item_id": [1] * 943, "timestamp": range(943)})
    sizes = dict(user_split(many).group_by("split").len().rows())
    assert sizes == {"train": 754, "validation": 94, "test": 95}
    assert user_split(many, (0.5, 0.5, 0))["split"].to_list().count("test") == 0
    with pytest.raises(ValueError, match="split 'validation' gets none of 4 users"):
        user_split(USERS, (0.8, 0.1, 0.1))


def test_nothing_of_a_temporal_split_comes_after():
    assert split_leaks(temporal_split(USERS, (0.6, 0.2, 0.2)))["train_events_after_evaluation_begins"] == 0


def test_cuts_are_rounded_to_the_nearest_event_and_user():
    """.6 and .8 of 8 events are 4.8 and 6.4; .6 and .2 of 6 users are 3.6 and 1.2."""
    events = pl.DataFrame({"user_id": range(8), "timestamp": range(8)})
    assert temporal_split(events, (0.6, 0.2, 0.2))["split"].to_list() == ["train"] * 5 + ["validation"] + ["test"] * 2
    users = events.head(6)
    assert user_split(users, (0.6, 0.2, 0.2))["split"].to_list() == ["train"] * 4 + ["validation", "test"]


def test_users_stand_in_the_order_of_their_first_events_not_their_last():
    sequences = pl.DataFrame({"user_id": [1, 1, 2, 2, 3, 3], "timestamp": [10, 90, 20, 80, 30, 70]})
    split = user_split(sequences, (0.34, 0.33, 0.33))
    assert split["split"].to_list() == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2

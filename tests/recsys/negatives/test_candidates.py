import numpy as np
import polars as pl
import pytest

from trl_sdpo.recsys import sample_negatives
from trl_sdpo.recsys.interactions.random_streams import hash_keys, random_numbers, stream_keys


def make_items(count, first=0):
    ids = list(range(first, first + count))
    return pl.DataFrame({"item_id": ids, "title": [f"Title {number}" for number in ids]})


def make_events(users=40, events=12, items=60, seed=0):
    generator = np.random.default_rng(seed)
    taken = np.concatenate([generator.permutation(items)[:events] for _ in range(users)])
    user = np.repeat(np.arange(users), events)
    return pl.DataFrame({"user_id": user, "item_id": taken, "position": np.tile(np.arange(events), users)})


def test_splitmix64_against_the_reference():
    # The first outputs of the public-domain reference (Vigna, splitmix64.c) for the state 1234567.
    state = np.array([1234567], dtype=np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert random_numbers(state, 3)[0].tolist() == expected
    assert random_numbers(state, 2, start=1)[0].tolist() == expected[1:]


def test_draws_are_the_same_on_every_platform():
    # Worked out once; a change here changes every data set that users have built.
    targets = pl.DataFrame({"user_id": [3, 3], "position": [0, 1], "item_id": [10, 11]})
    drawn = sample_negatives(targets, targets, make_items(60), num_negatives=4, seed=7)
    assert drawn["negatives"].to_list() == PINNED_NEGATIVES
    assert drawn["candidates"].to_list() == PINNED_CANDIDATES
    assert hash_keys(pl.Series(["user-é", "b", "user-é"])).tolist() == PINNED_KEYS


PINNED_NEGATIVES = [[26, 16, 20, 47], [22, 24, 43, 14]]
PINNED_CANDIDATES = [[47, 20, 10, 16, 26], [43, 22, 24, 11, 14]]
PINNED_KEYS = [3789038376841295175, 8453121595177857668, 3789038376841295175]


def test_negatives_are_distinct_never_interacted_and_the_list_holds_the_target():
    events = make_events()
    items = make_items(60)
    drawn = sample_negatives(events, events, items, num_negatives=9, pool_size=30, seed=0)
    seen = {user: set(own) for user, own in events.group_by("user_id").agg("item_id").rows()}
    for row in drawn.rows(named=True):
        assert len(set(row["negatives"])) == 30
        assert not seen[row["user_id"]] & set(row["negatives"])
        assert len(row["candidates"]) == 10
        assert set(row["candidates"]) == {row["item_id"], *row["negatives"][:9]}
    assert drawn.select(events.columns).equals(events)


def test_the_list_is_the_same_whatever_the_size_of_the_pool():
    events = make_events()
    small = sample_negatives(events, events, make_items(60), num_negatives=9, seed=0)
    large = sample_negatives(events, events, make_items(60), num_negatives=9, pool_size=40, seed=0)
    assert small["candidates"].equals(large["candidates"])
    assert small["negatives"].equals(large["negatives"].list.head(9))


def test_a_draw_depends_on_nothing_but_seed_user_and_position():
    events, items = make_events(), make_items(60)
    drawn = sample_negatives(events, events, items, seed=3)
    # Neither on other targets and the order of rows, of targets, events and items ...
    some = events.sample(50, shuffle=True, seed=1)
    again = sample_negatives(some, events.reverse(), items.reverse(), seed=3)
    expected = some.join(drawn, on=["user_id", "position"], maintain_order="left")
    assert again["negatives"].equals(expected["negatives"])
    assert again["candidates"].equals(expected["candidates"])
    # ... nor on the target: user 0 of another world took other items at the same positions.
    swapped = events.with_columns(pl.col("item_id").reverse().over("user_id"))
    other = sample_negatives(swapped, events, items, seed=3)
    assert other["negatives"].equals(drawn["negatives"])
    slots = [
        [row.index(target) for row, target in frame.select("candidates", "item_id").rows()] for frame in (drawn, other)
    ]
    assert slots[0] == slots[1]


def test_another_target_changes_only_what_it_excludes():
    items = make_items(30)
    nothing = pl.DataFrame({"user_id": [99], "item_id": [0]})
    target = pl.DataFrame({"user_id": [1], "position": [5], "item_id": [0]})
    full = sample_negatives(target, nothing, items, num_negatives=29, seed=0)["negatives"][0].to_list()
    for item in (full[0], full[3], full[20]):
        other = sample_negatives(target.with_columns(item_id=pl.lit(item)), nothing, items, num_negatives=10, seed=0)
        stream = other["negatives"][0].to_list()
        # The same order of items, without the new target and with the old one where the stream has it.
        assert [one for one in stream if one != 0] == [one for one in full if one != item][: 10 - (0 in stream)]


@pytest.mark.parametrize("change", [{"seed": 1}, {"user_id": 1}, {"position": 1}])
def test_seed_user_and_position_each_change_the_draw(change):
    items, nothing = make_items(1000), pl.DataFrame({"user_id": [99], "item_id": [0]})
    base = {"seed": 0, "user_id": 0, "position": 0}

    def draw(seed, user_id, position):
        target = pl.DataFrame({"user_id": [user_id], "position": [position], "item_id": [0]})
        return sample_negatives(target, nothing, items, seed=seed)["negatives"][0].to_list()

    assert len(set(draw(**base)) & set(draw(**base | change))) <= 5


def test_string_ids():
    events = make_events().with_columns(
        pl.format("u{}", "user_id").alias("user_id"), pl.format("i{}", "item_id").alias("item_id")
    )
    items = make_items(60).with_columns(pl.format("i{}", "item_id").alias("item_id"))
    drawn = sample_negatives(events, events, items, seed=0)
    assert drawn["candidates"].list.len().unique().to_list() == [20]
    first = drawn.row(0, named=True)
    assert not set(events.filter(pl.col("user_id") == first["user_id"])["item_id"]) & set(first["negatives"])


def chi_square(counts):
    expected = counts.sum() / len(counts)
    return ((counts - expected) ** 2 / expected).sum()


def test_negatives_and_the_place_of_the_target_are_uniform():
    users = np.repeat(np.arange(2000), 3)
    targets = pl.DataFrame({"user_id": users, "position": np.tile(np.arange(3), 2000), "item_id": users % 50})
    nothing = pl.DataFrame({"user_id": [-1], "item_id": [0]})
    drawn = sample_negatives(targets, nothing, make_items(50), num_negatives=9, seed=0)
    counts = np.bincount(drawn["negatives"].explode().to_numpy(), minlength=50)
    # The 99.9% points of chi-square are 85.4 (49 degrees of freedom) and 27.9 (9).
    assert chi_square(counts) < 85.4
    first = np.bincount(drawn["negatives"].list.first().to_numpy(), minlength=50)
    assert chi_square(first) < 85.4
    slots = [row.index(target) for row, target in drawn.select("candidates", "item_id").rows()]
    assert chi_square(np.bincount(slots, minlength=10)) < 27.9
    # The order of the list has nothing to do with the order of the draw either.
    places = [row.index(negatives[0]) for row, negatives in drawn.select("candidates", "negatives").rows()]
    assert chi_square(np.bincount(places, minlength=10)) < 27.9


def test_no_leak_records_with_one_target_share_distractors_and_places_at_chance():
    targets = pl.DataFrame({"user_id": np.arange(300), "position": np.arange(300) % 7, "item_id": np.zeros(300, int)})
    drawn = sample_negatives(targets, targets, make_items(201), num_negatives=19, seed=0)
    member = np.zeros((300, 201))
    for row, negatives in enumerate(drawn["negatives"].to_list()):
        member[row, negatives] = 1
    pairs = np.triu_indices(300, 1)
    shared = (member @ member.T)[pairs].mean() / 19
    # 19 of 200 items each: a distractor is in the other list with probability 19 / 200.
    assert shared == pytest.approx(19 / 200, abs=0.002)
    slots = np.array([row.index(0) for row in drawn["candidates"].to_list()])
    assert (slots[pairs[0]] == slots[pairs[1]]).mean() == pytest.approx(1 / 20, abs=0.005)


def test_a_user_who_leaves_just_enough_gets_all_of_it():
    events = pl.DataFrame({"user_id": [1] * 295, "item_id": list(range(295)), "position": list(range(295))})
    drawn = sample_negatives(events.tail(3), events, make_items(300), num_negatives=5, seed=0)
    assert [sorted(row) for row in drawn["negatives"].to_list()] == [[295, 296, 297, 298, 299]] * 3


def test_a_user_with_too_few_items_is_named():
    events = pl.DataFrame({"user_id": [4, 5, 5, 5], "item_id": [1, 0, 1, 2], "position": [0, 0, 1, 2]})
    message = r"targets: row 1, column 'user_id': user 5 leaves 2 of 5 items to draw 3 negatives from \(3 such rows\)"
    with pytest.raises(ValueError, match=message):
        sample_negatives(events, events, make_items(5), num_negatives=3, seed=0)


def test_a_target_without_an_event_takes_one_item_too():
    target = pl.DataFrame({"user_id": [1], "position": [0], "item_id": [0]})
    nothing = pl.DataFrame({"user_id": [2], "item_id": [0]})
    with pytest.raises(ValueError, match="user 1 leaves 3 of 4 items to draw 4 negatives"):
        sample_negatives(target, nothing, make_items(4), num_negatives=4, seed=0)


def test_bad_input_is_named():
    events = make_events()
    items = make_items(60)
    with pytest.raises(ValueError, match=r"items: row 1, column 'title': 'Same' occurs .*resolve_duplicate_titles"):
        sample_negatives(events, events, items.with_columns(title=pl.lit("Same")), seed=0)
    with pytest.raises(ValueError, match="items: row 60, column 'item_id': 0 occurs"):
        sample_negatives(events, events, pl.concat([items, items]), seed=0)
    with pytest.raises(ValueError, match=r"column 'item_id': .* is not among the items"):
        sample_negatives(events, events, items.head(5), num_negatives=1, seed=0)
    with pytest.raises(ValueError, match="targets: no rows"):
        sample_negatives(events.clear(), events, items, seed=0)
    with pytest.raises(ValueError, match="num_negatives=19 and pool_size=5"):
        sample_negatives(events, events, items, pool_size=5, seed=0)
    with pytest.raises(ValueError, match="num_negatives=0"):
        sample_negatives(events, events, items, num_negatives=0, seed=0)
    with pytest.raises(ValueError, match="seed=-1 is negative"):
        sample_negatives(events, events, items, seed=-1)


def test_streams_differ():
    users, positions = np.arange(5, dtype=np.uint64), np.arange(5)
    keys = {tuple(stream_keys(0, stream, users, positions).tolist()) for stream in range(4)}
    assert len(keys) == 4

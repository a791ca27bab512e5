"""Order, phases and existence: what records promise, against a plain re-calculation from the events."""

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trl_sdpo.recsys import Interactions, build_preference_dataset
from trl_sdpo.recsys.records.phases import available_from


TOO_SMALL = ("no event is left", "has no record", "gets none", "items to draw", "three events", "that existed by then")
SPLITS = ("train", "validation", "test")
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def sources(draw):
    """Few users, items and times, so that ties, repeats, firsts and cold items are the rule."""
    num_users, num_items = draw(st.integers(3, 6)), draw(st.integers(6, 16))
    last = draw(st.integers(4, 40))
    event = st.tuples(
        st.integers(0, num_users - 1), st.integers(0, num_items - 1), st.integers(0, last), st.integers(1, 5)
    )
    rows = draw(st.lists(event, min_size=30, max_size=90))
    rows = list({row[:3]: row for row in rows}.values())
    schema = {"user_id": pl.Int64, "item_id": pl.Int64, "timestamp": pl.Int64, "rating": pl.Float64}
    items = pl.DataFrame({"item_id": range(num_items), "title": [f"Film {number}" for number in range(num_items)]})
    return Interactions(pl.DataFrame(rows, schema=schema, orient="row"), items, "drawn")


def build(interactions, **options):
    """Records, or `None` for a source that is too small for its options."""
    try:
        return build_preference_dataset(interactions, **options)
    except ValueError as error:
        if not any(words in str(error) for words in TOO_SMALL):
            raise
        return None


class Plain:
    """The same promises in loops over rows."""

    def __init__(self, interactions, min_rating):
        self.rows = interactions.events.rows()
        self.liked = {}
        for user, item, time, rating in sorted(self.rows, key=lambda row: row[2]):
            if min_rating is None or rating >= min_rating:
                self.liked.setdefault((user, item), time)
        self.catalogue = {item for _, item in self.liked}

    def own(self, user):
        return {item: time for (owner, item), time in self.liked.items() if owner == user}

    def earlier(self, user, time):
        return {item: at for item, at in self.own(user).items() if at < time}

    def cuts(self, ratios):
        times = sorted(self.liked.values())
        places = [round(ratios[0] * len(times)), round((ratios[0] + ratios[1]) * len(times))]
        return [times[place] for place in places]

    def touched(self, user, end):
        """What the user touched before a time, whatever its rating."""
        return {item for owner, item, time, _ in self.rows if owner == user and (end is None or time < end)}

    def there(self, item, time):
        return any(other == item and at < time for _, other, at, _ in self.rows)

    def allowed(self, user, target, time, end, existence):
        items = self.catalogue - self.touched(user, end) - {target}
        return {item for item in items if existence == "off" or self.there(item, time)}


@QUICK
@given(sources(), st.integers(0, 3), st.integers(1, 5), st.integers(1, 3), st.sampled_from([None, 3.0]), st.booleans())
def test_records_of_the_temporal_split(interactions, seed, history_size, min_history, min_rating, first_event):
    existence = "first-event" if first_event else "off"
    options = {"history_size": history_size, "min_history": min_history, "min_rating": min_rating}
    made = build(interactions, seed=seed, num_candidates=4, existence=existence, ratios=(0.6, 0.2, 0.2), **options)
    if made is None:
        return
    plain = Plain(interactions, min_rating)
    cuts = plain.cuts((0.6, 0.2, 0.2))
    for split, begin, end in zip(SPLITS, [float("-inf"), *cuts], [*cuts, None], strict=True):
        expected = set()
        for (user, item), time in plain.liked.items():
            if begin <= time and (end is None or time < end) and len(plain.earlier(user, time)) >= min_history:
                enough = len(plain.allowed(user, item, time, end, existence)) >= 3
                if existence == "off" or (plain.there(item, time) and enough):
                    expected.add((user, item, time))
        records = made[0][split]
        assert set(zip(records["user_id"], records["item_id"], records["timestamp"], strict=True)) == expected
        assert len(records) == len(expected)
        for record in records:
            user, item, time = record["user_id"], record["item_id"], record["timestamp"]
            check_history(record["history_item_ids"], plain.earlier(user, time), history_size)
            assert set(record["rejected_item_ids"]) <= plain.allowed(user, item, time, end, existence)
            # all that the user had before, liked or not, and only of records that are evaluated
            before = plain.touched(user, time) & plain.catalogue
            consumed = record["consumed_item_ids"]
            assert (split == "train") == (consumed is None)
            assert split == "train" or (set(consumed) == before and len(consumed) == len(before))


def check_history(history, earlier, size):
    """The latest of what came before, in time, and nothing of the target's own time."""
    times = [earlier[item] for item in history]
    assert len(set(history)) == len(history) == min(size, len(earlier))
    assert times == sorted(times)
    assert all(time <= times[0] for item, time in earlier.items() if item not in history)


@QUICK
@given(sources(), st.integers(0, 3), st.sampled_from([None, 3.0]))
def test_records_of_leave_one_out(interactions, seed, min_rating):
    options = {"min_history": 1, "min_rating": min_rating, "num_candidates": 3, "history_size": 4}
    made = build(interactions, seed=seed, split="leave-one-out", **options)
    if made is None:
        return
    plain = Plain(interactions, min_rating)
    held = {name: {record["user_id"]: record for record in made[0][name]} for name in SPLITS[1:]}
    for split, records in made[0].items():
        for record in records:
            user, item, time = record["user_id"], record["item_id"], record["timestamp"]
            assert plain.liked[user, item] == time
            check_history(record["history_item_ids"], plain.earlier(user, time), 4)
            later = [at for at in plain.own(user).values() if at > time]
            assert len(later) <= {"train": len(later), "validation": 1, "test": 0}[split]
            # What the user touched before the next phase begins is no negative. Of a tie only the target itself is
            # known to be of the later phase.
            following = [held[name][user] for name in SPLITS[SPLITS.index(split) + 1 :] if user in held[name]]
            end = min([one["timestamp"] for one in following], default=None)
            if split == "test" or following:
                assert not plain.touched(user, end) & set(record["rejected_item_ids"])


@QUICK
@given(sources(), st.sampled_from(["phase", "ever"]))
def test_what_a_user_takes_later_may_be_a_negative_now(interactions, exclude_seen):
    """With as many negatives as there are, all that may be drawn are."""
    options = {"seed": 0, "num_candidates": 2, "min_history": 1, "exclude_seen": exclude_seen, "existence": "off"}
    options |= {"ratios": (0.6, 0.2, 0.2), "max_train_records": 1}
    made = build(interactions, **options)
    if made is None:
        return
    plain = Plain(interactions, None)
    end = plain.cuts((0.6, 0.2, 0.2))[0] if exclude_seen == "phase" else None
    (record,) = made[0]["train"]
    allowed = plain.allowed(record["user_id"], record["item_id"], record["timestamp"], end, "off")
    again = build(interactions, pool_size=len(allowed), **options)
    assert set(again[0]["train"][0]["rejected_item_ids"]) == allowed


@QUICK
@given(sources(), st.integers(0, 3))
def test_rows_in_another_order_give_the_same_records(interactions, seed):
    turned = Interactions(interactions.events.reverse(), interactions.items.reverse(), "drawn")
    ours, theirs = (build(source, seed=seed, num_candidates=3, min_history=1) for source in (interactions, turned))
    assert (ours is None) == (theirs is None)
    if ours is not None:
        assert ours[1] == theirs[1]
        assert all(ours[0][split].to_dict() == theirs[0][split].to_dict() for split in SPLITS)


def test_since_when_an_item_has_been_there():
    year = 31_536_000
    frame = pl.DataFrame({"user_id": [1, 2, 1, 1], "item_id": [7, 7, 8, 9], "timestamp": [50, 40, 2 * year, 3 * year]})
    catalogue = pl.DataFrame({"item_id": [7, 8, 9], "title": ["A (1980)", "B (1971)", "C"]})
    assert available_from(frame, catalogue, "off") is None
    # the second behind the first event, so that a target is there only if somebody met it before
    assert available_from(frame, catalogue, "first-event").tolist() == [41, 2 * year + 1, 3 * year + 1]
    # the year in the title where that is earlier
    assert available_from(frame, catalogue, "release-year").tolist() == [41, year, 3 * year + 1]


def test_a_year_has_four_digits_and_stands_at_the_end_of_the_title():
    titles = ["A (71)", "B (971)", "C (19711)", "D (1971) again", "E 1971", "F (1971)", "G ( 1971)"]
    frame = pl.DataFrame({"user_id": 1, "item_id": range(7), "timestamp": 3 * 31_536_000}, strict=False)
    catalogue = pl.DataFrame({"item_id": range(7), "title": titles})
    since = available_from(frame.select(pl.all().cast(pl.Int64)), catalogue, "release-year")
    assert since.tolist() == [31_536_000 if title == "F (1971)" else 3 * 31_536_000 + 1 for title in titles]

"""Counts of what records say of time, against the rows one by one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from trl_sdpo.recsys.metrics.facts import fact_rows, record_facts


rows = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 4), st.lists(st.integers(0, 5), max_size=3)),
    min_size=1,
    max_size=12,
    unique_by=lambda row: row[:2],
)


def columns(table):
    names = ("user_id", "item_id", "timestamp", "history_item_ids")
    return {name: [row[place] for row in table] for place, name in enumerate(names)}


@settings(max_examples=60, deadline=None)
@given(rows, rows)
def test_counts_are_those_of_the_rows(ours, others):
    facts = record_facts(columns(ours), [columns(others)], dict.fromkeys((0, 1), 1))
    times: dict = {}
    for user, item, time, _ in (*ours, *others):
        times[user, item] = min(time, times.get((user, item), time))
    known = [(times[user, item], time) for user, _, time, history in ours for item in history if (user, item) in times]
    assert facts["targets"] == len(ours)
    assert facts["targets_without_train_event"] == sum(item > 1 for _, item, _, _ in ours)
    assert facts["history_events"] == sum(len(history) for *_, history in ours)
    assert facts["history_events_of_known_time"] == len(known)
    assert facts["history_events_later_than_target"] == sum(before > time for before, time in known)
    assert facts["history_events_at_time_of_target"] == sum(before == time for before, time in known)
    together = {(user, item, time) for user, item, time, _ in (*ours, *others)}
    tied = [
        any((one[0], one[2]) == (user, time) and one[1] != item for one in together) for user, item, time, _ in ours
    ]
    assert facts["targets_tied_in_time"] == sum(tied)


def test_ties_that_a_part_of_the_events_tells_are_a_lower_bound():
    whole = columns([(1, 2, 5, []), (1, 3, 5, []), (1, 4, 7, [2, 3])])
    assert ["targets at the time of another event of their user", "2", "66.7%"] in fact_rows(record_facts(whole))
    part = columns([(1, 2, 5, []), (1, 4, 7, [2, 3])])
    assert ["targets at the time of another event of their user, at least", "0", "0.0%"] in fact_rows(
        record_facts(part)
    )


def test_what_cannot_be_told_is_unknown():
    table = columns([(1, 2, None, [3])])
    facts = record_facts(table)
    assert (facts["targets"], facts["history_events"]) == (1, 1)
    assert facts["history_events_later_than_target"] is None
    assert ["events in histories that are later than their target", "unknown", ""] in fact_rows(facts)
    assert set(record_facts({"chosen": ["a"]}).values()) == {None}

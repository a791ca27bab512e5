import datetime

import pandas as pd
import polars as pl
import pytest

from trl_sdpo.recsys import build_sequences, leave_one_out_split, load_recbole, load_table, temporal_split, user_split


BILLION = 10**9
START = 1_714_720_000


def load(times, **options):
    table = pl.DataFrame({"user_id": [1] * len(times), "item_id": range(len(times)), "at": times})
    return load_table(table, timestamp="at", **options)


def seconds_and_rest(times, **options):
    events = load(times, **options).events
    rest = events["nanosecond"] if "nanosecond" in events.columns else [0] * events.height
    return list(zip(events["timestamp"], rest, strict=True))


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(("unit", "count"), [("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_numbers_keep_their_resolution(unit, count, as_text):
    parts = [(START, 3), (START, 1), (START, count - 1), (-5, 1)]
    times = [seconds * count + part for seconds, part in parts]
    expected = [(seconds, part * (BILLION // count)) for seconds, part in parts]
    assert seconds_and_rest([str(time) for time in times] if as_text else times, time_unit=unit) == expected


@pytest.mark.parametrize(
    ("times", "unit", "expected"),
    [
        (["1714720000.000000001", "1714720000.5"], "s", [(START, 1), (START, 500_000_000)]),
        (["-1.25", " -1.5 "], "s", [(-2, 750_000_000), (-2, 500_000_000)]),
        (["1714720000000.000001", "1714720000000"], "ms", [(START, 1), (START, 0)]),
        (["1.71472e9", "1714720000.25"], "s", [(START, 0), (START, 250_000_000)]),
        ([START + 0.5, START + 0.25], "s", [(START, 500_000_000), (START, 250_000_000)]),
    ],
)
def test_fractions(times, unit, expected):
    assert seconds_and_rest(times, time_unit=unit) == expected


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_datetimes_keep_their_resolution(unit):
    moments = [datetime.datetime(2020, 1, 1, 0, 0, 0, 7000), datetime.datetime(2020, 1, 1, 0, 0, 0, 5000)]
    times = pl.Series(moments, dtype=pl.Datetime(unit))
    assert seconds_and_rest(times) == [(1577836800, 7_000_000), (1577836800, 5_000_000)]
    zoned = times.dt.replace_time_zone("America/New_York")
    assert seconds_and_rest(zoned)[0] == (1577836800 + 5 * 3600, 7_000_000)


def test_pandas_with_several_zones():
    zones = [datetime.timezone(datetime.timedelta(hours=hours)) for hours in (0, 5)]
    times = pd.Series([datetime.datetime(2020, 1, 1, 12, tzinfo=zone) for zone in zones], dtype=object)
    table = pd.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "at": times})
    assert load_table(table, timestamp="at").events["timestamp"].to_list() == [1577880000, 1577862000]
    table["at"] = pd.Series([times[0], datetime.datetime(2020, 1, 1)], dtype=object)
    with pytest.raises(TypeError, match=r"column 'at'.*time zone"):
        load_table(table, timestamp="at")


@pytest.mark.parametrize(
    ("texts", "form", "expected"),
    [
        (["2020-01-01 00:00:00.5", "2020-01-01 00:00:00.25"], "%Y-%m-%d %H:%M:%S.%f", [500_000_000, 250_000_000]),
        (["2020-01-01 00:00:00.123456789", "2020-01-01 00:00:00.1"], "%Y-%m-%d %H:%M:%S%.f", [123456789, 100_000_000]),
        (["2020-01-01T00:00:00Z", "2020-01-01T02:00:00+0200"], "%Y-%m-%dT%H:%M:%S%z", [0, 0]),
        (["Wed Jan 01 00:00:00 Z 2020"], "%a %b %d %H:%M:%S %z %Y", [0]),
        (
            ["2020-01-01T00:00:00.5Z", "2020-01-01T02:00:00.75+02:00"],
            "%Y-%m-%dT%H:%M:%S.%f%z",
            [500_000_000, 750_000_000],
        ),
    ],
)
def test_formats(texts, form, expected):
    assert [(1577836800, rest) for rest in expected] == seconds_and_rest(texts, time_format=form)


def test_years_of_two_digits_are_read_where_the_format_says_so():
    texts = ["02.01.98", "02.01.70", "31.12.05"]
    expected = [datetime.datetime.strptime(text, "%d.%m.%y").replace(tzinfo=datetime.UTC) for text in texts]
    assert seconds_and_rest(texts, time_format="%d.%m.%y") == [(int(time.timestamp()), 0) for time in expected]


@pytest.mark.parametrize("form", ["%H:%M %Z", "%Y %f"])
def test_directives_that_cannot_be_honoured_are_refused(form):
    with pytest.raises(ValueError, match=r"time_format=.*(%Z|'\.%f')"):
        load(["x"], time_format=form)


@pytest.mark.parametrize(
    ("times", "options", "message"),
    [
        (["2020-01-01", "01.01.2020"], {"time_format": "%Y-%m-%d"}, "row 1 .*'01.01.2020' is not a time in the form"),
        (["2020-01-01", None, "2020-02-30"], {"time_format": "%Y-%m-%d"}, "row 2 .*'2020-02-30'"),
        (["1", "2020-01-01"], {}, "row 1 .*'2020-01-01' is not a number"),
        (["1998-01-02", "98-01-02"], {"time_format": "%Y-%m-%d"}, "row 1 .*'98-01-02' is before the year 1000.*%y"),
        (["1998-01-02"], {"time_format": "%y-%m-%d"}, "row 0 .*'1998-01-02' is not a time in the form"),
        (
            [1_714_720_000_000, 1_714_720_000],
            {"time_unit": "ms"},
            "row 1 .*is in 1970 in ms, while others are after 2001",
        ),
        ([float("inf")], {}, "row 0 .*inf is not a number"),
        ([True], {}, "row 0 .*True is not a number"),
        ([datetime.timedelta(1)], {}, "row 0 .*is not a number"),
        (["inf"], {}, "row 0 .*'inf' is not a number"),
    ],
)
def test_what_is_no_time_is_named(times, options, message):
    with pytest.raises(ValueError, match=message):
        load(times, **options)


@pytest.mark.parametrize("missing", [None, "", "  "])
def test_a_missing_time_is_a_counted_drop(missing):
    interactions = load(["5", missing])
    assert interactions.report["events_without_time"] == 1
    assert load(pl.Series([5.0, float("nan")])).report["events_without_time"] == 1


def test_the_order_and_the_splits_are_as_fine_as_the_times():
    times = [START * 1000 + part for part in (900, 100, 500, 300, 700, 200)]
    sequences = build_sequences(load(times, time_unit="ms"))
    assert sequences["item_id"].to_list() == [1, 5, 3, 2, 4, 0]
    split = temporal_split(sequences, (0.5, 0.17, 0.33))
    assert split["split"].to_list() == ["train"] * 3 + ["validation"] + ["test"] * 2
    assert leave_one_out_split(sequences)["split"].to_list() == ["train"] * 4 + ["validation", "test"]
    users = sequences.with_columns(user_id=3 - sequences["position"])
    assert user_split(users, (0.5, 0.17, 0.33))["split"].to_list() == split["split"].to_list()


def test_the_earliest_event_of_merged_items_is_kept():
    rows = {"user_id": [1, 1, 2], "item_id": [7, 8, 7], "at": [900, 100, 500], "title": ["Ran"] * 3}
    kept = load_table(pl.DataFrame(rows), timestamp="at", time_unit="ms", title="title").events
    assert kept.filter(pl.col("user_id") == 1).row(0, named=True)["nanosecond"] == 100_000_000


def test_recbole_keeps_fractions(tmp_path):
    rows = "user_id:token\titem_id:token\ttimestamp:float\n1\t1\t10.75\n1\t2\t10.25\n"
    (tmp_path / "x.inter").write_text(rows)
    assert build_sequences(load_recbole(tmp_path))["item_id"].to_list() == [2, 1]

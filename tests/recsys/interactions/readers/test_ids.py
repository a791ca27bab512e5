import datetime
import decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest

from trl_sdpo.recsys import Interactions, load_table


def users(values, dtype=None):
    values = values if isinstance(values, pl.Series) else pl.Series(values, dtype=dtype)
    frame = pl.DataFrame({"uid": values, "item_id": [7] * len(values)})
    return load_table(frame, user="uid").events["user_id"].to_list()


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([1, -2, 2**63 - 1], pl.Int64, [1, -2, 2**63 - 1]),
        ([1, 2**63], pl.UInt64, ["1", "9223372036854775808"]),
        ([1, 2**53 - 1], pl.Float64, [1, 2**53 - 1]),
        ([1, 2**24 - 1], pl.Float32, [1, 2**24 - 1]),
        (["42", "42.0", " 42 ", "-1", "7."], None, [42, 42, 42, -1, 7]),
        (["9223372036854775807", "0"], None, [2**63 - 1, 0]),
        (["9223372036854775808", "0.0"], None, ["9223372036854775808", "0"]),
        (["01", "1"], None, ["01", "1"]),
        (["+1", "1"], None, ["+1", "1"]),
        (["1.5", "2"], None, ["1.5", "2"]),
        (["1e5", "2"], None, ["1e5", "2"]),
        (["١", "1"], None, ["١", "1"]),
        (["a", "b"], pl.Categorical, ["a", "b"]),
        (["7", "8"], pl.Enum(["7", "8"]), [7, 8]),
        ([decimal.Decimal("18446744073709551615.00"), decimal.Decimal(5)], None, ["18446744073709551615", "5"]),
        ([decimal.Decimal("7.00")], None, [7]),
    ],
)
def test_ids_are_what_they_were(values, dtype, expected):
    assert users(values, dtype) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pl.Series([1.0, 2.0**53]), "row 1 .*column 'uid': 9007199254740992.0 is a float of 9007199254740992 or more"),
        (pl.Series([1, 2**24], dtype=pl.Float32), "row 1 .*column 'uid': 16777216.0 is a float of 16777216 or more"),
        (pl.Series([1.0, float("nan")]), "row 1 .*column 'uid': None is missing"),
        (pl.Series(["a", " "]), "row 1 .*column 'uid': None is missing"),
        (pl.Series(["a", ""], dtype=pl.Categorical), "row 1 .*column 'uid': None is missing"),
        (pl.Series(["a", "nan"]), "row 1 .*'nan' is a value that is missing, written as text"),
        (pl.Series(["1", "inf"]), "row 1 .*'inf' is a value that is missing"),
        (pl.Series(["1", "\\N"]), "row 1 .*None is missing"),
        (pl.Series(["1", "7.656119796026573e+16"]), "row 1 .*is a float: its last digits are lost"),
        (pl.Series(["9007199254740993.0", "5"]), "row 0 .*is a float: its last digits may be lost"),
        (pl.Series(["x", "42", "42.0"]), "row 2 .*'42.0' is there without its '.0' too"),
    ],
)
def test_ids_that_cannot_be_known_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        users(values)


@pytest.mark.parametrize(
    "values",
    [
        *([1.5], [float("inf")], [True], [decimal.Decimal("1.5")], [b"a"], [[1]], [{"a": 1}]),
        *([datetime.date(2020, 1, 1)], [datetime.datetime(2020, 1, 1)], [datetime.timedelta(1)]),
    ],
)
def test_what_is_no_id_names_the_column_of_the_user(values):
    with pytest.raises(TypeError, match=r"table: column 'uid' is .*Ids are whole numbers or text"):
        users(values)


def test_ids_of_two_tables_in_two_spellings():
    log = pl.DataFrame({"user_id": [1, 1], "item_id": ["42.0", "x"]})
    book = pl.DataFrame({"item_id": ["42", "x"], "title": ["Ran", "Emma"]})
    with pytest.raises(ValueError, match=r"'42\.0' is there without its '\.0' too"):
        load_table(log, book, title="title")


class TestPandas:
    def users(self, values, **options):
        frame = pd.DataFrame({"uid": pd.Series(values, **options), "item_id": [7] * len(values)})
        return load_table(frame, user="uid").events["user_id"].to_list()

    @pytest.mark.parametrize(
        ("values", "options", "expected"),
        [
            ([17, "guest"], {"dtype": object}, ["17", "guest"]),
            ([17, 18.0], {"dtype": object}, [17, 18]),
            ([2**60 + 1, 5.0], {"dtype": object}, [2**60 + 1, 5]),
            ([2**64 - 1, 2], {"dtype": object}, ["18446744073709551615", "2"]),
            ([decimal.Decimal(7), np.int32(8)], {"dtype": object}, [7, 8]),
            ([1, 2], {"dtype": "Int64"}, [1, 2]),
            ([1, 2], {"dtype": "category"}, [1, 2]),
            (["a", "b"], {"dtype": "category"}, ["a", "b"]),
            (["a", "b"], {"index": [5, 5]}, ["a", "b"]),
            ([2**63, 2], {"dtype": "uint64"}, ["9223372036854775808", "2"]),
        ],
    )
    def test_columns(self, values, options, expected):
        assert self.users(values, **options) == expected

    @pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT, "", " \t"])
    def test_missing(self, missing):
        with pytest.raises(ValueError, match=r"row 1 .*column 'uid': None is missing"):
            self.users(["ann", missing], dtype=object)

    @pytest.mark.parametrize("values", [[True, 1], [b"x", "x"], [[1], 2], [datetime.date(2020, 1, 1), 1]])
    def test_what_is_neither_text_nor_number_is_named(self, values):
        with pytest.raises(TypeError, match="column 'uid'"):
            self.users(values, dtype=object)

    def test_floats_that_are_too_large(self):
        with pytest.raises(ValueError, match=r"column 'uid'.*its last digits are lost"):
            self.users([2.0**60, "guest"], dtype=object)

    def test_a_name_twice(self):
        frame = pd.DataFrame([[1, 2, 3]], columns=["user_id", "item_id", "user_id"])
        with pytest.raises(ValueError, match="column 'user_id' is there 2 times"):
            load_table(frame)


def test_blank_ids_of_interactions():
    items = pl.DataFrame({"item_id": ["a"], "title": ["Ran"]})
    events = pl.DataFrame({"user_id": ["u", " "], "item_id": ["a", "a"], "timestamp": [1, 2]})
    with pytest.raises(ValueError, match=r"row 1 .*column 'user_id': ' ' is blank"):
        Interactions(events, items, "tiny")

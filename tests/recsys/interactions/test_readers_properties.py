"""
Whatever a table holds, every loader gives what an independent reading gives, or an error; nothing is lost uncounted.

Tables are written by Python's `csv` and `json`, pandas, polars and `datasets`, and read back.
"""

import csv
import gzip
import io
import json
import logging
import math
import re

import datasets
import pandas as pd
import polars as pl
import pytest
from hypothesis import strategies as st

from trl_sdpo.recsys import load_recbole, load_table

from . import independent
from .independent import RefusedError, missing


COLUMNS = ("who", "what", "when", "called", "more")
NAMES = {"user": "who", "item": "what", "timestamp": "when", "title": "called"}
END_OF_LINE = st.sampled_from(["\n", "\r\n"])


def fields(row, more):
    return {"who": row.user, "what": row.item, "when": row.time, "called": row.title, "more": more}


def agree(load, expected, count):
    """Compare what is loaded with the independent reading, and add the report up."""
    try:
        wanted = expected()
    except RefusedError:
        with pytest.raises((ValueError, TypeError)) as caught:
            load()
        assert "column" in str(caught.value)
        return
    if not wanted.events:
        with pytest.raises(ValueError, match=r"no rows|mentions no|is missing|nothing"):
            load()
        return
    interactions = load()
    events = interactions.events
    if "nanosecond" not in events.columns:
        events = events.with_columns(nanosecond=pl.lit(0, dtype=pl.Int64))
        # where no two events of a second differ in it, it is not kept
        assert len({event[2:] for event in wanted.events}) == len({event[2] for event in wanted.events})
        wanted.events = [(*event[:3], 0) for event in wanted.events]
    assert events.select("user_id", "item_id", "timestamp", "nanosecond").rows() == wanted.events
    assert dict(interactions.items.rows()) == wanted.items
    report = interactions.report
    assert report["events_read"] == count
    assert report.get("events_without_time", 0) == wanted.without_time
    assert report["events_dropped_by_merge"] == wanted.merged
    dropped = sum(
        report.get(name, 0) for name in ("events_without_time", "events_without_title", "events_dropped_by_merge")
    )
    assert report["events_read"] == events.height + dropped


class TestText:
    @pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.csv.gz"])
    def test_quoted(self, name, tmp_path, holds):
        def check(rows, order, quoting, end, encoding, blank):
            text = io.StringIO(newline="")
            separator = "\t" if ".tsv" in name else ","
            # what Python 3.11 leaves without quotes where lines end in line feeds alone
            quoting = csv.QUOTE_ALL if any("\r" in (row.title or "") for row in rows) else quoting
            writer = csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=end)
            writer.writerow(order)
            for number, row in enumerate(rows):
                one = fields(row, f"x{number}")
                writer.writerow(["" if one[column] is None else one[column] for column in order])
                if blank:
                    text.write(end)
            data = text.getvalue().encode(encoding)
            (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
            agree(lambda: load_table(tmp_path / name, **NAMES, quote='"'), lambda: independent.found(rows), len(rows))

        holds(
            check,
            independent.rows(),
            st.permutations(COLUMNS),
            st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
            END_OF_LINE,
            st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
            st.booleans(),
        )

    @pytest.mark.parametrize("separator", [",", "\t", ";"])
    def test_without_quotes(self, separator, tmp_path, holds):
        path = tmp_path / "log.csv"

        def check(rows, order, end, encoding):
            lines = [separator.join(order)]
            for number, row in enumerate(rows):
                one = fields(row, f"x{number}")
                for column in ("who", "what", "called"):
                    setattr(
                        row,
                        {"who": "user", "what": "item", "called": "title"}[column],
                        (one[column] or "").replace(separator, ""),
                    )
                one = fields(row, f"x{number}")
                lines.append(separator.join(one[column] for column in order))
            path.write_bytes("".join(line + end for line in lines).encode(encoding))
            options = {"separator": separator, "quote": ""}
            agree(lambda: load_table(path, **NAMES, **options), lambda: independent.found(rows), len(rows))

        holds(
            check,
            independent.rows(line_breaks=False),
            st.permutations(COLUMNS),
            END_OF_LINE,
            st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
        )

    @pytest.mark.parametrize("quoted", [True, False])
    def test_a_guess_is_right_or_said(self, quoted, tmp_path, holds, caplog):
        """Without a word on quotes, what is read is what was written, or there is a warning or an error."""
        path = tmp_path / "log.csv"

        def check(titles):
            titles = (
                titles if quoted else [title.replace(",", "").replace("\n", "").replace("\r", "") for title in titles]
            )
            text = io.StringIO(newline="")
            text.write("who,called,what\n")
            for number, title in enumerate(titles):
                if quoted:
                    csv.writer(text, lineterminator="\n").writerow([1, f"{title}~{number}", number])
                else:
                    text.write(f"1,{title}~{number},{number}\n")
            path.write_bytes(text.getvalue().encode())
            caplog.clear()
            try:
                with caplog.at_level(logging.WARNING):
                    items = load_table(path, user="who", item="what", title="called").items
            except ValueError as error:
                assert "line" in str(error)  # noqa: PT017 (an error is one of two right answers)
                return
            wanted = [independent.plain(f"{title}~{number}") for number, title in enumerate(titles)]
            assert items["title"].to_list() == wanted or "quotes" in caplog.text

        holds(check, st.lists(independent.titles().map(lambda one: one or "x"), min_size=1, max_size=4))

    def test_a_width_is_never_overlooked(self, tmp_path, holds):
        path = tmp_path / "log.csv"

        def check(rows, place, cut, order):
            lines = [[str(fields(row, "x")[column] or "") for column in order] for row in rows]
            place %= len(lines)
            lines[place] = lines[place][:cut] if cut < 5 else lines[place] + ["y"] * (cut - 4)
            if not lines[place] or lines[place] == [""]:
                return
            text = io.StringIO(newline="")
            csv.writer(text).writerows([order, *lines])
            path.write_bytes(text.getvalue().encode())
            with pytest.raises(ValueError, match=r"line \d+.*fields instead of 5"):
                load_table(path, **NAMES, quote='"')

        holds(
            check,
            independent.rows(),
            st.integers(0, 9),
            st.integers(1, 8).filter(lambda one: one != 5),
            st.permutations(COLUMNS),
        )


def number_or_text(value):
    """As json has it: whole numbers as numbers where they are written so."""
    return int(value) if value is not None and value.lstrip("-").isdecimal() and str(int(value)) == value else value


class TestJsonLines:
    @pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
    def test_lines(self, name, tmp_path, holds):
        def check(rows, ascii_only, end, encoding, blank):
            lines = []
            for number, row in enumerate(rows):
                one = fields(row, number) | {"who": number_or_text(row.user), "what": number_or_text(row.item)}
                one |= {"when": number_or_text(row.time)}
                left_out = [column for column, value in one.items() if value is None and number % 2]
                lines.append(
                    json.dumps(
                        {key: value for key, value in one.items() if key not in left_out}, ensure_ascii=ascii_only
                    )
                )
            lines.append(json.dumps(fields(rows[0], 0)))  # so that every key is there
            data = "".join(line + end + (end if blank else "") for line in lines).encode(encoding)
            (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
            table = [*rows, rows[0]]
            agree(lambda: load_table(tmp_path / name, **NAMES), lambda: independent.found(table), len(table))

        holds(
            check,
            independent.rows(),
            st.booleans(),
            END_OF_LINE,
            st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
            st.booleans(),
        )

    def test_what_python_reads_otherwise_is_refused(self, tmp_path, holds):
        """Values of any kind: what is read is what Python's `json` reads, or an error that names the line."""
        path = tmp_path / "log.jsonl"
        value = st.one_of(
            st.integers(-(2**70), 2**70),
            st.floats(),
            st.booleans(),
            st.text(max_size=3),
            st.none(),
            st.lists(st.integers(0, 1), max_size=1),
        )

        def check(values):
            path.write_text("".join(json.dumps({"who": one, "what": 7}) + "\n" for one in values), encoding="utf-8")
            try:
                users = load_table(path, user="who", item="what").events["user_id"].to_list()
            except ValueError as error:
                assert "line" in str(error) or "no column" in str(error)  # noqa: PT017
                return
            for one, user in zip(values, users, strict=True):
                assert type(one) in (int, float, str)
                if type(one) is float:
                    assert float(user) == one
                else:
                    assert str(user) == str(one) or int(user) == float(one) == int(float(one))

        holds(check, st.lists(value, min_size=1, max_size=3))


class TestFrames:
    def frames(self, rows):
        """The same table in all that holds one, in columns of text."""
        columns = {column: [fields(row, number)[column] for number, row in enumerate(rows)] for column in COLUMNS}
        yield pl.DataFrame(columns, schema_overrides=dict.fromkeys(COLUMNS[:4], pl.String))
        yield pd.DataFrame({column: pd.Series(values, dtype=object) for column, values in columns.items()})
        mixed = {column: [number_or_text(one) for one in columns[column]] for column in ("who", "what", "when")}
        yield pd.DataFrame({column: pd.Series(values, dtype=object) for column, values in (columns | mixed).items()})
        categories = dict.fromkeys(("who", "what", "called"), pl.Categorical)
        yield pl.DataFrame(columns, schema_overrides=dict.fromkeys(COLUMNS[:4], pl.String)).cast(categories)

    def test_frames(self, holds):
        def check(rows):
            for frame in self.frames(rows):
                agree(lambda frame=frame: load_table(frame, **NAMES), lambda: independent.found(rows), len(rows))

        holds(check, independent.rows())

    def test_files(self, tmp_path, holds):
        def check(rows):
            frame = next(self.frames(rows))
            frame.write_parquet(tmp_path / "log.parquet")
            for table in (tmp_path / "log.parquet", datasets.Dataset.from_polars(frame)):
                agree(lambda table=table: load_table(table, **NAMES), lambda: independent.found(rows), len(rows))

        holds(check, independent.rows())

    @pytest.mark.parametrize("kind", ["polars", "pandas", "parquet"])
    def test_numbers(self, kind, tmp_path, holds):
        """Columns of numbers: ids are what they were, or refused."""

        def check(values, dtype):
            try:
                series = pl.Series("who", values, dtype=dtype, strict=True)
            except (TypeError, OverflowError, pl.exceptions.PolarsError):
                return
            table = pl.DataFrame({"who": series, "what": [7] * len(values)})
            if kind == "parquet":
                table.write_parquet(tmp_path / "log.parquet")
            data = {"polars": lambda: table, "pandas": table.to_pandas, "parquet": lambda: tmp_path / "log.parquet"}[
                kind
            ]()
            limit = 2**24 if dtype == pl.Float32 else 2**53
            exact = all(
                one is not None
                and math.isfinite(one)
                and one == int(one)
                and (not dtype.is_float() or abs(one) < limit)
                for one in series
                if one == one
            )
            missing_ids = any(one is None or one != one for one in series)
            if not exact or missing_ids:
                with pytest.raises((ValueError, TypeError), match="column 'who'"):
                    load_table(data, user="who", item="what")
                return
            users = load_table(data, user="who", item="what").events["user_id"].to_list()
            assert [int(user) for user in users] == [int(one) for one in series]
            assert len({type(user) for user in users}) == 1

        number = st.one_of(
            st.integers(-5, 300), st.sampled_from([2**24, 2**31, 2**53 - 1, 2**53, 2**63 - 1, 2**64 - 1]), st.none()
        )
        floats = st.one_of(
            st.integers(-5, 300).map(float), st.sampled_from([1.5, float("nan"), 2.0**24, 2.0**53, 1e300]), st.none()
        )
        pairs = st.one_of(
            st.tuples(
                st.lists(number, min_size=1, max_size=4),
                st.sampled_from([pl.Int8, pl.Int64, pl.UInt64, pl.UInt32, pl.Int16]),
            ),
            st.tuples(st.lists(floats, min_size=1, max_size=4), st.sampled_from([pl.Float64, pl.Float32])),
        )
        holds(lambda pair: check(*pair), pairs)


class TestRecBole:
    inputs = 5000

    def test_atomic_files(self, tmp_path, holds):
        def check(rows, end, encoding, order):
            for row in rows:
                row.user, row.item = (text.replace("\t", "") for text in (row.user, row.item))
                row.time = row.time if re.fullmatch(r"-?[0-9]{1,10}(\.[0-9]+)?", row.time) else "5"
                row.title = (row.title or "").replace("\t", "")
            names = {"who": "user_id:token", "what": "item_id:token", "when": "timestamp:float"}
            lines = ["\t".join(names[column] for column in order)]
            lines += ["\t".join(fields(row, "")[column] for column in order) for row in rows]
            (tmp_path / "x.inter").write_bytes("".join(line + end for line in lines).encode(encoding))
            agree(lambda: load_recbole(tmp_path), lambda: titled_by_ids(rows), len(rows))

        holds(
            check,
            independent.rows(line_breaks=False),
            END_OF_LINE,
            st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
            st.permutations(["who", "what", "when"]),
        )

    def test_items(self, tmp_path, holds):
        """Titles and years of `.item`: events of items that it does not list, or that have no title, are counted drops."""

        def check(rows, books, letters, order, end, encoding):
            prefix = "i" if letters else ""
            lines = ["user_id:token\titem_id:token\ttimestamp:float"]
            lines += [f"{user}\t{prefix}{item}\t{at}" for user, item, at in rows]
            (tmp_path / "x.inter").write_bytes("".join(line + end for line in lines).encode(encoding))
            cells = {"item_id:token": lambda item, title, year: f"{prefix}{item}"}
            cells |= {"movie_title:token_seq": lambda item, title, year: title, "class:token_seq": lambda *_: "a b"}
            cells |= {"release_year:token": lambda item, title, year: year}
            lines = ["\t".join(order), *("\t".join(cells[name](*book) for name in order) for book in books)]
            (tmp_path / "x.item").write_bytes("".join(line + end for line in lines).encode(encoding))
            names = {item: dated(title, year) for item, title, year in books if not missing(title)}
            wanted = independent.Found(events=[(user, item, at, 0) for user, item, at in rows if item in names])
            wanted = independent.merge(wanted, names)
            if not wanted.events:
                with pytest.raises(ValueError, match="no rows"):
                    load_recbole(tmp_path)
                return
            interactions = load_recbole(tmp_path)
            key = (lambda item: f"i{item}") if letters else int
            assert interactions.events.rows() == [(user, key(item), at) for user, item, at, _ in wanted.events]
            assert dict(interactions.items.rows()) == {key(item): title for item, title in wanted.items.items()}
            report = interactions.report
            assert (report["events_read"], report["items_read"]) == (len(rows), len(books))
            assert report["items_without_title"] == len(books) - len(names)
            assert report["events_dropped_by_merge"] == wanted.merged
            assert len(rows) == interactions.events.height + wanted.merged + report["events_without_title"]
            assert report["years_unreadable"] == sum(
                bool(year) and not missing(title) and year_of(year) is None for _, title, year in books
            )

        # letters that no form of a title moves: articles, marks and years have tests of their own
        word = st.text(st.sampled_from("abé7;\"' \x85\u2028"), max_size=4)
        year = st.sampled_from(["1999", "1958.0", "1985.", " 2001 ", "", "V", "985", "20011", "nan", "١٩٩٩"])
        item = st.integers(1, 9)
        book = st.tuples(item, word, year)
        holds(
            check,
            st.lists(st.tuples(st.integers(1, 5), item, st.integers(0, 10**9)), min_size=1, max_size=12),
            st.lists(book, min_size=1, max_size=9, unique_by=lambda one: one[0]),
            st.booleans(),
            st.permutations(["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"]),
            END_OF_LINE,
            st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
        )


def year_of(text):
    match = re.fullmatch(r"([0-9]{4})(\.0*)?", text.strip())
    return match and int(match[1])


def dated(title, year):
    year = year_of(year)
    return " ".join(title.split()) + (f" ({year})" if year else "")


def titled_by_ids(rows):
    """Without a file of items their ids are their titles."""
    items = independent.ids([row.item for row in rows])
    for row, item in zip(rows, items, strict=True):
        row.title = str(item)
        row.time = row.time.strip()
    if any(missing(row.time) or float(row.time) > 10**11 - 1 for row in rows):
        raise RefusedError("time")
    wanted = independent.found(rows)
    # an id stands as it is, whatever white space is in it, so that no two are merged
    wanted.events = [
        (user, item, *independent.moment(row.time))
        for user, item, row in zip(independent.ids([row.user for row in rows]), items, rows, strict=True)
    ]
    wanted.items, wanted.merged = {item: str(item) for item in items}, 0
    return wanted

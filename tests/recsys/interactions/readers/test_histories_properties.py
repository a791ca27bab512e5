"""Files of histories hold what was written into them, by Python's `json` and `csv`, or are refused by line."""

import csv
import io
import json
import math

import pytest
from hypothesis import strategies as st

from trl_sdpo.recsys.interactions.readers.histories import ItemId, Title, read_histories

from .. import independent
from ..independent import missing


END_OF_LINE = st.sampled_from(["\n", "\r\n"])
ENCODING = st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])
TEXT = st.one_of(independent.titles().map(lambda one: one or "x"), st.text(independent.WIDE, max_size=3))


def known(value):
    """A title or an id as it is read, or `None` where it has to be refused."""
    if isinstance(value, bool) or value is None or isinstance(value, list):
        return None
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value == int(value) and abs(value) < 2**53 else None
    return value if isinstance(value, int) or value.strip(independent.WHITE + "\x1c\x1d\x1e\x1f") else None


class TestJsonLines:
    inputs = 5000

    def test_lines(self, tmp_path, holds):
        path = tmp_path / "in.jsonl"
        value = st.one_of(TEXT, st.integers(-5, 10**25), st.just(7.0), st.just(2.0**53), st.just(1.5), st.none())
        value = st.one_of(TEXT, TEXT, st.integers(-5, 99), value, st.booleans(), st.just([1]))
        values = st.one_of(st.lists(value, max_size=3), st.just("123"), st.just(7), st.none())
        row = st.fixed_dictionaries(
            {}, optional={"history": values, "history_item_ids": values, "user_id": value, "candidates": values}
        )

        def check(rows, ascii_only, end, encoding, blank):
            lines = [json.dumps(one, ensure_ascii=ascii_only) for one in rows]
            path.write_bytes("".join(line + end + (end if blank else "") for line in lines).encode(encoding))
            wanted = [expected(one, number) for number, one in enumerate(rows)]
            if None in wanted:
                line = 1 + wanted.index(None) * (2 if blank else 1)
                with pytest.raises(ValueError, match=f"line {line}[,:]"):
                    read_histories(path)
                return
            found = [(query.key, query.history, query.candidates) for query in read_histories(path)]
            assert found == [(key or str(1 + n * (2 if blank else 1)), *rest) for n, (key, *rest) in enumerate(wanted)]
            for one, query in zip(rows, read_histories(path), strict=True):
                assert all(isinstance(item, ItemId) for item in query.history) == bool(one.get("history_item_ids"))

        def expected(one, number):
            ids, user = one.get("history_item_ids"), one.get("user_id")
            of_ids = ids is not None and ids != []
            key = None if user is None or (isinstance(user, str) and not user.strip()) else known(user)
            if key is None and not (user is None or isinstance(user, str)):
                return None
            lists = [
                ids if of_ids else one.get("history"),
                *([] if one.get("candidates") is None else [one["candidates"]]),
            ]
            if any(not isinstance(each, list) or not each or any(known(v) is None for v in each) for each in lists):
                return None
            history, *candidates = ([known(v) for v in each] for each in lists)
            history = [str(v) for v in history] if of_ids else history
            return (None if key is None else str(key), history, candidates[0] if candidates else None)

        holds(check, st.lists(row, min_size=1, max_size=3), st.booleans(), END_OF_LINE, ENCODING, st.booleans())


class TestCsv:
    inputs = 5000

    def test_events(self, tmp_path, holds):
        path = tmp_path / "in.csv"
        user = st.sampled_from(["ann", "é", "x y", "01", "b\u2028", "7,5", ""])
        time = st.sampled_from(["5", "1714720000", "1714720000.000000001", "1714720000.3", "-1.5", "7"])

        def check(rows, order, timed, end, encoding):
            columns = [name for name in order if timed or name != "timestamp"]
            text = io.StringIO(newline="")
            writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator=end)
            writer.writerow(columns)
            for user, title, at in rows:
                one = {"user_id": user, "title": title, "timestamp": at, "more": "x"}
                writer.writerow([one[name] for name in columns])
            path.write_bytes(text.getvalue().encode(encoding))
            if any(missing(user) or missing(title) for user, title, _ in rows):
                with pytest.raises(ValueError, match=r"line \d+, column '(user_id|title)': None is missing"):
                    read_histories(path)
                return
            wanted = {user: [] for user, *_ in rows}
            key = (lambda row: independent.moment(row[2])) if timed else (lambda row: 0)
            for user, title, _ in sorted(rows, key=key):
                wanted[user].append(title)
            found = read_histories(path)
            assert [(query.key, query.history) for query in found] == list(wanted.items())
            assert all(isinstance(title, Title) for query in found for title in query.history)

        holds(
            check,
            # how quotes are guessed around line breaks has a test of its own
            st.lists(
                st.tuples(user, TEXT.filter(lambda one: not {"\n", "\r"} & {*one}), time), min_size=1, max_size=6
            ),
            st.permutations(["user_id", "title", "timestamp", "more"]),
            st.booleans(),
            END_OF_LINE,
            ENCODING,
        )

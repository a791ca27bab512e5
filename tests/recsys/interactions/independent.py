"""Tables of odd values, and what they hold, read by Python alone: no line of the package is used here."""

import math
import re
import unicodedata
from dataclasses import dataclass, field

from hypothesis import strategies as st


# What Unicode calls white space (the property White_Space).
WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
UNSEEN = "\u200b\u200c\u200d\u2060\ufeff\xad"
NO_VALUE = ("nan", "NaN", "-nan", "inf", "-inf", "Inf", "-Inf", "Infinity", "-Infinity")
NO_VALUE += ("NaT", "<NA>", "None", "null", "NULL", "undefined")
NO_NUMBER = ("NA", "N/A", "n/a", "na", "#N/A", "none", "nil", "-", "--", "?")
WIDE = st.one_of(  # of titles
    st.sampled_from("aB7,;|\"'\\.():#-é\x85\xa0\u2028\u200b\U0001f600\u0301"),
    st.characters(codec="utf-8", exclude_characters="\0"),
)


ODD_IDS = [
    *("guest-3", "01", "+1", "1e5", "1.5", "x y", "é", "7.", "-0", "\u0661", "B001", "a\u2028b", '"q', "q,r", "ann"),
    *("e\u0301", "ann ", "\xa0ann", "Ann", "ann\u200b", "\ufeff1", "NA", "None", "<NA>", "-", "\\N", "\u200b"),
]
DOUBTFUL_IDS = [
    *("", " ", "nan", "inf", "9007199254740993.0", "7.6e+16", "3.0", "NA", "#N/A", "NULL", "007", "1,234"),
]


class RefusedError(Exception):
    """The input has to be refused."""


@dataclass
class Row:
    user: object
    item: object
    time: object
    title: object


@dataclass
class Found:
    """What a reader has to make of rows."""

    events: list = field(default_factory=list)
    items: dict = field(default_factory=dict)
    without_time: int = 0
    merged: int = 0


def titles(line_breaks=True):
    forbidden = "\0" if line_breaks else "\0\n\r"
    odd = st.sampled_from(
        [
            "1984",
            "311",
            "(V)",
            "NA",
            "None",
            "null",
            "nan",
            "[REC]",
            "{x}",
            "true",
            '"Heroes"',
            '"',
            '12"',
            "\\N",
            "\\",
            '\\"',
            "a,b",
            "a\tb",
        ]
        + ([] if not line_breaks else ["two\nlines", "two\r\nlines", 'x",\n"y'])
    )
    wild = st.text(WIDE.filter(lambda one: one not in forbidden), min_size=1, max_size=8)
    return st.one_of(odd, wild, st.sampled_from(["", " ", "\xa0"]), st.just(None))


def texts_of_ids():
    number = st.one_of(
        st.integers(-5, 5),
        st.sampled_from([2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 10**25, -(2**63), -(2**63) - 1]),
    )
    odd = st.sampled_from(ODD_IDS)
    return st.one_of(
        st.lists(st.integers(-5, 5).map(str), min_size=1, max_size=4),
        st.lists(st.one_of(number.map(str), st.integers(0, 9).map(lambda one: f"{one}.0")), min_size=1, max_size=4),
        st.lists(st.one_of(st.integers(-5, 5).map(str), odd), min_size=1, max_size=4),
        st.lists(
            st.one_of(
                st.integers(0, 5).map(str),
                st.sampled_from(DOUBTFUL_IDS),
            ),
            min_size=1,
            max_size=4,
        ),
    )


def times():
    return st.one_of(
        st.integers(0, 10**6).map(str),
        st.sampled_from(
            [
                "",
                " ",
                "5",
                "1714720000",
                "1714720000.25",
                "1714720000.000000001",
                "-1.5",
                "1e9",
                " 7",
                "9" * 12,
                "soon",
                "nan",
                "inf",
            ]
        ),
    )


def good_times():
    return st.one_of(
        st.integers(0, 10**6).map(str),
        st.sampled_from(["", " ", "5", "1714720000", "1714720000.25", "1714720000.000000001", "-1.5", "5.50"]),
    )


@st.composite
def rows(draw, line_breaks=True, any_time=times):
    """A few users and items, so that they come again, in rows with a time and a title."""
    users, items = draw(texts_of_ids()), draw(texts_of_ids())
    if not line_breaks:
        users, items = ([re.sub(r"[\t\n\r]", "", one) for one in ids] for ids in (users, items))
    count = draw(st.integers(1, 6))
    return [
        Row(
            draw(st.sampled_from(users)),
            draw(st.sampled_from(items)),
            draw(any_time() if draw(st.integers(0, 9)) == 0 else good_times()),
            draw(titles(line_breaks)),
        )
        for _ in range(count)
    ]


def missing(value):
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and (not value.strip(WHITE + UNSEEN) or value == "\\N"))
    )


def plain(title):
    return re.sub(f"[{re.escape(WHITE)}]+", " ", title).strip(" ")


def ids(texts):
    """Ids of a column of text: whole numbers of 64 bits where all are, else text; none rounded."""
    for text in texts:
        if missing(text) or text in NO_VALUE or re.fullmatch(r"-?[0-9](\.[0-9]+)?[eE]\+[0-9]{2,3}", text):
            raise RefusedError(text)
    numbers = [re.fullmatch(r"(-?(?:0|[1-9][0-9]*))(\.0*)?", text.strip(WHITE)) for text in texts]
    if any("\ufeff" in text for text in texts):
        raise RefusedError("a mark")
    if not all(numbers):
        others = [text for text, number in zip(texts, numbers, strict=True) if not number]
        if len(others) < len(texts) and all(text in NO_NUMBER for text in others):
            raise RefusedError("no number among numbers")
        if len({unicodedata.normalize("NFC", text).strip(WHITE + UNSEEN) for text in texts}) < len(set(texts)):
            raise RefusedError("two that look the same")
        spelled = {text for text in texts if re.fullmatch(r"-?(0|[1-9][0-9]*)\.0+", text)}
        if any(text.split(".")[0] in texts for text in spelled):
            raise RefusedError("two spellings")
        return list(texts)
    if any(match[2] and abs(int(match[1])) >= 2**53 for match in numbers):
        raise RefusedError("a float")
    whole = [int(match[1]) for match in numbers]
    if all(-(2**63) <= one < 2**63 for one in whole):
        return whole
    return [match[1] for match in numbers]


def moment(text):
    """Seconds and nanoseconds of a number in text."""
    if missing(text):
        return None
    match = re.fullmatch(r"([+-]?)([0-9]{1,18})(?:\.([0-9]*))?", text.strip(WHITE))
    if match:
        nanoseconds = int(match[2]) * 10**9 + int((match[3] or "").ljust(9, "0")[:9])
        seconds, rest = divmod(-nanoseconds if match[1] == "-" else nanoseconds, 10**9)
    else:
        try:
            value = float(text)
            seconds, rest = math.floor(value), int((value - math.floor(value)) * 1e9)
        except (ValueError, OverflowError):
            raise RefusedError(text) from None
    if seconds > 10**11 - 1:
        raise RefusedError(text)
    return seconds, rest


def found(rows):
    """What a table of events with titles holds."""
    result = Found()
    users, items = ids([row.user for row in rows]), ids([row.item for row in rows])
    when = [moment(row.time) for row in rows]
    first = {}
    for item, row in zip(items, rows, strict=True):
        if not missing(row.title):
            first.setdefault(item, plain(row.title))
    for user, item, time in zip(users, items, when, strict=True):
        if time is None:
            result.without_time += 1
        elif item in first:
            result.events.append((user, item, *time))
    timed = {item for item, time in zip(items, when, strict=True) if time is not None}
    return merge(result, {item: title for item, title in first.items() if item in timed})


def merge(result, names):
    """Items of one title are one, under the lowest of their ids; who had several of them keeps the earliest event."""
    lowest = {item: min(other for other, title in names.items() if title == name) for item, name in names.items()}
    groups = {}
    for place, (user, item, *time) in enumerate(result.events):
        groups.setdefault((user, lowest[item]), []).append((time, item, place))
    gone = set()
    for group in groups.values():
        if len({item for _, item, _ in group}) > 1:
            gone |= {place for _, _, place in sorted(group)[1:]}
    result.events = [
        (user, lowest[item], *time) for place, (user, item, *time) in enumerate(result.events) if place not in gone
    ]
    result.merged = len(gone)
    result.items = {item: name for item, name in names.items() if lowest[item] == item}
    return result

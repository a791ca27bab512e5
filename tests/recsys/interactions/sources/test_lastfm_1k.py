"""Last.fm of a thousand users, on made-up rows in the form of its file."""

import gzip

import pytest

from trl_sdpo.recsys import load_lastfm_1k, load_source


NAME = "userid-timestamp-artid-artname-traid-traname.tsv"
PLAYS = (
    "user_000001\t2009-05-04T23:08:57Z\tf1b1\tRed  Harbour\t\tFuck Me Im Famous (Pacha) 99-2007\n"
    'user_000001\t2009-05-04T13:54:10Z\t\tRed Harbour\t\t"Composition\n'
    "user_000002\t2009-05-03T15:48:25Z\ta7f7\tÉté\tb1\tO' Sól\n"
    "user_000002\t2009-05-03T15:48:25Z\ta7f7\tÉté\t\t\n"
    "user_000002\t2005-12-31T23:59:59Z\t\t \t\tNobody\n"
)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "lastfm-dataset-1K"
    folder.mkdir()
    (folder / NAME).write_text(PLAYS, encoding="utf-8", newline="")
    return folder


def test_artists(folder):
    """A name is an artist whether or not a row has its id; a quote swallows no line; a blank name is a counted drop."""
    interactions = load_source("lastfm-1k", folder)
    assert interactions.name == "lastfm-1k-artists"
    assert interactions.events.rows() == [
        ("user_000001", "Red Harbour", 1241478537),
        ("user_000001", "Red Harbour", 1241445250),
        ("user_000002", "Été", 1241365705),
        ("user_000002", "Été", 1241365705),
    ]
    report = interactions.report
    assert (report["events_read"], report["items_read"], report["events_without_title"]) == (5, 2, 1)


def test_tracks(folder):
    interactions = load_lastfm_1k(folder.parent, items="tracks")
    assert interactions.items["title"].to_list() == [
        "Fuck Me Im Famous (Pacha) 99-2007 - Red Harbour", '"Composition - Red Harbour', "O' Sól - Été",
    ]  # fmt: skip
    assert interactions.report["events_without_title"] == 2


def test_tracks_of_one_title_are_counted(folder):
    """`a - b` of c and `a` of `b - c` have one title."""
    lines = [f"u1\t2009-05-04T23:08:5{n}Z\t\t{artist}\t\t{track}" for n, (artist, track) in enumerate(
        [("c", "a - b"), ("b - c", "a"), ("d", "e")]
    )]  # fmt: skip
    (folder / NAME).write_text("\n".join([*lines, ""]))
    report = load_lastfm_1k(folder, items="tracks").report
    assert (report["items_merged"], report["events_dropped_by_merge"], report["events_read"]) == (1, 1, 3)


def test_zipped(folder):
    path = folder / f"{NAME}.gz"
    path.write_bytes(gzip.compress(PLAYS.encode()))
    (folder / NAME).unlink()
    assert load_lastfm_1k(path).events.equals(load_lastfm_1k(folder).events)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u\t2009-05-04\t\ta\t\tb\n", r"play 6, column 'timestamp': '2009-05-04' is not a time"),
        ("u\t2009-05-04T23:08:57Z\t\ta\t\tb\tc\n", r"line 6: 7 fields instead of 6"),
        ("\t2009-05-04T23:08:57Z\t\ta\t\tb\n", r"line 6, column 'userid': '' is empty"),
    ],
)
def test_bad_lines_are_named(folder, line, message):
    (folder / NAME).write_text(PLAYS + line, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_lastfm_1k(folder)


def test_bad_arguments(folder, tmp_path):
    with pytest.raises(ValueError, match="neither 'artists' nor 'tracks'"):
        load_lastfm_1k(folder, items="albums")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_lastfm_1k(tmp_path / "nothing")
    (folder / NAME).unlink()
    with pytest.raises(FileNotFoundError, match="Unpack lastfm-dataset-1K"):
        load_lastfm_1k(folder)

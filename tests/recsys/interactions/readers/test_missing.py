"""What programs write for a value that is missing, what cannot be seen, and ids and titles that look the same."""

import gzip
import logging
import re

import pandas as pd
import polars as pl
import pytest

from trl_sdpo.recsys import load_recbole, load_table


NAMES = {"user": "uid", "item": "sku", "timestamp": "at", "title": "label"}


def load(folder, rows, **options):
    path = folder / "log.csv"
    path.write_text("uid,sku,at,label\n" + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return load_table(path, **NAMES, **options)


@pytest.mark.parametrize("word", ["nan", "None", "<NA>", "NULL", "null", "NaT", "undefined"])
@pytest.mark.parametrize("other", ["7", "ann"])
def test_a_word_of_a_program_is_no_id(word, other, tmp_path):
    with pytest.raises(ValueError, match=f"line 3, column 'uid': '{word}' is a value that is missing"):
        load(tmp_path, [f"{other},7,100,Emma", f"{word},8,200,Ran"])


@pytest.mark.parametrize("word", ["NA", "N/A", "#N/A", "-", "none"])
def test_a_word_that_may_be_a_name_is_no_id_among_whole_numbers(word, tmp_path):
    with pytest.raises(ValueError, match=f"line 3, column 'uid': '{re.escape(word)}' stands among whole numbers"):
        load(tmp_path, ["1,7,100,Emma", f"{word},8,200,Ran"])
    assert load(tmp_path, ["DE,7,100,Emma", f"{word},8,200,Ran"]).events["user_id"].to_list() == ["DE", word]


def test_null_of_a_dump_is_missing(tmp_path):
    """MySQL and Postgres write it so: an id is an error, a time or a title a counted drop."""
    interactions = load(tmp_path, ["1,7,\\N,Emma", "1,8,200,\\N", "1,9,300,Ran"])
    assert interactions.events.rows() == [(1, 9, 300)]
    report = interactions.report
    assert (report["events_without_time"], report["events_without_title"]) == (1, 1)
    with pytest.raises(ValueError, match="line 2, column 'sku': None is missing"):
        load(tmp_path, ["1,\\N,100,Emma"])


@pytest.mark.parametrize("unseen", ["\u200b", "\ufeff", "\u2060 ", "\xad"])
def test_what_cannot_be_seen_is_missing(unseen, tmp_path):
    with pytest.raises(ValueError, match="line 2, column 'uid': None is missing"):
        load(tmp_path, [f"{unseen},7,100,Emma"])
    interactions = load(tmp_path, [f"1,7,100,{unseen}", "1,8,200,Ran"])
    assert interactions.report["events_without_title"] == 1


def test_a_mark_inside_a_file_is_named(tmp_path):
    """Files that begin with a byte order mark, joined by `cat`."""
    with pytest.raises(ValueError, match=r"line 3, column 'uid': '\\ufeff1' holds a byte order mark"):
        load(tmp_path, ["1,7,100,Emma", "\ufeff1,8,200,Ran"])


@pytest.mark.parametrize(
    "pair", [("ann", "ann "), ("ann", "\xa0ann"), ("caf\u00e9", "cafe\u0301"), ("ann", "ann\u200b")]
)
def test_two_ids_that_look_the_same_are_named(pair, tmp_path):
    """As from columns of a fixed width, CHAR(10) of a data base, and from two programs."""
    with pytest.raises(ValueError, match=r"line 2, column 'uid': .* which look the same"):
        load(tmp_path, [f"{pair[0]},7,100,Emma", f"{pair[1]},8,200,Ran"])
    log = pl.DataFrame({"uid": [1, 1], "sku": ["x", pair[0]], "at": [1, 2]})
    book = pl.DataFrame({"sku": ["x", pair[1]], "label": ["Emma", "Ran"]})
    with pytest.raises(ValueError, match=r"row 1 .*column 'sku': .* which look the same"):
        load_table(log, book, **NAMES)


def test_ids_that_only_resemble_each_other_stay(tmp_path):
    for pair in (("Ann", "ann"), ("007", "7"), ("1,5", "15"), ("1e5", "100000")):
        rows = [f'"{pair[0]}",7,100,Emma', f'"{pair[1]}",8,200,Ran']
        assert load(tmp_path, rows).events["user_id"].to_list() == list(pair)


def test_a_missing_title_that_became_a_word_is_said(tmp_path, caplog):
    """Titles may be called so; several items that are have none, and would become one."""
    with caplog.at_level(logging.WARNING):
        load(tmp_path, ["1,7,100,None", "1,8,200,Ran"])
        assert "called" not in caplog.text
        interactions = load(tmp_path, ["1,7,100,nan", "1,8,200,nan"])
    assert "2 items are called 'nan', which is what programs write for a title that is missing" in caplog.text
    assert interactions.report["items_merged"] == 1
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\n1\t7\n1\t8\n")
    (tmp_path / "x.item").write_text("item_id:token\tname:token_seq\tyear:token\n7\tnan\t1999\n8\tnan\t1999\n")
    caplog.clear()
    load_recbole(tmp_path)
    assert "2 items are called 'nan (1999)'" in caplog.text


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("log.csv", gzip.compress(b"uid,sku\n1,7\n"), "is gzipped: name it so"),
        ("log.csv.gz", b"uid,sku\n1,7\n", "Not a gzipped file.* take the .gz from its name"),
        ("log.jsonl", b"PK\x03\x04abc", "is a zip archive: unpack it"),
        ("log.tsv", b"BZh91AY", "is packed by bzip2"),
        ("log.csv", b"PAR1abc", "is Parquet: name it so"),
        ("log.csv.zst", b"\x28\xb5\x2f\xfd", "Unpack or convert the file"),
        ("log.csv", b"uid,sku", "no rows behind the header"),
        ("log.csv", b"uid,sku\n", "no rows"),
    ],
)
def test_files_that_are_not_what_their_name_says(name, data, says, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=says):
        load_table(tmp_path / name, user="uid", item="sku")


def test_types_that_no_table_has_name_their_column():
    for values in (pd.Series([1j, 2j]), pd.Series(pd.arrays.SparseArray([1, 2])), pd.interval_range(0, 2)):
        with pytest.raises(TypeError, match="column 'user_id'"):
            load_table(pd.DataFrame({"user_id": values, "item_id": [7, 8]}))


def test_times_that_are_floats_without_their_last_digits_are_said(caplog):
    times = [1714720000123456789.0, 1714720000123457789.0]
    log = pl.DataFrame({"user_id": [1, 1], "item_id": [7, 8], "at": times})
    load_table(log, timestamp="at", time_unit="ns")
    assert "floats of 2**53 or more, whose last digits are lost" in caplog.text
    caplog.clear()
    load_table(log.with_columns(pl.col("at").cast(pl.Int64)), timestamp="at", time_unit="ns")
    assert "digits" not in caplog.text

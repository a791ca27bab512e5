import datetime
import gzip
import json
import re

import datasets
import pandas as pd
import polars as pl
import pytest

from trl_sdpo.recsys import load_source, load_table


LOG = 'who,what,when,stars\r\n7,"a,1",100,4\r\n8,b,50.7,3.5\r\n7,c,,2\r\n'
CATALOGUE = 'what,label,born\n"a,1",  Night   Harbour ,1994\nb,Night Harbour,1964\nc,"Winter ""Light""",\nd,,\n'
NAMES = {"user": "who", "item": "what", "timestamp": "when", "rating": "stars", "title": "label", "year": "born"}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "catalogue.csv").write_text(CATALOGUE)
    return tmp_path / "log.csv", tmp_path / "catalogue.csv"


def test_csv(files):
    interactions = load_table(*files, **NAMES)
    assert interactions.name == "log"
    assert interactions.has_time
    assert interactions.events.columns == ["user_id", "item_id", "rating", "timestamp"]
    assert interactions.events.rows() == [(7, "a,1", 4.0, 100), (8, "b", 3.5, 50)]
    assert interactions.items.rows() == [
        ("a,1", "Night Harbour (1994)"),
        ("b", "Night Harbour (1964)"),
        ("c", 'Winter "Light"'),
    ]
    assert interactions.report == {
        "events_read": 3,
        "events_without_time": 1,
        "items_read": 4,
        "items_without_title": 1,
        "items_unknown": 0,
        "events_without_title": 0,
        "items_disambiguated": 2,
        "items_merged": 0,
        "events_remapped": 0,
        "events_dropped_by_merge": 0,
    }


def test_blank_lines_hold_nothing(files):
    expected = load_table(*files, **NAMES)
    files[0].write_text(LOG.replace("\r\n", "\r\n\r\n") + "\r\n\r\n")
    interactions = load_table(*files, **NAMES)
    assert interactions.events.equals(expected.events)
    assert interactions.report == expected.report


def frame(**columns):
    data = {"user_id": [1, 1, 2], "item_id": [7, 8, 7], "title": ["Red River", "Blue Hotel", "Red River"]}
    return pl.DataFrame(data | columns)


def write_csv(path, table):
    table.write_csv(path / "t.csv.gz.tmp")
    (path / "t.csv.gz").write_bytes(gzip.compress((path / "t.csv.gz.tmp").read_bytes()))
    return path / "t.csv.gz"


def write_tsv(path, table):
    table.write_csv(path / "t.tsv", separator="\t")
    return str(path / "t.tsv")


def write_parquet(path, table):
    table.write_parquet(path / "t.parquet")
    return path / "t.parquet"


def write_lines(path, table):
    table.write_ndjson(path / "t.jsonl")
    return path / "t.jsonl"


def save_dataset(path, table):
    datasets.Dataset.from_polars(table).save_to_disk(path / "t")
    return path / "t"


KINDS = {
    "csv": write_csv,
    "tsv": write_tsv,
    "parquet": write_parquet,
    "jsonl": write_lines,
    "folder": save_dataset,
    "polars": lambda path, table: table,
    "lazy": lambda path, table: table.lazy(),
    "pandas": lambda path, table: pd.DataFrame(table.to_dict(as_series=False)),
    "dataset": lambda path, table: datasets.Dataset.from_polars(table),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_table_reads_the_same(kind, tmp_path):
    table = frame(timestamp=[10, 20, 30])
    interactions = load_table(KINDS[kind](tmp_path, table), timestamp="timestamp", title="title")
    assert interactions.events.rows() == [(1, 7, 10), (1, 8, 20), (2, 7, 30)]
    assert interactions.items.rows() == [(7, "Red River"), (8, "Blue Hotel")]


def test_by_name(files):
    path, catalogue = files
    assert load_source("table", path, items=catalogue, **NAMES).events.height == 2


def test_a_dataset_on_the_hub_is_asked_for_by_its_name(monkeypatch):
    def load(name, split):
        assert (name, split) == ("owner/log", "test")
        return datasets.Dataset.from_polars(frame())

    monkeypatch.setattr("trl_sdpo.recsys.interactions.readers.any_table.load_dataset", load)
    interactions = load_table("owner/log", title="title", split="test")
    assert interactions.name == "log"
    assert interactions.events.height == 3


MOMENT = datetime.datetime(2009, 4, 1, 0, 0, 30)


@pytest.mark.parametrize(
    ("time", "options", "expected"),
    [
        ([1_238_544_030_999], {"time_unit": "ms"}, 1_238_544_030),
        ([1_238_544_030_999_999_999], {"time_unit": "ns"}, 1_238_544_030),
        (["1238544030999999999"], {"time_unit": "ns"}, 1_238_544_030),
        ([1_238_544_030.9], {}, 1_238_544_030),
        ([MOMENT], {}, 1_238_544_030),
        ([MOMENT.date()], {}, 1_238_544_000),
        (["2009-04-01"], {"time_format": "%Y-%m-%d"}, 1_238_544_000),
        (["2009-04-01 02:00:30 +0200"], {"time_format": "%Y-%m-%d %H:%M:%S %z"}, 1_238_544_030),
    ],
)
def test_times(time, options, expected):
    table = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "t": time})
    assert load_table(table, timestamp="t", **options).events.rows() == [("u", "i", expected)]


def test_without_time_the_rows_keep_their_order():
    interactions = load_table(frame(item_id=[9, 7, 8]))
    assert not interactions.has_time
    assert interactions.events.rows() == [(1, 9, None), (1, 7, None), (2, 8, None)]


def test_without_titles_the_ids_stand_in(caplog):
    assert load_table(frame()).items.rows() == [(7, "7"), (8, "8")]
    assert "2 items go by their ids" in caplog.text


def test_the_first_title_of_an_item_that_has_one_is_taken():
    table = frame(item_id=[7, 7, 7], title=[" ", None, "Red River"])
    assert load_table(table.with_columns(pl.col("title").replace(" ", None)), title="title").items.rows() == [
        (7, "Red River")
    ]


def test_equal_titles_are_merged_and_movie_titles_get_their_form():
    table = frame(title=["Harbour, The (1994)", "The  Harbour (1994)", "Harbour, The (1994)"])
    assert load_table(table, title="title").items.height == 2
    interactions = load_table(table, title="title", movie_titles=True)
    assert interactions.items.rows() == [(7, "The Harbour (1994)")]
    assert interactions.report["items_merged"] == 1


@pytest.mark.parametrize(
    ("items", "expected"),
    [([7, 8], [7, 8, 7]), (["7", "8"], [7, 8, 7]), (["7", "x8"], ["7", "7"]), ([7.0, 8.0], [7, 8, 7])],
)
def test_ids_of_two_tables_are_brought_together(items, expected):
    catalogue = pl.DataFrame({"item_id": items, "title": ["Red River", "Blue Hotel"]})
    assert load_table(frame(), catalogue, title="title").events["item_id"].to_list() == expected


BAD_LOG = [
    ("", "log.csv: line 1: the file is empty"),
    ("who,what,when,stars\n", "log.csv: no rows"),
    ("who,what,when\n1,2,3\n", "log.csv: no column 'stars', only ['who', 'what', 'when']"),
    (LOG + "1,b,1,1,1\n", "log.csv: line 5: 5 fields instead of 4"),
    (LOG + '1,"b,1,1\n', "log.csv: line 5: unexpected end of data"),
    (LOG + "1,,1,1\n", "log.csv: line 5, column 'what': None is missing. Fill it"),
    (LOG + "\n,b,1,1\n", "log.csv: line 6, column 'who': None is missing"),
    (LOG + "1,b,soon,1\n", "log.csv: line 5, column 'when': 'soon' is not a number (pass time_format"),
    (
        LOG + "1,b,1238536800000,1\n",
        "line 5, column 'when': '1238536800000' is after the year 5138 in s. Pass time_unit",
    ),
    (LOG + "1,b,1,good\n", "log.csv: line 5, column 'stars': 'good' is not a finite number"),
    (LOG + "1,b,1,nan\n", "log.csv: line 5, column 'stars': 'nan' is not a finite number"),
    (LOG + "1,b,1,\n", "log.csv: line 5, column 'stars': None is not a finite number"),
    (LOG.encode() + "1,é,1,1\n".encode("latin-1"), "log.csv: line 5: byte b'\\xe9,1,' is not utf-8"),
]


@pytest.mark.parametrize(("content", "message"), BAD_LOG)
def test_a_bad_line_is_named(files, content, message):
    files[0].write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(message)):
        load_table(*files, **NAMES)


def test_a_line_break_in_quotes_does_not_shift_the_line(files):
    files[0].write_text('who,what,when,stars\n1,"b\nb",1,1\n1,,1,1\n')
    with pytest.raises(ValueError, match=r"log\.csv: line 4, column 'what': None is missing"):
        load_table(*files, **NAMES)


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(LOG.encode())[:-4])
    with pytest.raises(ValueError, match=r"log\.csv\.gz: damaged after line \d+ .*Fetch the file again"):
        load_table(path)
    path = tmp_path / "log.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"log\.parquet: .*Check that the file is whole"):
        load_table(path)
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"user_id": 1, "item_id": 2}) + '\n{"user_id": 1')
    with pytest.raises(ValueError, match=r"log\.jsonl: line 2: not a JSON object"):
        load_table(path)


def test_a_row_of_a_frame_is_named():
    with pytest.raises(ValueError, match=r"mine: row 1 \(counted from 0\), column 'user_id': None is missing"):
        load_table(frame(user_id=[1, None, 2]), name="mine")
    with pytest.raises(TypeError, match=r"mine: column 'item_id' is Float64. Ids are whole numbers or text"):
        load_table(frame(item_id=[1.5, 2, 3]), name="mine")


def test_what_is_no_table_is_named(tmp_path):
    with pytest.raises(TypeError, match="list is no table"):
        load_table([1, 2])
    with pytest.raises(TypeError, match=r"DatasetDict is no table.*one split"):
        load_table(datasets.DatasetDict(train=datasets.Dataset.from_polars(frame())))
    datasets.DatasetDict(train=datasets.Dataset.from_polars(frame())).save_to_disk(tmp_path / "dict")
    with pytest.raises(ValueError, match="several splits: train"):
        load_table(tmp_path / "dict")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: neither a file nor a folder that"):
        load_table(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: no such file"):
        load_table(tmp_path / "nowhere.csv")
    (tmp_path / "log.xls").write_text("x")
    with pytest.raises(ValueError, match=r"log\.xls: the name ends in none of \.csv, \.tsv, \.parquet, \.jsonl"):
        load_table(tmp_path / "log.xls")


def test_options_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="time_unit='h' is not one of s, ms, us, ns"):
        load_table(frame(), time_unit="h")
    with pytest.raises(ValueError, match="items are given, but title is not"):
        load_table(frame(), frame())

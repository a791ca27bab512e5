import gzip
import logging
import re

import pytest

from trl_sdpo.recsys import load_table
from trl_sdpo.recsys.interactions.readers.text_files import TextFile


LINES = ["who,what,called", "7,1,Été", "7,2,a\u2028b", "8,1,Été", "8,3,c\x85d"]
NAMES = {"user": "who", "item": "what", "title": "called"}


def write(path, text, encoding="utf-8", zipped=False):
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_what_is_said_in_the_file_needs_no_option(tmp_path, encoding, end, zipped):
    path = write(tmp_path / ("log.csv.gz" if zipped else "log.csv"), end.join([*LINES, ""]), encoding, zipped)
    interactions = load_table(path, **NAMES)
    assert interactions.events.height == 4
    assert interactions.items["title"].to_list() == ["Été", "a b", "c d"]  # both are white space, and no line end


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be"])
def test_other_encodings_are_an_option_and_without_it_an_error(tmp_path, encoding):
    path = write(tmp_path / "log.csv", "who,what,called\n7,1,Été\n", encoding)
    with pytest.raises(ValueError, match=r"log\.csv: line \d: (byte .* is not utf-8|holds a NUL)"):
        load_table(path, **NAMES)
    assert load_table(path, **NAMES, encoding=encoding).items["title"].to_list() == ["Été"]


def test_wrong_encodings_are_named(tmp_path):
    path = write(tmp_path / "log.csv", "who,what,called\n7,1,Été\n", "latin-1")
    with pytest.raises(ValueError, match=r"log\.csv: unknown encoding: klingon"):
        load_table(path, **NAMES, encoding="klingon")
    with pytest.raises(ValueError, match=r"log\.csv: after line 0: not ascii"):
        load_table(path, **NAMES, encoding="ascii")


def test_no_false_alarm_of_a_missing_line_break(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        TextFile(write(tmp_path / "log.csv.gz", "a,b\n", zipped=True))
        TextFile(write(tmp_path / "log.csv", "a,b\n", "utf-16-le"), encoding="utf-16-le")
        TextFile(write(tmp_path / "old.csv", "a,b\r"))
    assert not caplog.text
    TextFile(write(tmp_path / "log.csv", "a,b"))
    assert "no line break at the end" in caplog.text


def test_damage_in_a_zipped_file_is_named(tmp_path):
    data = gzip.compress("".join(f"{number},{number * 7919},x\n" for number in range(20_000)).encode())
    for cut in (data[:-4], data[: len(data) // 2], b"no zip at all"):
        (tmp_path / "log.csv.gz").write_bytes(cut)
        with pytest.raises(ValueError, match=r"log\.csv\.gz: damaged after line \d+ .*Fetch the file again"):
            TextFile(tmp_path / "log.csv.gz")
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(ValueError, match="line 1: the file is empty"):
        TextFile(tmp_path / "log.csv.gz")


def test_a_copy_goes_with_its_file(tmp_path):
    file = TextFile(write(tmp_path / "log.csv", "a,b\n", "utf-16"))
    copy = file.path
    assert copy.read_text() == "a,b\n"
    del file
    assert not copy.exists()


def test_a_nul_names_its_line(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"a,b\n1,2\n\0,3\n")
    with pytest.raises(ValueError, match=re.escape("log.csv: line 3: holds a NUL byte")):
        TextFile(tmp_path / "log.csv")

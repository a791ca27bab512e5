import re

import pytest

from trl_sdpo.recsys import load_table


NAMES = {"user": "u", "item": "i", "title": "t"}


def titles(path, text, name="log.csv", **options):
    (path / name).write_text(text, encoding="utf-8", newline="")
    return load_table(path / name, **NAMES, **options).items["title"].to_list()


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ("1,7,Emma,web\n1,8,Dombey, and Son,web\n", 3),
        ("1,7,Emma,web\n1,8,Dombey\n", 3),
        ("1,7,Emma,web\n\n1,8,Dombey,web,\n", 4),
        ("1,7,Emma,web\n1\n", 3),
        ('1,7,"Emma\n2",web\n1,8,"Dombey",web,x\n', 4),
    ],
)
@pytest.mark.parametrize("order", ["u,i,t,c", "c,t,i,u", "u,t,c,i"])
def test_every_width_is_checked_whatever_is_read(tmp_path, rows, line, order):
    with pytest.raises(ValueError, match=rf"log\.csv: line {line}: \d fields instead of 4"):
        titles(tmp_path, f"{order}\n{rows}")


def test_quotes_of_a_publisher_who_does_not_quote(tmp_path, caplog):
    rows = ['1,7,"Live"!', '1,8,12" Mix', '2,9,"Heroes"', "2,10,Low"]
    assert titles(tmp_path, "u,i,t\n" + "\n".join(rows) + "\n") == ['"Live"!', '12" Mix', '"Heroes"', "Low"]
    assert "read as they stand" in caplog.text


def test_quotes_that_nothing_needs(tmp_path, caplog):
    rows = ["u,i,t", '1,7,"Heroes"', "1,8,Low"]
    assert titles(tmp_path, "\n".join([*rows, ""])) == ["Heroes", "Low"]
    assert "They are taken off; pass quote=''" in caplog.text
    caplog.clear()
    assert titles(tmp_path, "\n".join([*rows, ""]).replace(",", "\t"), name="log.tsv") == ['"Heroes"', "Low"]
    assert "They are read as they stand; pass quote='\"'" in caplog.text
    caplog.clear()
    for every in (['"u","i","t"', '"1","7","Heroes"', '"1","8","Low"'], ["u,i,t", '1,7,"Heroes"', '2,8,"Low"']):
        assert titles(tmp_path, "\n".join([*every, ""])) == ["Heroes", "Low"]
        assert titles(tmp_path, "\n".join([*every, ""]).replace(",", "\t"), name="log.tsv") == ["Heroes", "Low"]
    assert not caplog.text


def test_quotes_of_a_publisher_who_does(tmp_path, caplog):
    rows = ['1,7,"Live, ""loud"""', '1,8,12" Mix', '2,9,"Heroes"', '2,10,"two\nlines"', "2,11,Low"]
    expected = ['Live, "loud"', '12" Mix', "Heroes", "two lines", "Low"]
    assert titles(tmp_path, "u,i,t\n" + "\n".join(rows) + "\n") == expected
    assert titles(tmp_path, "u,i,t\n" + "\n".join(rows) + "\n", quote='"') == expected
    assert not caplog.text


def test_backslashes_before_quotes(tmp_path, caplog):
    text = 'u,i,t\n1,7,"the \\"best\\", they say"\n1,8,Low\n'
    assert titles(tmp_path, text) == ['the "best", they say', "Low"]
    assert "have backslashes before them" in caplog.text
    assert titles(tmp_path, text, quote='"', escape="\\") == ['the "best", they say', "Low"]
    text = 'u,i,t\n1,7,"C:\\"\n1,8,Low\n'
    assert titles(tmp_path, text) == ["C:\\", "Low"]
    assert "backslashes before quotes" in caplog.text


def test_quotes_can_be_said(tmp_path):
    assert titles(tmp_path, "u,i,t\n1,7,'a, b'\n", quote="'") == ["a, b"]
    assert titles(tmp_path, 'u,i,t\n1,7,"Low"\n', quote="") == ['"Low"']
    assert titles(tmp_path, "u|i|t\n1|7|a\\|b\n", separator="|", quote="", escape="\\") == ["a|b"]
    assert titles(tmp_path, 'u\ti\tt\n1\t7\t"a\tb"\n', name="log.tsv", quote='"') == ["a\tb".replace("\t", " ")]


def test_a_header_in_quotes_says_that_quotes_mean_something(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text('"user_id","item_id","title"\n"1","7","A ""big, ""\nnight"\n"1","8","Ran"\n')
    assert load_table(path, title="title").items["title"].to_list() == ['A "big, " night', "Ran"]
    path.write_text('"user_id","title","item_id"\n"1","x",\n"y","7"\n')
    with pytest.raises(ValueError, match=r"line [23]: .* fields|line 2: a quote opens here"):
        load_table(path, title="title")


def test_an_open_quote_does_not_swallow_lines(tmp_path):
    text = 'u,i,t\n1,7,"Live\n1,8,Low, again\n1,9,12"\n'
    with pytest.raises(ValueError, match=re.escape("line 2: a quote opens here and closes in line 4")):
        titles(tmp_path, text)
    with pytest.raises(ValueError, match=r"line 3: unexpected end of data. Correct the quotes"):
        titles(tmp_path, 'u,i,t\n1,7,"Live\n1,8,Low, again\n')
    assert titles(tmp_path, text, quote='"') == ["Live 1,8,Low, again 1,9,12"]


@pytest.mark.parametrize("options", [{"quote": "ab"}, {"escape": "\\\\"}, {"separator": "::"}, {"separator": ""}])
def test_what_is_no_character_is_named(tmp_path, options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))}.* one character"):
        titles(tmp_path, "u,i,t\n1,7,Low\n", **options)


def test_headers(tmp_path):
    with pytest.raises(ValueError, match="column 't' is there 2 times"):
        titles(tmp_path, "u,i,t,t\n1,7,Low,High\n")
    assert titles(tmp_path, "u,x,i,x,t\n1,0,7,0,Low\n") == ["Low"]
    with pytest.raises(ValueError, match=r"line 4, column 'u': 'u' is the header again"):
        titles(tmp_path, "u,i,t\n1,7,Low\n\nu,i,t\n1,8,High\n")


def test_long_fields(tmp_path):
    assert titles(tmp_path, f'u,i,t,x\n1,7,Low,"{"y" * 200_000}\n"\n') == ["Low"]

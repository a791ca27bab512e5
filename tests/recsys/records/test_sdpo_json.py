import json

import pytest

from trl_sdpo.recsys import PromptTemplate, get_template, load_sdpo_json
from trl_sdpo.recsys.records.sdpo_json import from_sdpo_rows


ROWS = [
    {
        "historyList": "Red River::Blue Hotel",
        "itemList": ["Seven Doors", "Winter Light", "The Last Mile"],
        "trueSelection": "Winter Light",
    },
    {"historyList": ["Night Train"], "itemList": ["Red River", "Blue Hotel"], "trueSelection": "Red River"},
]


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "records.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def test_records_of_both_kinds_of_history(write):
    dataset = load_sdpo_json(write(ROWS), "history", "watched")
    assert dataset["prompt"][0] == "This user has watched Red River, Blue Hotel. Next:"
    assert dataset["prompt"][1] == "This user has watched Night Train. Next:"
    assert dataset["chosen"][:] == [" Winter Light", " Red River"]
    assert dataset["rejected"][:] == [[" Seven Doors", " The Last Mile"], [" Blue Hotel"]]
    assert dataset["candidates"][0] == ROWS[0]["itemList"]


def test_the_list_is_shown_in_its_order_by_default(write):
    prompt = load_sdpo_json(write(ROWS))["prompt"][0]
    assert "Seven Doors\nWinter Light\nThe Last Mile" in prompt
    assert " 3:" in prompt


def test_a_template_of_ones_own():
    template = PromptTemplate("mine", "history", "After {history} comes")
    assert from_sdpo_rows(ROWS, template)["prompt"][1] == "After Night Train comes"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"historyList": ""}, "record 1: historyList is missing or empty"),
        ({"itemList": None}, "record 1: itemList is missing or empty"),
        ({"trueSelection": "Night Train"}, "record 1: trueSelection 'Night Train' is not in itemList"),
        ({"itemList": ["Red River"]}, "record 1: itemList holds nothing but 'Red River'"),
        ({"itemList": ["Red River", "A", "A"]}, "record 1: itemList holds 'A' twice"),
        ({"itemList": ["Red River", 7]}, "record 1: itemList holds 7 where a title is expected"),
        ({"historyList": "A::::B"}, "record 1: historyList holds '' where a title is expected"),
        ({"itemList": ["Red River", "A", "A "]}, "record 1: itemList holds 'A' twice, white space aside"),
        ({"itemList": ["Red River", "\ud83d"]}, "record 1: itemList holds .* where a title is expected"),
        ({"historyList": "A:::B"}, "record 1: historyList 'A:::B' has a title that begins or ends with ':'"),
        ({"itemList": "Red River"}, "record 1: itemList holds 'Red River' where a title is expected"),
    ],
)
def test_bad_record(write, change, message):
    with pytest.raises(ValueError, match=message):
        load_sdpo_json(write([ROWS[0], {**ROWS[1], **change}]))


def test_a_title_with_the_separator_in_it(write):
    """A list keeps it whole; in a text nothing tells where one title ends."""
    rows = [{**ROWS[0], "itemList": ["Seven::Doors", "Winter Light"]}, {**ROWS[1], "historyList": ["Seven::Doors"]}]
    assert load_sdpo_json(write(rows), "history", "watched")["prompt"][1].startswith(
        "This user has watched Seven::Doors."
    )
    rows[1]["historyList"] = "Blue Hotel::Seven::Doors"
    with pytest.raises(
        ValueError, match=r"record 1: historyList would be cut inside the title 'Seven::Doors'.*a list"
    ):
        load_sdpo_json(write(rows))


def test_encodings_and_keys(write):
    path = write(ROWS)
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes(json.dumps(ROWS).encode(encoding))
        assert len(load_sdpo_json(path)) == 2
    for text, says in (
        ('[{"historyList": "A", "historyList": "B"}]', "the key 'historyList' is there twice"),
        ('[{"historyList": NaN}]', "NaN is no JSON"),
        ("[" * 100_000, "nested too deeply"),
    ):
        with pytest.raises(ValueError, match=says):
            load_sdpo_json(write(text))


def test_bad_files(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_sdpo_json(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="not a whole json file"):
        load_sdpo_json(write(json.dumps(ROWS)[:-20]))
    with pytest.raises(ValueError, match="expected a list of records, got dict"):
        load_sdpo_json(write({"rows": ROWS}))
    with pytest.raises(ValueError, match="expected a list of records, got list"):
        load_sdpo_json(write([]))


def test_a_random_template_has_nothing_to_draw_by(write):
    with pytest.raises(ValueError, match="'random'"):
        load_sdpo_json(write(ROWS), "history", "random")


def test_get_template_is_what_a_name_stands_for(write):
    by_name = load_sdpo_json(write(ROWS), "history", "question")
    assert by_name["prompt"][:] == load_sdpo_json(write(ROWS), "history", get_template("question"))["prompt"][:]

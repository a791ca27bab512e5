import dataclasses

import pytest

from trl_sdpo.recsys import PromptTemplate, get_template
from trl_sdpo.recsys.prompts.item_texts import attributes_of, item_texts


ATTRIBUTES = {
    "genres": [["Crime", " Drama ", "", "Heist"], [], None],
    "year": [1995.0, 1985, float("nan")],
    "about": ["A thief\n and a  detective", "War", ""],
}
TITLES = ["Heat", "Ran", "Alien {x}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{title}", TITLES),
        ("{title} ({genres})", ["Heat (Crime, Drama, Heist)", "Ran", "Alien {x}"]),
        ("{title}[ ({genres:2})][, {year}]", ["Heat (Crime, Drama), 1995", "Ran, 1985", "Alien {x}"]),
        ("[{year}s: ]{title}", ["1995s: Heat", "1985s: Ran", "Alien {x}"]),
        ("{title}[: {about:9}]", ["Heat: A thief", "Ran: War", "Alien {x}"]),
        ("{title}[: {about:3}]", ["Heat: A", "Ran: War", "Alien {x}"]),
        ("[[{title}]] {{{year}}}", ["[Heat] {1995}", "[Ran] {1985}", "Alien {x}"]),
        ("{title}[ ({genres}, {year})]", ["Heat (Crime, Drama, Heist, 1995)", "Ran", "Alien {x}"]),
    ],
)
def test_items_in_the_words_of_a_format(text, expected):
    assert item_texts(text, TITLES, ATTRIBUTES) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{genres}", r"lacks \{title\} outside of brackets"),
        ("[{title}]", r"lacks \{title\} outside of brackets"),
        ("{title} [x", "a bracket is not closed"),
        ("{title} x]", "brackets do not come in pairs"),
        ("{title} [a[b]]", "brackets do not come in pairs"),
        ("{title} {", "Write '{{' for a brace itself"),
        ("{title} {}", r"\{\} is no name with"),
        ("{title!r}", r"\{title!r\} is no name with"),
        ("{title:x}", r"\{title:x\} is no name with"),
        ("{title:0}", r"\{title:0\} is no name with"),
        ("{title}\n", "is no text of one line"),
        (
            "{title} ({author})",
            "shows author, and the items have genres, year, about. Keep it when the source is read",
        ),
    ],
)
def test_a_bad_format_is_named(text, message):
    with pytest.raises(ValueError, match=f"mine: .*{message}"):
        item_texts(text, TITLES, ATTRIBUTES, "mine")


def test_templates_say_what_they_show():
    template = dataclasses.replace(
        get_template("lines"), item_format="{title}[ ({genres})]", completion_format="[{year}: ]{title}"
    )
    assert template.attributes == attributes_of("{title}{genres}{year}") == ["genres", "year"]
    assert template.shown(TITLES, ATTRIBUTES)[0] == "Heat (Crime, Drama, Heist)"
    assert [template.complete(one) for one in template.answers(TITLES, ATTRIBUTES)][:2] == [
        "1995: Heat\n",
        "1985: Ran\n",
    ]
    with pytest.raises(ValueError, match="template 'lines', item_format: 'x' lacks"):
        dataclasses.replace(template, item_format="x")


def test_two_items_of_one_answer_are_named():
    template = PromptTemplate("mine", "history", "{history}:", completion_format="[{kind}: ]{title}")
    with pytest.raises(ValueError, match="template 'mine', completion_format: 'B' and 'A: B' are both 'A: B'"):
        template.answers(["B", "A: B"], {"kind": ["A", None]})

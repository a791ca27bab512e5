import re

import pytest

from trl_sdpo.recsys import CANDIDATE_TEMPLATES, HISTORY_TEMPLATES, TEMPLATES, PromptTemplate, get_template
from trl_sdpo.recsys.prompts.wordings import select_templates


HISTORY = ["Heat (1995)", "The {odd} One (1990)", "Good, Bad (1966)"]
CANDIDATES = ["Ran (1985)", "Tampopo (1985)", "M (1931)", "Big (1988)"]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=list(TEMPLATES))
def test_every_template_shows_its_titles_in_order_and_ends_on_a_boundary(template):
    prompt = template.render(HISTORY, CANDIDATES)
    assert template.history_separator.join(HISTORY) in prompt
    completion = template.complete("Ran (1985)")
    assert completion.strip() == "Ran (1985)"
    if template.style == "candidates":
        assert template.candidate_separator.join(CANDIDATES) in prompt
        assert re.search(r"\b4\b", prompt.replace(template.history_separator.join(HISTORY), ""))
        assert "3" in template.render(HISTORY, CANDIDATES[:3])
    else:
        assert "Tampopo" not in prompt
        assert prompt == template.render(HISTORY)
    assert prompt.endswith("\n") or (prompt == prompt.rstrip() and completion.startswith(" "))
    assert not prompt.endswith(" ")


def test_both_styles_have_several_wordings_and_unique_names():
    assert len(HISTORY_TEMPLATES) >= 3
    assert len(CANDIDATE_TEMPLATES) >= 3
    assert len(TEMPLATES) == 5 * (len(HISTORY_TEMPLATES) + len(CANDIDATE_TEMPLATES))


def test_lines_has_every_title_in_the_form_of_a_completion():
    lines = get_template("lines")
    prompt = lines.render(HISTORY)
    assert prompt.endswith("".join(f"\n{title}" for title in HISTORY) + "\n")
    # The history that goes on with the completion is the history of the next record.
    assert prompt + lines.complete("Ran (1985)") == lines.render([*HISTORY, "Ran (1985)"])


def test_render_refuses_what_is_missing():
    with pytest.raises(ValueError, match="template 'watched': history_titles is empty"):
        get_template("watched").render([])
    with pytest.raises(ValueError, match="template 'choose': candidate_titles is empty"):
        get_template("choose").render(HISTORY)


BAD = [
    ({"style": "list"}, "style 'list' is none of ('history', 'candidates')"),
    ({"text": "Next:"}, "text lacks {history}"),
    ({"style": "candidates", "text": "{history} {candidates}:"}, "text lacks {num_candidates}"),
    ({"style": "candidates", "text": "{history} {num_candidates}:"}, "text lacks {candidates}"),
    ({"text": "{history} of {num_candidates}:"}, "style 'history' does not"),
    ({"text": "{history} {age}:"}, "unknown placeholder or brace: 'age'"),
    ({"text": "{history} {:"}, "unknown placeholder or brace"),
    ({"text": "{history}. Next: "}, "text ends in ' ' and completion_prefix is ' '"),
    ({"text": "{history}. Next: ", "completion_prefix": ""}, "would not end where a token ends"),
    ({"text": "{history}. Next:", "completion_prefix": ""}, "text ends in ':' and completion_prefix is ''"),
    ({"text": "{history}\n"}, "text ends in '\\n' and completion_prefix is ' '"),
    ({"text": "{history}. Next:", "completion_prefix": "the"}, "would not end where a token ends"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_a_bad_template_is_refused(changes, message):
    fields = {"name": "mine", "style": "history", "text": "{history}. Next:"} | changes
    with pytest.raises(ValueError, match=re.escape(message)):
        PromptTemplate(**fields)


def test_selecting_templates():
    assert select_templates("history", None) == HISTORY_TEMPLATES[:1]
    assert select_templates("candidates", "random") == CANDIDATE_TEMPLATES
    assert select_templates("candidates", "predict") == (get_template("predict"),)
    mine = PromptTemplate("mine", "history", "{history}. Next:")
    assert select_templates("history", mine) == (mine,)
    with pytest.raises(
        ValueError, match=r"template 'mine' has style 'history', not 'candidates'\. Pass one of .'choose'"
    ):
        select_templates("candidates", mine)
    with pytest.raises(ValueError, match=r"template 'nope' is none of .'lines'"):
        select_templates("history", "nope")
    with pytest.raises(ValueError, match="prompt style 'chat' is none of"):
        select_templates("chat", None)


@pytest.mark.parametrize("domain", ["movies", "books", "music", "items"])
def test_every_domain_has_all_wordings(domain):
    for style in ("history", "candidates"):
        templates = select_templates(style, "random", domain)
        assert [one.name.removeprefix(f"{domain}-") for one in templates] == [
            one.name for one in select_templates(style, "random")
        ]
        for one in templates:
            text = one.render(["A", "B"], ["C", "D"])
            assert ("movie" in text.lower()) <= (domain == "movies")
            assert ("watch" in text.lower()) <= (domain == "movies")


def test_a_name_goes_with_or_without_its_domain():
    assert select_templates("history", "watched", "books")[0].render(["A"]) == "This user has read A. Next:"
    assert select_templates("history", "books-watched", "books") == select_templates("history", "watched", "books")
    with pytest.raises(ValueError, match="domain 'cars' is none of"):
        select_templates("history", None, "cars")


@pytest.mark.parametrize(
    "text", ["{history} {history!r}:", "{history} {history:>5}:", "{history} {user} Next:", "{history} {0}:"]
)
def test_placeholders_are_plain_and_known(text):
    with pytest.raises(ValueError, match="unknown placeholder or brace"):
        PromptTemplate("mine", "history", text)


def test_braces_that_are_meant_are_doubled():
    template = PromptTemplate("mine", "history", "{{{history}}}:")
    assert template.render(["A", "B"]) == "{A, B}:"

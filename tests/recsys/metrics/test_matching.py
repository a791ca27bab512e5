import pytest

from trl_sdpo.recsys.metrics.matching import match_title, normalize_title


FILMS = ["Rocky (1976)", "Rocky II (1979)", "Jaws (1975)"]


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("Heat (1995)", "heat (1995)"),
        ("  Heat\t (1995)\n", "heat (1995)"),
        ('"Heat (1995)"', "heat (1995)"),
        ("“Heat (1995)”.", "heat (1995)"),
        ("**Heat (1995)**", "heat (1995)"),
        ("'Til There Was You (1997)", "til there was you (1997)"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("Ame\u0301lie", "am\u00e9lie"),
        ("(500) Days of Summer", "(500) days of summer"),
        ("!!!", "!!!"),
        ('"."', '"."'),
        ("", ""),
    ],
)
def test_normalized_titles(text, normalized):
    assert normalize_title(text) == normalized


@pytest.mark.parametrize("answer", ["Rocky II (1979)", " rocky ii (1979)\n", '"Rocky II (1979)".'])
def test_a_title_inside_another_one_does_not_hide_it(answer):
    assert match_title(answer, FILMS) == 1
    assert match_title(answer, ["Rocky II (1979)", "Rocky II"]) == 0


def test_the_published_rule_loses_titles_that_hold_another_one():
    short = ["Rocky", "Rocky II", "Jaws"]
    assert match_title("Rocky II", short) == 1
    assert match_title("Rocky II", short, rule="substring") is None
    assert match_title("Rocky", short, rule="substring") == 0
    # years make these two apart
    assert match_title("Rocky II (1979)", FILMS, rule="substring") == 1


def test_the_published_rule_takes_a_title_among_other_words():
    assert match_title("I recommend JAWS (1975), of course", FILMS, rule="substring") == 2
    assert match_title("I recommend Jaws (1975), of course", FILMS) is None
    assert match_title("Jaws (1975) or Rocky (1976)", FILMS, rule="substring") is None


@pytest.mark.parametrize("rule", ["whole", "substring"])
def test_answers_that_name_nothing(rule):
    for answer in ("", "  \n", "Jaw", "Heat (1995)"):
        assert match_title(answer, FILMS, rule) is None


def test_ambiguous_titles_count_to_the_letter_only():
    names = ["MIKA", "Mika", "Wham!", "Wham"]
    assert [match_title(name, names) for name in names] == [0, 1, 2, 3]
    assert match_title("mika", names) is None
    assert match_title(" Mika\n", names) == 1
    assert match_title("Chasing Amy", ["Chasing Amy", "Chasing Amy"]) is None


def test_errors():
    with pytest.raises(ValueError, match=r"rule='part' is none of \('whole', 'substring'\)"):
        match_title("Jaws", FILMS, rule="part")
    with pytest.raises(ValueError, match="candidates is empty"):
        match_title("Jaws", [])

import pytest

from trl_sdpo.pipeline import build_small_llama, make_small_llama, train_title_tokenizer


TITLES = [f"The {first} of the {second} ({1950 + number})" for number, (first, second) in enumerate(
    (first, second) for first in ("River", "Hotel", "Train") for second in ("Door", "Light", "Mile", "Garden")
)]  # fmt: skip


def test_a_title_is_the_same_tokens_wherever_its_line_stands():
    tokenizer = train_title_tokenizer(TITLES, ["Watched:\n"], vocab_size=600)
    prompt = f"Watched:\n{TITLES[3]}\n{TITLES[7]}\n"
    ids = tokenizer(prompt)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    both = tokenizer(prompt + TITLES[3] + "\n")["input_ids"]
    assert both[: len(ids)] == ids
    title = both[len(ids) :]
    assert any(ids[start : start + len(title)] == title for start in range(len(ids)))
    assert tokenizer.decode(both, skip_special_tokens=True) == prompt + TITLES[3] + "\n"


def test_any_text_goes_in_and_comes_out():
    tokenizer = train_title_tokenizer(TITLES, vocab_size=600)
    text = "Ťřəñ ßüß 東京 🎬\n  two  spaces"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_seed_decides_the_weights():
    tokenizer = train_title_tokenizer(TITLES, vocab_size=600)
    first, again, other = (build_small_llama(tokenizer, 64, 1, seed) for seed in (0, 0, 1))
    weights = [model.model.embed_tokens.weight for model in (first, again, other)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])
    with pytest.raises(ValueError, match="multiple of 64"):
        build_small_llama(tokenizer, 100)


def test_a_data_set_without_its_files_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"has no recommender\.json"):
        make_small_llama(tmp_path, tmp_path / "base")

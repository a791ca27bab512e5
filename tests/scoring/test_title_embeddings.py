import numpy as np
import pytest
import torch

from trl_sdpo.scoring.title_embeddings import title_embeddings


TITLES = ["Heat (1995)", "A", "The Usual Suspects (1995)", "Ran (1985)"]


@pytest.fixture
def model(llama):
    return llama().eval()


def test_means_of_last_hidden_states_one_by_one(model, tokenizer):
    vectors = title_embeddings(model, tokenizer, TITLES, batch_size=3, desc=None)
    assert vectors.dtype == np.float32
    for title, vector in zip(TITLES, vectors, strict=True):
        ids = torch.tensor([tokenizer(title)["input_ids"]])
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        np.testing.assert_allclose(vector, states.mean(dim=0).numpy(), atol=1e-5)


def test_a_backbone_gives_the_same_and_the_mode_stays(model, tokenizer):
    model.train()
    vectors = title_embeddings(model, tokenizer, TITLES, desc=None)
    assert model.training
    model.eval()
    np.testing.assert_allclose(title_embeddings(model.model, tokenizer, TITLES, desc=None), vectors, atol=1e-6)


def test_what_is_longer_is_cut(model, tokenizer):
    long, cut = title_embeddings(model, tokenizer, ["one two three four", "one two three"], max_length=3, desc=None)
    ids = tokenizer(["one two three four", "one two three"])["input_ids"]
    assert (ids[0][:3] == ids[1][:3]) == bool(np.allclose(long, cut))


@pytest.mark.parametrize(("titles", "words"), [([], "titles: none"), (["A", ""], "row 1: '' has no token")])
def test_what_has_no_tokens(model, tokenizer, titles, words):
    with pytest.raises(ValueError, match=words):
        title_embeddings(model, tokenizer, titles, desc=None)

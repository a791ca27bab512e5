import numpy as np
import polars as pl
import pytest
import torch

from trl_sdpo.recsys import Interactions
from trl_sdpo.scoring.memorisation import file_sequences, memorisation_probe


def sequences_of(num_users, length, seed):
    generator = np.random.default_rng(seed)
    return {user: [f"Film {one}" for one in generator.permutation(60)[:length]] for user in range(num_users)}


@pytest.fixture
def model(llama):
    return llama().eval()


def test_gains_by_hand(model, tokenizer):
    """The next title after the titles in their order, less its mean after others, user by user."""
    sequences = sequences_of(4, 6, seed=0)
    probe = memorisation_probe(model, tokenizer, sequences, seed=3, num_titles=4, num_shuffles=2)
    assert probe.n == 4

    def log_prob(prompt, text):
        before, ids = tokenizer(prompt)["input_ids"], tokenizer(prompt + text)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(logits[place - 1, ids[place]].item() for place in range(len(before), len(ids)))

    found = np.mean([log_prob("".join(f"{one}\n" for one in row[:4]), f"{row[4]}\n") for row in sequences.values()])
    assert probe.log_prob == pytest.approx(found, abs=1e-4)
    assert probe.ci[0] < probe.gain < probe.ci[1]
    again = memorisation_probe(model, tokenizer, sequences, seed=3, num_titles=4, num_shuffles=2)
    assert again == probe


def test_what_was_read_again_and_again_is_known_and_what_was_not_is_not(model, tokenizer):
    """A model that learned the file by heart, against the same model and another file."""
    sequences = sequences_of(6, 6, seed=0)
    rows = [tokenizer("".join(f"{one}\n" for one in titles[:5]))["input_ids"] for titles in sequences.values()]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(150):
        loss = model(input_ids=ids, labels=labels, attention_mask=(labels >= 0).long()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    options = {"seed": 0, "num_titles": 4, "num_shuffles": 3}
    known = memorisation_probe(model.eval(), tokenizer, sequences, **options)
    other = memorisation_probe(model, tokenizer, sequences_of(6, 6, seed=9), **options)
    assert known.gain > 0.5
    assert known.gain > other.gain + 0.5
    assert known.log_prob > other.log_prob


def test_the_order_of_the_file_is_that_of_its_rows():
    events = pl.DataFrame({"user_id": [2, 1, 2, 1, 2], "item_id": [7, 7, 9, 8, 7], "timestamp": [5, 4, 3, 2, 1]})
    items = pl.DataFrame({"item_id": [7, 8, 9], "title": ["A", "B", "C"]})
    assert file_sequences(Interactions(events, items, "few")) == {2: ["A", "C"], 1: ["A", "B"]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_titles": 2}, "num_titles=2 must be at least 3"),
        ({"num_titles": 8}, "1 users have more than num_titles=8"),
    ],
)
def test_what_cannot_be_probed(model, tokenizer, options, words):
    sequences = {0: [f"Film {one}" for one in range(9)], 1: ["Film 1"]}
    with pytest.raises(ValueError, match=words):
        memorisation_probe(model, tokenizer, sequences, seed=0, **options)

"""Whether a pretrained model knows a public data set by heart: its rows in the order of the file."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..recsys.interactions.interactions import ITEM_ID, TITLE, USER_ID, Interactions
from ..recsys.metrics.intervals import mean_interval
from ..tokenization import tokenize_dataset
from .log_probs import completion_log_probs


class MemorisationProbe(NamedTuple):
    """
    What [`memorisation_probe`] returns.

    Args:
        gain (`float`):
            By how many nats the next title of the file is likelier after the titles before it in the order of the file than
            after the same titles shuffled, but for the last, which stays: the mean over users.
        ci (`tuple[float, float]`):
            Its 95% interval, over users.
        log_prob (`float`):
            Mean log-probability of the next title after the order of the file.
        n (`int`):
            Users.
    """

    gain: float
    ci: tuple[float, float]
    log_prob: float
    n: int

    @property
    def verdict(self) -> str:
        """What a report says of it."""
        found = "likelier in the order of the file" if self.ci[0] > 0 else "no likelier in the order of the file"
        low, high = self.ci
        return f"next titles are {found}: {self.gain:+.3f} nats ({low:+.3f} to {high:+.3f}), {self.n} users"


def memorisation_probe(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    sequences: Mapping[object, Sequence[str]],
    *,
    seed: int,
    num_titles: int = 10,
    num_shuffles: int = 4,
    max_users: int = 200,
    batch_size: int = 16,
    desc: str = "Memorisation probe",
) -> MemorisationProbe:
    """
    Ask a model, before any training on the data, to go on with the rows of a public file.

    A model whose pretraining had the file finds the title of a user's next row likelier after the rows before it, as they
    stand there, than after the same rows in another order. The last title stays at its place in both, since neighbours in a
    file are alike for other reasons too (a sitting, a series, ids by year). A gain above 0 is not proof: an order that
    means something, such as time, helps a model that has never seen the file. A gain of 0 says that the file is not known by
    heart; nothing is said of knowledge about the items, which is what a pretrained model is taken for.

    Args:
        model ([`~transformers.PreTrainedModel`]), processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The model and its tokenizer.
        sequences (`Mapping[object, Sequence[str]]`):
            For each user the titles of their rows in the order of the file, see [`file_sequences`].
        seed (`int`):
            Of the users that are drawn, and of the shuffles.
        num_titles (`int`, *optional*, defaults to `10`):
            Titles that are given; users with fewer than one more are left out.
        num_shuffles (`int`, *optional*, defaults to `4`):
            Other orders of each, over which the mean is taken.
        max_users (`int`, *optional*, defaults to `200`):
            Users at most.
        batch_size (`int`, *optional*, defaults to `16`), desc (`str`, *optional*):
            See [`completion_log_probs`].

    Returns:
        [`MemorisationProbe`]: The gain with its interval.

    Raises:
        ValueError: fewer than two users have enough titles, or there is no order to shuffle.

    Example:
        ```python
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl_sdpo.recsys import load_movielens
        from trl_sdpo.scoring.memorisation import file_sequences, memorisation_probe

        model, tokenizer = AutoModelForCausalLM.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
        sequences = file_sequences(load_movielens("ml-100k.zip"))
        print(memorisation_probe(model, tokenizer, sequences, seed=0).verdict)
        ```
    """
    if num_titles < 3 or num_shuffles < 1:
        raise ValueError(f"num_titles={num_titles} must be at least 3, num_shuffles={num_shuffles} at least 1.")
    long = [
        titles for _, titles in sorted(sequences.items(), key=lambda pair: str(pair[0])) if len(titles) > num_titles
    ]
    if len(long) < 2:
        raise ValueError(
            f"sequences: {len(long)} users have more than num_titles={num_titles} titles. Pass fewer titles."
        )
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.choice(len(long), min(max_users, len(long)), replace=False))
    records = []
    for titles in (long[row] for row in rows):
        given, following, another = list(titles[:num_titles]), titles[num_titles], titles[0]
        for order in _orders(num_titles, num_shuffles, generator):
            prompt = "".join(f"{given[place]}\n" for place in order)
            records.append({"prompt": prompt, "chosen": f"{following}\n", "rejected": [f"{another}!\n"]})
    tokenized = tokenize_dataset(Dataset.from_list(records), processing_class, "", desc=None)
    scores = completion_log_probs(model, tokenized, processing_class, batch_size, desc=desc)
    found = np.array([row[0] for row in scores]).reshape(len(rows), 1 + num_shuffles)
    gains = found[:, 0] - found[:, 1:].mean(axis=1)
    return MemorisationProbe(float(gains.mean()), mean_interval(gains), float(found[:, 0].mean()), len(rows))


def file_sequences(interactions: Interactions) -> dict[object, list[str]]:
    """The titles of every user in the order of the rows of the file, each title once."""
    events = interactions.events.select(USER_ID, ITEM_ID).unique(maintain_order=True)
    titled = events.join(interactions.items.select(ITEM_ID, TITLE), on=ITEM_ID, maintain_order="left")
    return dict(titled.group_by(USER_ID, maintain_order=True).agg(TITLE).iter_rows())


def _orders(size: int, count: int, generator: np.random.Generator) -> list[np.ndarray]:
    """The order of the file, and others with the same last place."""
    orders = [np.arange(size)]
    while len(orders) <= count:
        order = np.append(generator.permutation(size - 1), size - 1)
        if (order != orders[0]).any():
            orders.append(order)
    return orders

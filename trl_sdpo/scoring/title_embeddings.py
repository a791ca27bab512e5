"""Vectors of titles from a language model or an encoder, for recommenders of ids that read them."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .._progress import progress


def title_embeddings(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    titles: Sequence[str],
    *,
    batch_size: int = 64,
    max_length: int = 256,
    desc: str | None = "Embedding titles",
) -> np.ndarray:
    """
    Embed titles, or other texts of items, by the mean of the last hidden states over their tokens.

    This is how sentence encoders are mostly read, and what a causal language model after training on titles has to offer
    (LLM2Rec, https://huggingface.co/papers/2506.21579): SASRec takes the vectors as `item_embeddings`, [`content_scorer`]
    as `vectors`.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any model with hidden states, causal or not, with an adapter or without. Its mode and its gradients stay as
            they are.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        titles (`Sequence[str]`):
            Texts, none of them empty.
        batch_size (`int`, *optional*, defaults to `64`):
            Texts in a batch. Texts of like lengths go together.
        max_length (`int`, *optional*, defaults to `256`):
            Tokens of a text at most; what is longer is cut.
        desc (`str`, *optional*, defaults to `"Embedding titles"`):
            Label of the progress bar; `None` for no bar.

    Returns:
        `numpy.ndarray`: `float32` of shape `(len(titles), hidden_size)`.

    Raises:
        ValueError: there are no texts, one has no token, or the model has no hidden states.

    Example:
        ```python
        from transformers import AutoModel, AutoTokenizer
        from trl_sdpo.recsys.baselines.sequential import train_sasrec
        from trl_sdpo.scoring.title_embeddings import title_embeddings

        model, tokenizer = AutoModel.from_pretrained("outputs/sft"), AutoTokenizer.from_pretrained("outputs/sft")
        vectors = title_embeddings(model, tokenizer, catalogue.titles)
        scorer = train_sasrec(events, seed=0, item_embeddings=dict(zip(catalogue.item_ids, vectors)))
        ```
    """
    if not len(titles):
        raise ValueError("titles: none. Pass at least one.")
    tokens = processing_class(list(titles), truncation=True, max_length=max_length)["input_ids"]
    for row, ids in enumerate(tokens):
        if not len(ids):
            raise ValueError(f"titles: row {row}: {titles[row]!r} has no token. Pass a text.")
    order = np.argsort([len(ids) for ids in tokens], kind="stable")
    device, was_training = next(model.parameters()).device, model.training
    vectors: np.ndarray | None = None
    model.eval()
    try:
        for begin in progress(range(0, len(order), batch_size), desc=desc, unit="batches"):
            rows = order[begin : begin + batch_size]
            found = _embed(model, [tokens[row] for row in rows], device)
            vectors = np.empty((len(order), found.shape[1]), dtype=np.float32) if vectors is None else vectors
            vectors[rows] = found
    finally:
        model.train(was_training)
    return vectors


@torch.no_grad()
def _embed(model: PreTrainedModel, tokens: list[list[int]], device: torch.device) -> np.ndarray:
    """Means over tokens, of shape `(len(tokens), hidden_size)`."""
    longest = max(map(len, tokens))
    # padding stands at the right and is not attended to, so which token it is does not matter
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in tokens], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens], device=device)
    output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    states = getattr(output, "hidden_states", None)
    if not states:
        raise ValueError(f"{type(model).__name__} has no hidden states. Pass a language model or an encoder.")
    # An encoder-decoder gives those of its decoder another name; what stands here is the last layer of what read the text.
    weights = mask[..., None].float()
    return ((states[-1].float() * weights).sum(dim=1) / weights.sum(dim=1)).cpu().numpy()

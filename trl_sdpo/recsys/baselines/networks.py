"""Networks that read a history of items: SASRec, GRU4Rec and Caser, all with a state after every item."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class SequentialModel(nn.Module):
    """
    What the networks share: item 0 opens every history, and items are both read and scored with one embedding, of their ids,
    of vectors that they are given ([`SequentialModel.add_vectors`]), or of both.

    State t is computed from the opening and the first t items alone, so one row trains on all of its positions, and
    what stands behind a history (padding) has no effect on it.

    Args:
        num_items (`int`):
            Items, which are numbered from 1.
        hidden_size (`int`):
            Size of the embedding and of the states.
        max_length (`int`):
            Longest history.
        dropout (`float`):
            Dropout.
    """

    vectors: torch.Tensor
    has_events: torch.Tensor
    known: torch.Tensor
    id_dropout: float

    def __init__(self, num_items: int, hidden_size: int, max_length: int, dropout: float) -> None:
        super().__init__()
        if hidden_size < 1 or max_length < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"hidden_size={hidden_size} and max_length={max_length} must be at least 1, dropout={dropout} in [0, 1)."
            )
        self.max_length = max_length
        # What makes a network of this shape again.
        self.sizes: dict[str, Any] = {
            "num_items": num_items,
            "hidden_size": hidden_size,
            "max_length": max_length,
            "dropout": dropout,
        }
        self.items = nn.Embedding(num_items + 1, hidden_size)
        self.bias = nn.Parameter(torch.zeros(num_items))
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.items.weight, std=hidden_size**-0.5)
        self.projection: nn.Linear | None = None

    def add_vectors(self, vectors: torch.Tensor, known: torch.Tensor, id_dropout: float) -> None:
        """
        Let items have vectors, which do not train and are projected, beside what is learned of their ids or in place of it.

        Args:
            vectors (`torch.Tensor`):
                Of shape `(num_items, d)`.
            known (`torch.Tensor`):
                Which items have events to learn their ids by, flags of shape `(num_items,)`. Others have their vector alone.
            id_dropout (`float`):
                How often, in training, an item's id is left out, so that vectors alone say enough (DropoutNet, Volkovs et
                al., NeurIPS 2017). 1 for no ids at all.
        """
        if not 0 <= id_dropout <= 1:
            raise ValueError(f"id_dropout={id_dropout} is not between 0 and 1.")
        self.id_dropout = id_dropout
        self.projection = nn.Linear(vectors.shape[1], self.items.embedding_dim + 1)  # the last one is the bias
        # What opens a history has no vector.
        self.register_buffer("vectors", F.pad(vectors, (0, 0, 1, 0)))
        self.register_buffer("has_events", known)
        self.register_buffer("known", F.pad(known & (id_dropout < 1), (1, 0), value=True))

    def embed(self, inputs: torch.Tensor) -> torch.Tensor:
        """What items `(...)` are read as: `(..., hidden_size)`."""
        if self.projection is None:
            return self.items(inputs)
        own = self._ids()[inputs, None] * self.items(inputs)
        return own + (inputs > 0)[..., None] * self.projection(self.vectors[inputs])[..., :-1]

    def _ids(self) -> torch.Tensor:
        """Whether the id of each item counts, 1 or 0: of shape `(1 + num_items,)`."""
        kept = self.known.to(self.bias.dtype)
        if self.training and 0 < self.id_dropout < 1:
            drawn = torch.rand(len(kept) - 1, device=kept.device) >= self.id_dropout
            kept = kept * F.pad(drawn, (1, 0), value=True)
        return kept

    def states(self, inputs: torch.Tensor) -> torch.Tensor:
        """The states `(B, 1 + T, hidden_size)` of inputs `(B, 1 + T)`: 0, then the histories, then padding."""
        raise NotImplementedError

    def scores(self, states: torch.Tensor) -> torch.Tensor:
        """The logits `(..., num_items)` of all items given states `(..., hidden_size)`; item i is in column i - 1."""
        if self.projection is None:
            return F.linear(self.dropout(states), self.items.weight[1:], self.bias)
        kept, projected = self._ids()[1:], self.projection(self.vectors[1:])
        weight = kept[:, None] * self.items.weight[1:] + projected[:, :-1]
        logits = F.linear(self.dropout(states), weight, kept * self.bias + projected[:, -1])
        # Items without events cannot be targets of training: as wrong answers they would be learned to be bad.
        return logits.masked_fill(~self.has_events, -torch.inf) if self.training else logits


class SASRec(SequentialModel):
    """
    Self-attention over the history (Kang and McAuley, ICDM 2018, https://huggingface.co/papers/1808.09781).

    Args:
        num_items (`int`), hidden_size (`int`), max_length (`int`), dropout (`float`):
            See [`SequentialModel`].
        num_layers (`int`), num_heads (`int`):
            Blocks of attention and feed-forward, and heads of the attention.
    """

    def __init__(
        self, num_items: int, hidden_size: int, max_length: int, dropout: float, num_layers: int, num_heads: int
    ) -> None:
        super().__init__(num_items, hidden_size, max_length, dropout)
        self.sizes |= {"num_layers": num_layers, "num_heads": num_heads}
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size={hidden_size} is not a multiple of num_heads={num_heads}. Pass one.")
        self.positions = nn.Embedding(1 + max_length, hidden_size)
        nn.init.normal_(self.positions.weight, std=hidden_size**-0.5)
        layer = nn.TransformerEncoderLayer(
            hidden_size, num_heads, 4 * hidden_size, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(hidden_size)
        self.encoder = nn.TransformerEncoder(layer, num_layers, norm=norm, enable_nested_tensor=False)

    def states(self, inputs: torch.Tensor) -> torch.Tensor:
        length = inputs.shape[1]
        embedded = self.embed(inputs) + self.positions.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=inputs.device)
        return self.encoder(self.dropout(embedded), mask=mask, is_causal=True)


class GRU4Rec(SequentialModel):
    """
    A recurrent network over the history (Hidasi et al., ICLR 2016, https://huggingface.co/papers/1511.06939).

    Args:
        num_items (`int`), hidden_size (`int`), max_length (`int`), dropout (`float`):
            See [`SequentialModel`].
        num_layers (`int`):
            Layers of the GRU.
    """

    def __init__(self, num_items: int, hidden_size: int, max_length: int, dropout: float, num_layers: int) -> None:
        super().__init__(num_items, hidden_size, max_length, dropout)
        self.sizes |= {"num_layers": num_layers}
        self.gru = nn.GRU(
            hidden_size, hidden_size, num_layers, batch_first=True, dropout=dropout if num_layers > 1 else 0.0
        )

    def states(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.gru(self.dropout(self.embed(inputs)))[0]

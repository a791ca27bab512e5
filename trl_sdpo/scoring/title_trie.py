"""All titles of a catalogue as one tree of tokens."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from ..files import writing
from .title_tokens import tokenize_answers


DEAD = -1
ROOT = 0
_ARRAYS = ("_keys", "_first_edge", "_title_of_node", "_leaf_of_title", "_leaves_below")
_NUMBERS = ("num_titles", "depth", "num_nodes", "_width", "_most_edges")


class TitleTrie:
    """
    A trie of completions: a node for every beginning of one, an edge for every token, a leaf for every completion.

    Nodes are numbered level by level and, within a level, by parent and token. So the edges are sorted by
    `(parent, token)`, the edge `i` leads to the node `i + 1`, and a step of many walks at once is one binary search.

    Completions with the same tokens, which no language model can tell apart, share a leaf: [`~TitleTrie.same_titles`].

    Args:
        paths (`Sequence[Sequence[int]]`):
            The tokens of every completion up to its end, which must show in the last token: no completion may begin
            another one.
        names (`Sequence[str]`, *optional*):
            The titles, for errors.

    Raises:
        `ValueError`: If there are no completions, one has no tokens, or one is the beginning of another.

    Example:
        ```python
        >>> trie = TitleTrie([[5, 6, 2], [5, 2], [7, 2], [5, 6, 2]])
        >>> trie.walk(torch.tensor([[5, 6], [7, 2], [6, 5]])).tolist()  # the last one is no beginning of a completion
        [4, 5, -1]
        >>> trie.tokens_after(torch.tensor([4])), trie.title_at(5), trie.same_titles(3)
        ([2], 2, [0, 3])

        ```
    """

    def __init__(self, paths: Sequence[Sequence[int]], names: Sequence[str] | None = None) -> None:
        self.num_titles = len(paths)
        self._names = names
        # a completion as it is written, its tokens, and the EOS token behind it
        self.example: tuple[Any, list[int], str] | None = None
        lengths = np.fromiter(map(len, paths), np.int64, len(paths))
        if not len(paths):
            raise ValueError("There are no titles. Pass at least one.")
        if lengths.min() == 0:
            raise ValueError(f"{self._name(int(lengths.argmin()))}: no tokens. Remove it.")
        self.depth = int(lengths.max())
        tokens = np.fromiter(itertools.chain.from_iterable(paths), np.int64, int(lengths.sum()))
        self._width = int(tokens.max()) + 1  # of the tokens in a key
        self._grow(tokens, lengths)
        self._tensors: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def _grow(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Level by level, from the tokens of all titles, one behind the other."""
        starts = np.cumsum(lengths) - lengths
        keys, num_nodes, first_node = [], 1, [ROOT]
        here = np.full(len(lengths), ROOT)
        for level in range(self.depth):
            alive = np.flatnonzero(lengths > level)
            level_keys, places = np.unique(
                here[alive] * self._width + tokens[starts[alive] + level], return_inverse=True
            )
            keys.append(level_keys)
            here[alive] = num_nodes + places
            first_node.append(num_nodes)
            num_nodes += len(level_keys)
        self.num_nodes = num_nodes
        self._keys = np.concatenate(keys)
        small = np.int32 if num_nodes < 2**31 else np.int64
        self._first_edge = np.searchsorted(self._keys, np.arange(num_nodes + 1) * self._width).astype(small)
        # the most edges below a node of each level
        self._most_edges = np.maximum.reduceat(np.diff(self._first_edge), first_node).tolist()
        # a later title overwrites an earlier one, and the first is to stay
        self._title_of_node = np.full(num_nodes, DEAD, dtype=small)
        self._title_of_node[here[::-1]] = np.arange(len(here))[::-1]
        self._leaf_of_title = here.astype(small)
        goes_on = np.flatnonzero((np.diff(self._first_edge) > 0) & (self._title_of_node != DEAD))
        if len(goes_on):
            title = int(self._title_of_node[goes_on[0]])
            raise ValueError(
                f"{self._name(title)}: its tokens are the beginning of another title's, so that its end cannot be seen. "
                "Let completions end in a token that no title holds: an EOS token (`append_eos=True`), or a "
                "`completion_suffix` such as a line break."
            )
        self._leaves_below = (self._title_of_node != DEAD).astype(small)
        for first, end in reversed([*itertools.pairwise([*first_node, num_nodes])][1:]):
            np.add.at(self._leaves_below, self._parents(np.arange(first, end)), self._leaves_below[first:end])

    def _parents(self, nodes: np.ndarray) -> np.ndarray:
        """The node above each, which is not the root."""
        return self._keys[nodes - 1] // self._width

    def _paths_of(self, titles: np.ndarray) -> np.ndarray:
        """The nodes from the root down to each title, of shape `(titles, depth)`, `DEAD` in front of the shorter paths."""
        nodes = np.full((len(titles), self.depth), DEAD, dtype=np.int64)
        here = self._leaf_of_title[titles].astype(np.int64)
        for place in reversed(range(self.depth)):
            nodes[:, place] = np.where(here == ROOT, DEAD, here)
            here = np.where(here == ROOT, ROOT, self._parents(np.maximum(here, 1)))
        return nodes

    def _name(self, title: int) -> str:
        return f"Title {title}" if self._names is None else f"Title {title}, {self._names[title]!r}"

    @classmethod
    def from_titles(
        cls,
        titles: Sequence[str],
        processing_class: PreTrainedTokenizerBase,
        prompt: str | list[dict] | list[int],
        completion_prefix: str = " ",
        completion_suffix: str = "",
        append_eos: bool = True,
    ) -> "TitleTrie":
        """
        The trie of titles in the form of the completions of multi-preference records, with the tokens of training.

        Args:
            titles (`Sequence[str]`):
                The titles.
            processing_class ([`~transformers.PreTrainedTokenizerBase`]):
                Tokenizer.
            prompt (`str` or `list[dict]`):
                A prompt, text or messages, since what stands before a text may change its tokens.
            completion_prefix (`str`, *optional*, defaults to `" "`), completion_suffix (`str`, *optional*, defaults to `""`):
                Before and behind a title, as in [`PromptTemplate`]. An answer in messages is the bare title.
            append_eos (`bool`, *optional*, defaults to `True`):
                Whether a completion of text ends in the EOS token, as those of the trainer do. Without, the suffix
                has to end it.

        Returns:
            [`TitleTrie`]: The trie.

        Raises:
            `ValueError`: As the constructor, or if the prompt does not end where a token ends.
        """
        if len(titles) == 0:
            raise ValueError("There are no titles. Pass at least one.")
        for number, title in enumerate(titles):
            if not isinstance(title, str) or not title.strip():
                raise ValueError(f"Title {number}: {title!r} is no text. Remove it, or fill in the text.")
        if isinstance(prompt, str):
            completions = [f"{completion_prefix}{title}{completion_suffix}" for title in titles]
        elif prompt and isinstance(prompt[0], dict):
            completions = [[{"role": "assistant", "content": title}] for title in titles]
        else:
            raise ValueError(
                f"The prompt {prompt!r} is no text and no messages, so what stands before a title is not known. Pass such "
                "a prompt, or make a `TitleTrie` of the tokens of the titles."
            )
        # every text ends in an empty one, so that nothing is appended
        eos_token = processing_class.eos_token if append_eos else ""
        _, paths = tokenize_answers(prompt, completions, processing_class, eos_token)
        trie = cls(paths, names=titles)
        trie.example = (completions[0], paths[0], eos_token)
        return trie

    def save(self, path: str | Path, made_of: str) -> Path:
        """
        Write the trie to a file, which is there whole or as it was before.

        Args:
            path (`str` or `Path`):
                A `.safetensors` file.
            made_of (`str`):
                What tells it from the trie of other titles or of another tokenizer.

        Returns:
            `Path`: The file.
        """
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        metadata = {"made_of": made_of, "numbers": json.dumps(numbers), "example": json.dumps(self.example)}
        with writing(path) as temporary:
            save_file({name: getattr(self, name) for name in _ARRAYS}, temporary, metadata)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, made_of: str, names: Sequence[str] | None = None) -> "TitleTrie | None":
        """
        A trie that was saved, mapped into memory.

        Args:
            path (`str` or `Path`):
                The file.
            made_of (`str`):
                See [`save`].
            names (`Sequence[str]`, *optional*):
                The titles, for errors.

        Returns:
            [`TitleTrie`] or `None`: `None` if it is one of other titles.

        Raises:
            `safetensors.SafetensorError`: If the file is damaged.
        """
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("made_of") != made_of:
                return None
            arrays = {name: file.get_tensor(name).numpy() for name in _ARRAYS}
        trie = cls.__new__(cls)
        vars(trie).update(arrays, **json.loads(metadata["numbers"]), _names=names, _tensors={})
        example = json.loads(metadata["example"])
        trie.example = None if example is None else tuple(example)
        return trie

    def prompt_ids(
        self, prompts: Sequence[str | list[dict] | list[int]], processing_class: PreTrainedTokenizerBase
    ) -> list[list[int]]:
        """
        The tokens of prompts as in training, checked against those of the titles.

        Args:
            prompts (`Sequence`):
                Texts, lists of messages, or lists of tokens, which are taken as they are.
            processing_class ([`~transformers.PreTrainedTokenizerBase`]):
                Tokenizer.

        Returns:
            `list[list[int]]`: The tokens.

        Raises:
            `ValueError`: If after a prompt the first title has other tokens than in the trie.
        """
        all_ids: list[list[int]] = []
        for row, prompt in enumerate(prompts):
            if not isinstance(prompt, str) and not (prompt and isinstance(prompt[0], dict)):
                all_ids.append(list(cast("list[int]", prompt)))
                continue
            if self.example is None:
                raise ValueError(
                    f"Row {row}: the trie was made of tokens. Pass prompts of tokens, or make it of titles."
                )
            completion, path, eos_token = self.example
            ids, (answer,) = tokenize_answers(prompt, [completion], processing_class, eos_token, row)
            if answer != path:
                raise ValueError(
                    f"Row {row}: after the prompt {prompt!r} the completion {completion!r} is the tokens {answer}, where "
                    f"the trie has {path}. Make the trie with a prompt of the same template."
                )
            all_ids.append(ids)
        return all_ids

    def paths(self) -> list[list[int]]:
        """The tokens of every title, in their order."""
        nodes = self._paths_of(np.arange(self.num_titles))
        tokens = self._keys[nodes - 1] % self._width  # of the edge to the node behind it
        return [row[there].tolist() for row, there in zip(tokens, nodes != DEAD, strict=True)]

    def distinct_titles(self) -> np.ndarray:
        """The titles without those that share all tokens with an earlier one, ascending."""
        return np.unique(self._title_of_node[self._leaf_of_title]).astype(np.int64)

    def first_titles(self, titles: Sequence[int]) -> np.ndarray:
        """The first of the titles with the tokens of each of some titles; an error where there is no such title."""
        titles = self._checked(titles)
        return self._title_of_node[self._leaf_of_title[titles]].astype(np.int64)

    def same_titles(self, title: int) -> list[int]:
        """All titles with the tokens of this one, itself included, ascending."""
        return np.flatnonzero(self._leaf_of_title == self._leaf_of_title[title]).tolist()

    def title_at(self, node: int) -> int | None:
        """The title that ends at a node, the first where several do; `None` if none does."""
        title = int(self._title_of_node[node]) if node != DEAD else DEAD
        return None if title == DEAD else title

    def tokens_after(self, nodes: torch.Tensor) -> list[int]:
        """The tokens that may follow at the first of some nodes. For reading, not for speed."""
        _, tokens, _ = self.edges(nodes[:1])
        return tokens.tolist()

    def closed_nodes(self, titles: Sequence[int]) -> np.ndarray:
        """
        The nodes below which nothing is left when titles, with all that share their tokens, are left out.

        Args:
            titles (`Sequence[int]`):
                The titles.

        Returns:
            `numpy.ndarray`: The nodes, ascending.

        Raises:
            `ValueError`: If there is no such title.
        """
        titles = self._checked(titles)
        paths = self._paths_of(np.unique(self._title_of_node[self._leaf_of_title[titles]]))
        nodes, counts = np.unique(paths[paths != DEAD], return_counts=True)
        return nodes[counts == self._leaves_below[nodes]]

    def _checked(self, titles: Sequence[int]) -> np.ndarray:
        titles = np.unique(np.asarray(list(titles), dtype=np.int64))
        if len(titles) and (titles[0] < 0 or titles[-1] >= self.num_titles):
            wrong = titles[0] if titles[0] < 0 else titles[-1]
            raise ValueError(f"There is no title {wrong} to exclude: titles count from 0 to {self.num_titles - 1}.")
        return titles

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if device not in self._tensors:
            arrays = (self._keys, self._first_edge, self._title_of_node != DEAD)
            keys, first_edge, is_title = (torch.as_tensor(array, device=device) for array in arrays)
            self._tensors[device] = keys, first_edge, is_title
        return self._tensors[device]

    def steps(self, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
        """
        Where the tokens of rows lead, token by token.

        Args:
            tokens (`torch.Tensor` of shape `(rows, T)`):
                Tokens from the root on.

        Returns:
            `Iterator` of T `torch.Tensor` of shape `(rows,)`: The nodes, -1 where no completion begins so.
        """
        keys, _, _ = self._on(tokens.device)
        nodes = torch.full((tokens.size(0),), ROOT, device=tokens.device)
        for column in tokens.unbind(dim=1):
            # tokens beyond those of the titles would be keys of other nodes
            impossible = (nodes == DEAD) | (column < 0) | (column >= self._width)
            wanted = torch.where(impossible, DEAD, nodes * self._width + column)
            edges = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
            nodes = torch.where(keys[edges] == wanted, edges + 1, DEAD)
            yield nodes

    def walk(self, tokens: torch.Tensor) -> torch.Tensor:
        """Where all tokens of rows lead, of shape `(rows,)`, see [`~TitleTrie.steps`]. Without tokens, to the root."""
        nodes = torch.full((tokens.size(0),), ROOT, device=tokens.device)
        for nodes in self.steps(tokens):  # noqa: B007
            pass
        return nodes

    def is_leaf(self, nodes: torch.Tensor) -> torch.Tensor:
        """Whether a completion ends at a node, of the shape of `nodes`."""
        _, _, leaf = self._on(nodes.device)
        return leaf[nodes.clamp(min=ROOT)] & (nodes != DEAD)

    def children(self, nodes: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        The edges below nodes of one level, in a table as wide as the widest node of the level: its size is known without
        asking the device (STATIC, https://huggingface.co/papers/2602.22647, does so with the rows of a sparse matrix).

        Args:
            nodes (`torch.Tensor` of shape `(rows,)`):
                Nodes, -1 for none.
            level (`int`):
                How many tokens lead to each of them.

        Returns:
            `tuple` of three `torch.Tensor` of shape `(rows, width)`: The tokens, the nodes that they lead to, and which of
            them there are.
        """
        keys, first_edge, _ = self._on(nodes.device)
        width = self._most_edges[level] if level < len(self._most_edges) else 0
        known = nodes.clamp(min=ROOT)
        begins = first_edge[known].unsqueeze(1)
        places = torch.arange(width, device=nodes.device)
        exists = (places < first_edge[known + 1].unsqueeze(1) - begins) & (nodes != DEAD).unsqueeze(1)
        edges = (begins + places).clamp(max=len(keys) - 1)
        return keys[edges] % self._width, edges + 1, exists

    def edges(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        The edges below nodes.

        Args:
            nodes (`torch.Tensor` of shape `(rows,)`):
                Nodes, -1 for none.

        Returns:
            `tuple` of three `torch.Tensor` of shape `(edges,)`: For each edge the row, its token, and the node that it
            leads to.
        """
        keys, first_edge, _ = self._on(nodes.device)
        known = nodes.clamp(min=ROOT)
        begins = first_edge[known]
        counts = (first_edge[known + 1] - begins) * (nodes != DEAD)
        rows = torch.repeat_interleave(torch.arange(len(nodes), device=nodes.device), counts)
        within = torch.arange(len(rows), device=nodes.device) - (counts.cumsum(0) - counts)[rows]
        edges = begins[rows] + within
        return rows, keys[edges] % self._width, edges + 1

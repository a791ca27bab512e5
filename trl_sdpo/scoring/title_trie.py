"""All titles of a catalogue as one tree of tokens."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..data_utils import _tokenize_completions


DEAD = -1
ROOT = 0


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
        lengths = np.array([len(path) for path in paths])
        if not len(paths):
            raise ValueError("There are no titles. Pass at least one.")
        if lengths.min() == 0:
            raise ValueError(f"{self._name(int(lengths.argmin()))}: no tokens. Remove it.")
        self.depth = int(lengths.max())
        tokens = np.full((len(paths), self.depth), -1, dtype=np.int64)
        tokens[np.arange(self.depth) < lengths[:, None]] = np.concatenate([np.asarray(path) for path in paths])
        self._width = int(tokens.max()) + 1  # of the tokens in a key
        self._grow(tokens, lengths)
        self._tensors: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def _grow(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        keys, num_nodes, first_node = [], 1, [ROOT]
        nodes = np.full(tokens.shape, DEAD, dtype=np.int64)  # of every title, level by level
        here = np.full(len(tokens), ROOT)
        for level in range(tokens.shape[1]):
            alive = lengths > level
            level_keys, places = np.unique(here[alive] * self._width + tokens[alive, level], return_inverse=True)
            keys.append(level_keys)
            here[alive] = nodes[alive, level] = num_nodes + places
            first_node.append(num_nodes)
            num_nodes += len(level_keys)
        self.num_nodes, self._nodes = num_nodes, nodes
        self._keys = np.concatenate(keys)
        self._first_edge = np.searchsorted(self._keys, np.arange(num_nodes + 1) * self._width)
        # the most edges below a node of each level
        self._most_edges = np.maximum.reduceat(np.diff(self._first_edge), first_node).tolist()
        # a later title overwrites an earlier one, and the first is to stay
        self._title_of_node = np.full(num_nodes, DEAD, dtype=np.int64)
        self._title_of_node[here[::-1]] = np.arange(len(here))[::-1]
        self._leaf_of_title = here
        goes_on = np.flatnonzero((np.diff(self._first_edge) > 0) & (self._title_of_node != DEAD))
        if len(goes_on):
            title = int(self._title_of_node[goes_on[0]])
            raise ValueError(
                f"{self._name(title)}: its tokens are the beginning of another title's, so that its end cannot be seen. "
                "Let completions end in a token that no title holds: an EOS token (`append_eos=True`), or a "
                "`completion_suffix` such as a line break."
            )
        distinct = nodes[self._title_of_node[self._title_of_node != DEAD]]
        self._leaves_below = np.bincount(distinct[distinct != DEAD], minlength=num_nodes)

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
        tokens = self._keys % self._width  # of the edge to the node behind it
        return [
            [int(tokens[node - 1]) for node in row if node != DEAD]
            for row in cast("list[list[int]]", self._nodes.tolist())
        ]

    def distinct_titles(self) -> np.ndarray:
        """The titles without those that share all tokens with an earlier one, ascending."""
        return np.unique(self._title_of_node[self._leaf_of_title])

    def first_titles(self, titles: Sequence[int]) -> np.ndarray:
        """The first of the titles with the tokens of each of some titles; an error where there is no such title."""
        titles = self._checked(titles)
        return self._title_of_node[self._leaf_of_title[titles]]

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
        paths = self._nodes[np.unique(self._title_of_node[self._leaf_of_title[titles]])]
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


def tokenize_answers(
    prompt: str | list[dict],
    completions: list,
    processing_class: PreTrainedTokenizerBase,
    eos_token: str,
    row: int = 0,
) -> tuple[list[int], list[list[int]]]:
    """
    A prompt and completions to it as the trainer tokenizes them.

    Raises:
        `ValueError`: If the prompt does not end where a token ends.
    """
    example = {"prompt": prompt, "chosen": completions[0], "rejected": completions[1:]}
    prompt_ids, answers = _tokenize_completions(example, processing_class, eos_token)
    if isinstance(prompt, str):
        alone = processing_class(text=prompt)["input_ids"]
        cut_off = alone[len(prompt_ids) :]
        # a tokenizer that ends every text with an EOS token ends a prompt with it too; no token of the text is lost
        if cut_off and set(cut_off) != {processing_class.eos_token_id}:
            raise ValueError(
                f"Row {row}: the prompt does not end where a token ends: its last tokens {cut_off} merge "
                "with the completion. End prompts without white space and begin completions with a space "
                "(`completion_prefix`), or end them with a line break."
            )
    return prompt_ids, answers

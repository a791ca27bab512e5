"""
Answers of `generate` that are titles of a catalogue. This file stands alone: it is copied beside an exported model and
needs torch and transformers only.
"""

import json
from pathlib import Path

import torch
from transformers import LogitsProcessor


class TitleProcessor(LogitsProcessor):
    """
    Leaves the tokens that go on to a title. Behind a whole title only EOS is left, at no cost in log-probability, so the
    score of a beam without a length penalty is the log-probability of its title.

    Args:
        completions (`list[list[int]]`):
            The tokens of every title up to its end; none begins another.
        eos_token_id (`int`):
            Token that ends an answer.
        prompt_length (`int`):
            Tokens of a row before those that are generated, padding included.

    Example:
        ```python
        titles = json.load(open("titles.json"))
        batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        processor = TitleProcessor(titles["tokens"], titles["eos_token_id"], batch["input_ids"].shape[1])
        output = model.generate(
            **batch, logits_processor=[processor], max_new_tokens=processor.max_new_tokens, num_beams=10,
            num_return_sequences=10, length_penalty=0.0, do_sample=False,
        )
        ```
    """

    def __init__(self, completions: list[list[int]], eos_token_id: int, prompt_length: int) -> None:
        self.eos_token_id, self.prompt_length = eos_token_id, prompt_length
        self.max_new_tokens = max(map(len, completions)) + 1
        self._next: dict[tuple[int, ...], set[int]] = {}
        self._whole = set()
        for tokens in completions:
            # an EOS of the training is the one that ends the answer
            tokens = tuple(tokens[:-1] if tokens[-1] == eos_token_id else tokens)
            self._whole.add(tokens)
            for end, token in enumerate(tokens):
                self._next.setdefault(tokens[:end], set()).add(token)
        self._ends_in_eos = bool(completions) and completions[0][-1] == eos_token_id

    @classmethod
    def from_folder(cls, folder: str | Path, prompt_length: int) -> "TitleProcessor":
        """Of the `titles.json` of an exported model."""
        titles = json.loads((Path(folder) / "titles.json").read_text(encoding="utf-8"))
        return cls(titles["tokens"], titles["eos_token_id"], prompt_length)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        allowed = torch.full_like(scores, -torch.inf)
        for row, tokens in enumerate(input_ids[:, self.prompt_length :].tolist()):
            begun = tuple(tokens)
            following = list(self._next.get(begun, ()))
            allowed[row, following] = scores[row, following]
            if begun in self._whole:
                allowed[row, self.eos_token_id] = scores[row, self.eos_token_id] if self._ends_in_eos else 0.0
            elif not following:  # behind the end of an answer
                allowed[row, self.eos_token_id] = 0.0
        return allowed

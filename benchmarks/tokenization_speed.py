"""
How many records a second the trainer tokenizes: each prompt once and each distinct completion once, against every prompt
with every completion in batches of the fast tokenizer.

    python benchmarks/tokenization_speed.py
    python benchmarks/tokenization_speed.py --chat
    python benchmarks/tokenization_speed.py --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct

Titles and records are made up: a catalogue of the size of ml-latest-small, 20 completions a record, the candidates in the
prompt. Without `--tokenizer` a byte-level BPE tokenizer with the splits of GPT-2 is trained on the titles. Both ways run
through `datasets.map` on one core, imports not counted, the runs interleaved; the tokens of all records are compared.
"""

import argparse
import json
import os
import time
from typing import Any


os.environ["RAYON_NUM_THREADS"] = "1"

import numpy as np
from datasets import Dataset, disable_caching, disable_progress_bars
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from trl.data_utils import common_prefix_length

from trl_sdpo.tokenization import tokenize_dataset


TITLES, CANDIDATES = 9_742, 20
SYLLABLES = [first + vowel + last for first in "bdfklmnprst" for vowel in "aeiou" for last in ("", "n", "r", "s")]
COLUMNS = ["prompt_ids", "chosen_ids", "rejected_ids"]


def make_titles(generator: np.random.Generator) -> list[str]:
    """Made-up titles of one to four words and a year."""
    words = ["".join(generator.choice(SYLLABLES, size=2)).capitalize() for _ in range(4_000)]
    counts, years = generator.integers(1, 5, size=TITLES), generator.integers(1930, 2019, size=TITLES)
    return [f"{' '.join(generator.choice(words, size=n))} ({year})" for n, year in zip(counts, years, strict=True)]


def make_records(titles: list[str], num_records: int, generator: np.random.Generator) -> Dataset:
    """Records with the candidates in the prompt, which ends in a line break."""
    rows = []
    for _ in range(num_records):
        drawn = [titles[i] for i in generator.choice(len(titles), size=CANDIDATES + 10, replace=False)]
        history, candidates = drawn[:10], drawn[10:]
        prompt = "Watched:\n{}\nOne of:\n{}\nNext:\n".format("\n".join(history), "\n".join(sorted(candidates)))
        rows.append({"prompt": prompt, "chosen": candidates[0], "rejected": candidates[1:]})
    return Dataset.from_list(rows)


def to_chat(row: dict[str, Any]) -> dict[str, list]:
    """A record as a conversation: a turn of the user, and one of the assistant for each completion."""

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    prompt, chosen = turn("user", row["prompt"]), turn("assistant", row["chosen"])
    return {"prompt": prompt, "chosen": chosen, "rejected": [turn("assistant", text) for text in row["rejected"]]}


def train_tokenizer(titles: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the splits of GPT-2."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 16_000, "special_tokens": ["</s>"], "initial_alphabet": alphabet, "show_progress": False}
    backend.train_from_iterator([f" {title}" for title in titles], trainers.BpeTrainer(**options))
    template = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="</s>", chat_template=template
    )


def every_text(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Every prompt with every completion, a thousand records a call."""

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        texts = []
        for prompt, chosen, rejected in zip(batch["prompt"], batch["chosen"], batch["rejected"], strict=True):
            if isinstance(prompt, str):
                texts += [prompt, *(prompt + text + tokenizer.eos_token for text in (chosen, *rejected))]
            else:
                texts.append(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
                whole = [prompt + text for text in (chosen, *rejected)]
                texts += tokenizer.apply_chat_template(whole, tokenize=False)
        ids = tokenizer(text=texts, add_special_tokens=isinstance(batch["prompt"][0], str))["input_ids"]
        columns: dict[str, list] = {name: [] for name in COLUMNS}
        for start in range(0, len(ids), CANDIDATES + 1):
            prompt_ids, *together = ids[start : start + CANDIDATES + 1]
            cut = min(common_prefix_length(prompt_ids, row) for row in together)
            values = prompt_ids[:cut], together[0][cut:], [row[cut:] for row in together[1:]]
            for name, value in zip(COLUMNS, values, strict=True):
                columns[name].append(value)
        return columns

    return dataset.map(tokenize, batched=True, batch_size=1_000)


def once(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """As the trainer does, with all of its checks."""
    return tokenize_dataset(dataset, tokenizer, tokenizer.eos_token)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", help="Name or folder of a tokenizer.")
    parser.add_argument("--chat", action="store_true", help="Records as conversations.")
    parser.add_argument("--records", type=int, default=4_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    disable_progress_bars()
    disable_caching()
    generator = np.random.default_rng(arguments.seed)
    titles = make_titles(generator)
    dataset = make_records(titles, arguments.records, generator)
    if arguments.chat:
        dataset = Dataset.from_list([to_chat(row) for row in dataset])
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer) if arguments.tokenizer else train_tokenizer(titles)
    rates: dict[str, list[float]] = {"every_text": [], "once": []}
    tokens = {}
    for _ in range(arguments.repeats):
        for system in (every_text, once):
            start = time.perf_counter()
            tokens[system.__name__] = system(dataset, tokenizer).select_columns(COLUMNS)
            rates[system.__name__].append(arguments.records / (time.perf_counter() - start))
    ratios = [ours / theirs for ours, theirs in zip(rates["once"], rates["every_text"], strict=True)]
    print(
        json.dumps(
            {
                "records": arguments.records,
                "prompt_tokens": round(float(np.mean([len(ids) for ids in tokens["once"]["prompt_ids"]])), 1),
                "records_per_second": {name: [round(rate) for rate in values] for name, values in rates.items()},
                "ratio": [round(ratio, 1) for ratio in ratios],
                "same_tokens": tokens["once"].to_list() == tokens["every_text"].to_list(),
            }
        )
    )


if __name__ == "__main__":
    main()

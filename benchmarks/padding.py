"""
How much of a batch is padding, in random order and grouped by length: tokens that are computed, over those of the records.

    python benchmarks/padding.py                                              # prompts of 60 to 600 tokens, made up
    python benchmarks/padding.py --records data/ml-latest-small --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct

Rows share their prompt, and are padded to a multiple of 16, as the collator does. No model runs: a step takes about as long
as its tokens.
"""

import argparse
import json

import numpy as np


COMPLETION = (3, 12)  # tokens of a made-up title


def made_up(records: int, negatives: int, prompts: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Tokens of shared rows: the prompt, and K + 1 completions, each of which but one repeats a token of the prompt."""
    titles = generator.integers(*COMPLETION, size=(records, negatives + 1), endpoint=True).sum(axis=1)
    return generator.integers(*prompts, size=records, endpoint=True) + titles + negatives


def of_records(folder: str, tokenizer: str, negatives: int, records: int, seed: int) -> np.ndarray:
    """The same of the first records of a prepared data set."""
    from transformers import AutoTokenizer

    from trl_sdpo.pipeline.datasets import load_records
    from trl_sdpo.tokenization import tokenize_dataset
    from trl_sdpo.trainer.dataset_preparation import DrawnLengths

    split = load_records(folder)["train"]
    split = split.shuffle(seed=seed).select(range(min(records, len(split))))
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    return DrawnLengths(tokenize_dataset(split, loaded, loaded.eos_token), negatives, seed)(0)


def padded(lengths: np.ndarray, order: np.ndarray, batch_size: int) -> float:
    """Tokens with padding over those without."""
    batches = [lengths[order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    return sum(len(batch) * -(-batch.max() // 16) * 16 for batch in batches) / lengths.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", help="Folder of a prepared data set.")
    parser.add_argument("--tokenizer", help="Name or folder of a tokenizer, for --records.")
    parser.add_argument("--num_records", type=int, default=8_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from trl_sdpo.trainer.dataset_preparation import LengthGroupedSampler

    generator = np.random.default_rng(arguments.seed)
    for negatives in (3, 15):
        if arguments.records:
            options = arguments.tokenizer, negatives, arguments.num_records, arguments.seed
            lengths = of_records(arguments.records, *options)
        else:
            lengths = made_up(arguments.num_records, negatives, (60, 600), generator)
        for batch_size in (4, 8, 16):
            grouped = np.array([*LengthGroupedSampler(lengths, batch_size, arguments.seed)])
            row = {
                "K": negatives,
                "batch_size": batch_size,
                "row_tokens": [int(lengths.min()), round(float(lengths.mean())), int(lengths.max())],
                "random": round(padded(lengths, generator.permutation(len(lengths)), batch_size), 3),
                "grouped": round(padded(lengths, grouped, batch_size), 3),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

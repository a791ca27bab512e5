"""A Llama of a few million parameters, from scratch, that learns to recommend within minutes on a CPU."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..files import writing_directory
from ..recsys.records.recommender_files import CATALOGUE_FILE, RECOMMENDER_FILE, load_recommender_files, missing_file


BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# A phrase of the prompts is to be one token or a few, although it stands only once in the corpus
PHRASE_WEIGHT = 100


def train_title_tokenizer(
    titles: Sequence[str], phrases: Sequence[str] = (), vocab_size: int = 8192
) -> PreTrainedTokenizerFast:
    """
    Train a byte-level BPE tokenizer on titles, so that a title is a token or a few.

    A line break belongs to the line that it ends, and merges run over spaces: on a few thousand titles a word like
    "the" says little, and short sequences are what makes training on a CPU quick. Any other text is encoded as well,
    in more tokens.

    Args:
        titles (`Sequence[str]`):
            Titles of the catalogue, each once.
        phrases (`Sequence[str]`, *optional*):
            Fixed parts of the prompts.
        vocab_size (`int`, *optional*, defaults to `8192`):
            Size of the vocabulary at most.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: The tokenizer, which begins a text with `<s>`.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), "merged_with_previous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = [f"{title}\n" for title in titles]
    backend.train_from_iterator([*lines, *(phrase for phrase in phrases for _ in range(PHRASE_WEIGHT))], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def build_small_llama(
    tokenizer: PreTrainedTokenizerFast, hidden_size: int = 256, num_layers: int = 2, seed: int = 0
) -> LlamaForCausalLM:
    """
    Make a Llama with random weights for a tokenizer.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Tokenizer, for the size of the vocabulary and the special tokens.
        hidden_size (`int`, *optional*, defaults to `256`):
            Width, a multiple of 64.
        num_layers (`int`, *optional*, defaults to `2`):
            Number of layers.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights.

    Returns:
        [`~transformers.LlamaForCausalLM`]: The model, in float32, its input and output embeddings tied.

    Raises:
        `ValueError`: If the width is not a multiple of 64.
    """
    if hidden_size % 64:
        raise ValueError(f"`hidden_size` must be a multiple of 64, the width of an attention head, got {hidden_size}.")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def make_small_llama(
    dataset: str | Path,
    directory: str | Path,
    *,
    vocab_size: int = 8192,
    hidden_size: int = 256,
    num_layers: int = 2,
    seed: int = 0,
) -> str:
    """
    Make a small Llama for a prepared data set: with random weights, and a tokenizer of its titles and prompts.

    For machines without a GPU. It has no knowledge of the world; what it recommends it has learned from the records.

    Args:
        dataset (`str` or `Path`):
            Directory that [`prepare`] wrote.
        directory (`str` or `Path`):
            Where the model goes. What is there is replaced.
        vocab_size (`int`, *optional*, defaults to `8192`), hidden_size (`int`, *optional*, defaults to `256`),
            num_layers (`int`, *optional*, defaults to `2`), seed (`int`, *optional*, defaults to `0`):
            See [`train_title_tokenizer`] and [`build_small_llama`].

    Returns:
        `str`: `directory`.

    Raises:
        ValueError: the data set has no `recommender.json` or no `catalogue.json`.

    Example:
        ```python
        from trl_sdpo.pipeline import make_small_llama
        from trl_sdpo.recsys import prepare

        prepare("movielens-100k", "data/ml-100k", seed=0)
        make_small_llama("data/ml-100k", "outputs/base")
        ```
    """
    files = load_recommender_files(dataset)
    if files.config is None:
        raise missing_file(dataset, RECOMMENDER_FILE)
    if files.catalogue is None:
        raise missing_file(dataset, CATALOGUE_FILE)
    # the fixed words before the titles
    headers = [re.split("{history}|{candidates}", template.text)[0] for template in files.config.templates]
    known = files.catalogue.titles, files.catalogue.attributes
    texts = [
        text
        for template in files.config.templates
        for make in (template.shown, template.answers)
        for text in make(*known)
    ]
    tokenizer = train_title_tokenizer([*dict.fromkeys(texts)], headers, vocab_size)
    model = build_small_llama(tokenizer, hidden_size, num_layers, seed)
    with writing_directory(directory, replace=True) as stage:
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
    return str(directory)

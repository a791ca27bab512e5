"""Each prompt once and each distinct completion once: the tokens of TRL's way, whatever the tokenizer."""

import copy
import pickle

import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from trl_sdpo.data_utils import _tokenize_completions, tokenize_multi_preference
from trl_sdpo.tokenization import CompletionTokenizer, tokenize_dataset


TITLES = [
    "Heat (1995)",
    "500 Days, of Summer",
    "Se7en",
    "l'Été 42",
    "千と千尋",
    "The Game II",
    "M*A*S*H",
    "a b  c",
    "W",
]
PROMPTS = ["Seen: Heat (1995), Se7en. Next:", "Heat (1995)\nThe Game II\n", "user likes 20", "Films:\n\n", "A - ", "é"]
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<sep>"]


def trained(model, trainer_cls, pre_tokenizer=None, normalizer=None, decoder=None, **options):
    backend = Tokenizer(model)
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    if decoder is not None:
        backend.decoder = decoder
    texts = [f"{prompt}{before}{title}" for prompt in PROMPTS for title in TITLES for before in ("", " ", "\n")]
    trainer = trainer_cls(vocab_size=420, special_tokens=SPECIAL, show_progress=False, **options)
    backend.train_from_iterator(texts, trainer)
    return backend


def byte_level(pre_tokenizer=None):
    pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(
        models.BPE(), trainers.BpeTrainer, pre_tokenizer, decoder=decoders.ByteLevel(), initial_alphabet=alphabet
    )


def with_regex(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def with_post_processor(backend, template):
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return backend


def sentencepiece(model, trainer_cls, scheme, split, **options):
    return trained(model, trainer_cls, pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split), **options)


def llama_2():
    """Without a pre-tokenizer: merges reach over the whole text, white space included."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return trained(models.BPE(unk_token="<unk>", fuse_unk=True), trainers.BpeTrainer, normalizer=normalizer)


def wordpiece():
    pre_tokenizer, normalizer = pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer()
    return trained(models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer, pre_tokenizer, normalizer)


def word_level():
    return trained(models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer, pre_tokenizers.WhitespaceSplit())


def unigram(scheme, split):
    return sentencepiece(models.Unigram(), trainers.UnigramTrainer, scheme, split, unk_token="<unk>")


BACKENDS = {
    "GPT-2": byte_level,
    "Llama 3": lambda: byte_level(with_regex(LLAMA_3)),
    "byte-level with BOS": lambda: with_post_processor(byte_level(), "<s> $A"),
    "byte-level with EOS": lambda: with_post_processor(byte_level(), "$A </s>"),
    "byte-level, no splits": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "byte-level with a prefix space": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "Llama 2": llama_2,
    "SentencePiece BPE": lambda: sentencepiece(models.BPE(), trainers.BpeTrainer, "first", False),
    "SentencePiece BPE, no space in front": lambda: sentencepiece(models.BPE(), trainers.BpeTrainer, "never", True),
    "SentencePiece unigram": lambda: unigram("always", True),
    "SentencePiece unigram across words": lambda: unigram("first", False),
    "WordPiece": wordpiece,
    "WordPiece with ends": lambda: with_post_processor(wordpiece(), "<s> $A </s>"),
    "words": word_level,
}


@pytest.fixture(scope="module")
def tokenizers():
    made = {
        name: PreTrainedTokenizerFast(tokenizer_object=make(), eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
        for name, make in BACKENDS.items()
    }
    stripping = copy.deepcopy(made["GPT-2"])
    stripping.add_tokens([AddedToken("<item>", lstrip=True, rstrip=True, special=True)])
    return {**made, "a token that takes white space": stripping}


PIECES = [
    *TITLES,
    *PROMPTS,
    " ",
    "\n",
    "  ",
    ":",
    ".",
    "<sep>",
    "</s>",
    "<item>",
    "'s",
    "42",
    "½",
    "\u00a0",
    "\t",
    "z",
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=4).map("".join)
completions = texts.filter(str.strip)
records = st.lists(
    st.fixed_dictionaries(
        {"prompt": texts, "chosen": completions, "rejected": st.lists(completions, min_size=1, max_size=4)}
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(rows=records, eos=st.booleans())
def test_tokens_are_those_of_trl(tokenizers, rows, eos):
    for name, tokenizer in tokenizers.items():
        eos_token = tokenizer.eos_token if eos else ""
        tokenize = CompletionTokenizer(tokenizer, eos_token)
        for batch in (rows[:2], rows, rows[::-1]):  # and what it has kept
            found = list(tokenize(batch))
            assert found == [_tokenize_completions(row, tokenizer, eos_token) for row in batch], name


TEMPLATES = {
    "ChatML": "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}",
    "Llama 3": "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\n\n{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}",
    "no generation prompt": "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}",
    "thinks first": "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n<think>\n{% endif %}",
    "looks at the last": "{% for m in messages %}{{ '(last)' if loop.last else '' }}{{ m.content }}\n{% endfor %}",
    "looks at the words": "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}{{ '!' if 'W' in messages[0].content else '' }}"
    "</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}",
    "looks at the length": "{% for m in messages %}<s>{{ m.role }}\n{{ messages | length }}{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{{ 1 + messages | length }}{% endif %}",
    "tools": "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{{ style }}{% for m in messages %}"
    "<s>{{ m.role }}\n{{ m.content or 'nothing' }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}",
}
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts}),
    min_size=1,
    max_size=3,
)
answers = st.lists(
    st.fixed_dictionaries({"role": st.just("assistant"), "content": completions}), min_size=1, max_size=2
)
conversations = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": turns,
            "chosen": answers,
            "rejected": st.lists(answers, min_size=1, max_size=3),
            "tools": st.sampled_from([None, None, '[{"name": "find"}]']),
            "chat_template_kwargs": st.sampled_from([None, None, {"style": "short "}, {"truncation": False}]),
        }
    ),
    min_size=1,
    max_size=4,
)


CHAT_TOKENIZERS = ("GPT-2", "Llama 3", "byte-level with BOS", "byte-level with EOS", "Llama 2", "WordPiece with ends")


@settings(max_examples=100, deadline=None)
@given(
    rows=conversations,
    plain=records,
    name=st.sampled_from(CHAT_TOKENIZERS),
    template=st.sampled_from(sorted(TEMPLATES.values())),
)
def test_tokens_of_conversations_are_those_of_trl(tokenizers, rows, plain, name, template):
    """In one batch with standard records, too."""
    tokenizer = copy.deepcopy(tokenizers[name])
    tokenizer.bos_token, tokenizer.chat_template = "<s>", template
    tokenize = CompletionTokenizer(tokenizer, tokenizer.eos_token)
    # prompts of other words before the same completions, of which the tokens are kept
    others = [{**row, "prompt": swapped["prompt"]} for row, swapped in zip(rows, rows[1:] + rows[:1], strict=True)]
    for batch in (rows, [*plain[:1], *others, *plain], [*others[::-1], *rows]):
        found = list(tokenize(batch))
        assert found == [_tokenize_completions(row, tokenizer, tokenizer.eos_token) for row in batch]


@pytest.mark.parametrize("template", TEMPLATES)
def test_usual_conversations_are_cut(tokenizers, template):
    tokenizer = copy.deepcopy(tokenizers["Llama 3"])
    tokenizer.bos_token, tokenizer.chat_template = "<s>", TEMPLATES[template]
    tokenize = CompletionTokenizer(tokenizer, "</s>")
    answers = [[{"role": "assistant", "content": title}] for title in (*TITLES[:3], TITLES[5])]
    row = {"prompt": [{"role": "user", "content": "Seen: W."}], "chosen": answers[0], "rejected": answers[1:]}
    assert list(tokenize([row])) == [_tokenize_completions(row, tokenizer, "</s>")]
    assert len(tokenize._render._tails) == 1  # rendered once each
    kept = tokenize._tails[True]._tails.values()
    assert len(kept) == (
        0 if template in ("thinks first", "looks at the last", "looks at the length") else 4
    )  # which go on otherwise
    assert template == "no generation prompt" or None not in kept  # where a role follows the EOS


@pytest.mark.parametrize(
    "name", ["GPT-2", "Llama 3", "byte-level with BOS", "byte-level with EOS", "SentencePiece unigram"]
)
@pytest.mark.parametrize(("prompt", "before"), [("Seen: Se7en. Next:", " "), ("Heat (1995)\n", "")])
def test_usual_records_are_cut(tokenizers, name, prompt, before):
    """Or else nothing would be gained: a colon and a title with its space, a line and a title."""
    tokenize = CompletionTokenizer(tokenizers[name], "</s>")
    known = TITLES[:3] + TITLES[5:6]
    row = {"prompt": prompt, "chosen": before + known[0], "rejected": [before + title for title in known[1:]]}
    assert list(tokenize([row])) == [_tokenize_completions(row, tokenizers[name], "</s>")]
    is_newline_unknown = name == "SentencePiece unigram" and not before
    assert is_newline_unknown or all(tokenize._tails[False]._separable.values())


def test_datasets_and_streams(tokenizer, records, to_conversational):
    """All forms of records, mixed widths, in batches, streams and processes."""
    rows = records(30, 1, 5)
    names = ("prompt_ids", "chosen_ids", "rejected_ids", "record_id", "length")
    for data in (rows, to_conversational(rows)):
        expected = [tokenize_multi_preference(row, i, tokenizer, tokenizer.eos_token) for i, row in enumerate(data)]
        dataset = tokenize_dataset(Dataset.from_list(data), tokenizer, tokenizer.eos_token)
        assert [{name: row[name] for name in names} for row in dataset] == expected
        again = tokenize_dataset(dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]), tokenizer, None)
        assert [{name: row[name] for name in names} for row in again] == expected
        stream = tokenize_dataset(Dataset.from_list(data).to_iterable_dataset(), tokenizer, tokenizer.eos_token)
        ids = names[:3]
        assert [{name: row[name] for name in ids} for row in stream] == [{n: row[n] for n in ids} for row in expected]


def test_errors_name_the_row(tokenizer, records):
    rows = records(1200)
    rows[1100]["rejected"][1] = ""
    with pytest.raises(ValueError, match=r"Row 1100, column `rejected\[1\]`: empty completion"):
        tokenize_dataset(Dataset.from_list(rows), tokenizer, tokenizer.eos_token)


def test_what_it_keeps_is_no_part_of_its_hash(tokenizer, records):
    tokenize = CompletionTokenizer(tokenizer, tokenizer.eos_token)
    before = Hasher.hash(tokenize)
    list(tokenize(records(4)))
    assert tokenize._tails[False]._tails
    assert Hasher.hash(tokenize) == before
    assert not pickle.loads(pickle.dumps(tokenize))._tails[False]._tails

import copy
import gc
import os
import random
import sys
from pathlib import Path


# Nothing in the tests may ask the network: tiny models and tokenizers are built here. Set before transformers is
# imported, which reads them once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
# The checks that compare floating-point numbers are about arithmetic, not about devices
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Tests import the package `helpers`, and so do the scripts that they run in processes of their own
TESTS = str(Path(__file__).parent)
sys.path.insert(0, TESTS)
os.environ["PYTHONPATH"] = os.pathsep.join([TESTS, *filter(None, [os.environ.get("PYTHONPATH")])])

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import LlamaForCausalLM, LlamaModel

from helpers.tiny_models import TITLES, build_llama, build_tokenizer
from trl_sdpo import SoftmaxDPOConfig, SoftmaxDPOTrainer


# Models of a few thousand weights: handing their work to threads takes longer than doing it
torch.set_num_threads(1)
# accelerate collects garbage before each training run, which takes several times as long as a run of these models while
# it goes through all that the libraries have made on import
gc.collect()
gc.freeze()


# What other versions of the libraries can break, in a few minutes: the seams to TRL, the loss, the trainer and its layouts,
# checkpoints, one way from interactions to records, and the command line.
CORE = (
    "commands/test_cli.py",
    "losses/test_multi_negative.py",
    "prefix_sharing/test_rows.py",
    "recsys/records/test_preparation.py",
    "scoring/test_log_probs.py",
    "trainer/softmax_dpo_trainer/test_equivalence.py",
    "trainer/softmax_dpo_trainer/test_layouts.py",
    "trainer/softmax_dpo_trainer/test_runs.py",
    "trainer/test_checkpoints.py",
    "trainer/reference/test_reference.py",
    "trainer/reference/test_start.py",
    "trainer/test_softmax_dpo_config.py",
    "trainer/test_trl_contract.py",
)


def pytest_ignore_collect(collection_path, config):
    """Under `-m core` other files are not even imported: they need the libraries of the extras."""
    if config.getoption("markexpr") != "core" or not collection_path.is_relative_to(TESTS):
        return None
    path = collection_path.relative_to(TESTS).as_posix()
    return None if path == "." or any(f"{core}/".startswith(f"{path}/") for core in CORE) else True


def _is_core(path):
    return path.is_relative_to(TESTS) and path.relative_to(TESTS).as_posix() in CORE


# Rooms whose tests need no trainer: `python -m pytest -m quick` runs them in less than two minutes on two cores
QUICK = ("recsys", "losses", "prefix_sharing/test_rows.py", "prefix_sharing/test_masks.py", "recommender")
QUICK += ("test_rooms.py", "test_files.py", "test_data_utils.py", "pipeline/test_small_llama.py")
# which train, or take many seconds
NOT_QUICK = ("losses/test_loss_types.py", "recommender/test_export.py", "recommender/test_recommender.py")
NOT_QUICK += ("recsys/records/test_compact.py",)


@pytest.hookimpl(tryfirst=True)  # before -m selects by markers
def pytest_collection_modifyitems(config, items):
    if "real_data" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("real_data")]
        items[:] = [item for item in items if not item.get_closest_marker("real_data")]
        config.hook.pytest_deselected(items=left_out)
    for item in items:
        name = item.path.relative_to(TESTS).as_posix()
        if name.startswith(QUICK) and name not in NOT_QUICK:
            item.add_marker(pytest.mark.quick)
        if _is_core(item.path):
            item.add_marker(pytest.mark.core)


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def llama(tokenizer):
    """Makes a tiny Llama with random weights."""

    def make(seed=0, **config):
        return build_llama(len(tokenizer), seed, **config)

    return make


@pytest.fixture
def records():
    """Makes multi-preference records; the number of rejected completions goes from `smallest` to `largest` again."""

    def make(num=8, smallest=3, largest=3):
        rows = []
        for index in range(num):
            pool = smallest + index % (largest - smallest + 1)
            order = [TITLES[(index + step) % len(TITLES)] for step in range(len(TITLES))]
            rows.append(
                {
                    "prompt": f"Watched: {order[1]}, {order[2]}. Next:",
                    "chosen": f" {order[0]}",
                    "rejected": [f" {title}" for title in order[3 : 3 + pool]],
                }
            )
        return rows

    return make


@pytest.fixture
def token_records():
    """Makes tokenised records of random tokens; the number of rejected completions goes through `pools`."""

    def make(num=3, pools=(3, 2, 4), seed=0, vocab_size=61, prompt_length=(9, 15), completion_length=(1, 5)):
        rng = random.Random(seed)

        def tokens(lengths):
            return [rng.randrange(3, vocab_size) for _ in range(rng.randint(*lengths))]

        return [
            {
                "prompt_ids": tokens(prompt_length),
                "chosen_ids": tokens(completion_length),
                "rejected_ids": [tokens(completion_length) for _ in range(pools[index % len(pools)])],
            }
            for index in range(num)
        ]

    return make


@pytest.fixture
def plain_log_probs():
    """
    The reference for all log-probabilities: one forward pass for each sequence, its logits, and the sum of the
    log-probabilities of its completion tokens. Knows nothing of batches, padding, masks or TRL's LM head.
    """

    def compute(model, records, **model_kwargs):
        rows = []
        for record in records:
            row = []
            for completion in [record["chosen_ids"], *record["rejected_ids"]]:
                input_ids = torch.tensor([record["prompt_ids"] + completion])
                logits = model(input_ids=input_ids, use_cache=False, **model_kwargs).logits[0, -len(input_ids[0]) :]
                per_token = logits[:-1].log_softmax(dim=-1).gather(1, input_ids[0, 1:, None]).squeeze(1)
                row.append(per_token[-len(completion) :].sum())
            rows.append(torch.stack(row))
        return rows

    return compute


@pytest.fixture
def make_trainer(tmp_path, tokenizer):
    """Makes a trainer for tiny models on CPU. The reference of a model without adapters defaults to a copy of it."""

    def make(model, rows, trainer_cls=SoftmaxDPOTrainer, config_cls=SoftmaxDPOConfig, args=None, **kwargs):
        defaults = {
            "output_dir": str(tmp_path / "output"),
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "max_steps": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "max_length": 256,
        }
        if not isinstance(model, (str, PeftModel)) and "peft_config" not in kwargs:
            kwargs.setdefault("ref_model", copy.deepcopy(model))
        return trainer_cls(
            model=model,
            args=config_cls(**{**defaults, **(args or {})}),
            train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
            **{"processing_class": tokenizer, **kwargs},
        )

    return make


@pytest.fixture
def logged():
    """Values that a trainer logged during training, one per step."""

    def values(trainer, name="loss"):
        return [logs[name] for logs in trainer.state.log_history if "loss" in logs]

    return values


class MaskIgnoringBackbone(LlamaModel):
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        return super().forward(input_ids, None, position_ids, **kwargs)


class MaskIgnoringLlama(LlamaForCausalLM):
    """Takes any mask and attends causally all the same, as some remote code does."""

    def __init__(self, config):
        super().__init__(config)
        self.model = MaskIgnoringBackbone(config)


@pytest.fixture
def mask_ignoring_llama():
    return MaskIgnoringLlama


@pytest.fixture
def to_conversational():
    def convert(rows):
        def messages(role, text):
            return [{"role": role, "content": text.strip()}]

        return [
            {
                "prompt": messages("user", row["prompt"]),
                "chosen": messages("assistant", row["chosen"]),
                "rejected": [messages("assistant", text) for text in row["rejected"]],
            }
            for row in rows
        ]

    return convert


class Recorder(SoftmaxDPOTrainer):
    """Notes the records of each training step, and the negatives that it got of each."""

    def training_step(self, model, inputs, *args, **kwargs):
        rows = zip(
            inputs["record_id"].tolist(), inputs["input_ids"].tolist(), inputs["segment_ids"].tolist(), strict=True
        )
        self.steps = getattr(self, "steps", [])
        self.steps.append({record: tokens_of_segments(ids, segments) for record, ids, segments in rows})
        return super().training_step(model, inputs, *args, **kwargs)


def tokens_of_segments(input_ids, segment_ids):
    """The completions of a shared-prefix row, each without the repeated prompt token before it."""
    segments = {number: [] for number in segment_ids if number > 0}
    for token, number in zip(input_ids, segment_ids, strict=True):
        if number > 0:
            segments[number].append(token)
    return [tuple(tokens[1:]) for tokens in segments.values()]


@pytest.fixture
def record_steps():
    return Recorder

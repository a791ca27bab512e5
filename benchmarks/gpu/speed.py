"""Stages `speed` and `ranking`: seconds, tokens and memory of a step, and of scoring and searching, against their peers."""

import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cells import Cells, timed, wait
from models import SIZES, make_model, make_records, make_tokenizer, make_trainer
from transformers import TrainerCallback


SYSTEMS = {
    "ours": {"prefix_sharing": "true"},
    "ours, flex": {"prefix_sharing": "true", "attention": "flex_attention"},
    "ours, compiled": {"prefix_sharing": "true", "torch_compile": True},
    "padded rows": {"prefix_sharing": "false"},
    "pairs of TRL": {"pairs": True},
}
# Floating-point operations a second of dense matrices in bfloat16, without sparsity, as the makers state
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "4090": 165e12}


def run_steps(cells: Cells, sizes: list[str], device: str, rehearse: bool) -> None:
    """A step: forward of the reference, forward and backward of the policy, two records, LoRA in bfloat16."""
    prompts, negatives = ((20,), (3,)) if rehearse else ((60, 200, 600), (3, 15, 63, 255))
    for size in sizes:
        for prompt in prompts:
            for count in negatives:
                for name, options in SYSTEMS.items():
                    if rehearse and ("flex" in name or "compiled" in name):
                        continue
                    if name == "pairs of TRL" and count > 15:  # its batch holds 2 x 2 x K rows
                        continue
                    cells.measure(
                        f"{size}, prompt {prompt}, K = {count}, {name}",
                        partial(_step, size, prompt, count, options, device, rehearse),
                        needs=40,
                    )


class Clock(TrainerCallback):
    """Seconds of each step of a training, and the peak of memory above what was held, after the first two."""

    WARM_UP = 2

    def __init__(self, device: str) -> None:
        self.device, self.seconds, self.before = device, [], 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs) -> None:
        wait(self.device)
        if self.device == "cuda" and state.global_step == self.WARM_UP:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs) -> None:
        wait(self.device)
        self.seconds.append(time.perf_counter() - self.started)

    def result(self) -> dict:
        seconds = sorted(self.seconds[self.WARM_UP :])
        found = {"seconds": seconds[len(seconds) // 2], "least": seconds[0], "most": seconds[-1]}
        if self.device == "cuda":
            found["peak_mib"] = round((torch.cuda.max_memory_allocated() - self.before) / 2**20)
        return found


def _step(size: str, prompt: int, negatives: int, options: dict, device: str, rehearse: bool) -> dict:
    options, steps, records_of_a_step = dict(options), Clock.WARM_UP + (1 if rehearse else 8), 2
    attention, pairs = options.pop("attention", "sdpa"), options.pop("pairs", False)
    model = make_model(size, "float32" if device == "cpu" else "bfloat16", device, attention)
    weights = sum(param.numel() for param in model.parameters())
    records = make_records(records_of_a_step * steps, prompt, negatives, SIZES[size][-1])
    rows = records_of_a_step * (negatives if pairs else 1)
    trainer = make_trainer(
        model,
        records,
        device,
        pairs=pairs,
        per_device_train_batch_size=rows,
        max_steps=steps,
        logging_steps=steps,
        **options,
    )
    clock = Clock(device)
    trainer.add_callback(clock)
    trainer.train()
    result = clock.result()
    # of rows of their own for all completions, so the same for all systems
    padded_tokens = records_of_a_step * (1 + negatives) * (prompt + 6)
    computed_tokens = trainer.state.log_history[0]["num_tokens"] / steps
    result |= {
        "padded_tokens_per_second": round(padded_tokens / result["seconds"]),
        "computed_tokens": round(computed_tokens),
    }
    peak = next(
        (value for name, value in PEAKS.items() if device == "cuda" and name in torch.cuda.get_device_name()), None
    )
    if (
        peak
    ):  # 2 operations for each weight and token: forward of reference and policy, backward through the activations
        result["share_of_peak"] = round(6 * weights * computed_tokens / result["seconds"] / peak, 3)
    return result


def run_ranking(cells: Cells, sizes: list[str], device: str, rehearse: bool) -> None:
    """Scoring of 20 candidates, and the search of a catalogue, against plain calls of transformers."""
    for size in sizes:
        model = make_model(size, "float32" if device == "cpu" else "bfloat16", device).eval()
        vocabulary = SIZES[size][-1]
        records = make_records(4 if rehearse else 32, 20 if rehearse else 200, 19, vocabulary)
        repeats = 2 if rehearse else 5
        for name, call in _scorers(model, records).items():
            cells.measure(
                f"{size}, 20 candidates of {len(records)} records, {name}",
                partial(timed, call, repeats, device),
            )
        for name, call in _searches(model, records, 30 if rehearse else 10_000, vocabulary).items():
            cells.measure(f"{size}, search of a catalogue, {name}", partial(timed, call, repeats, device), needs=60)
        del model
        gc.collect()


def _scorers(model: Any, records: Any) -> dict[str, Callable]:
    from trl_sdpo.recsys import completion_log_probs

    tokenizer = make_tokenizer(model.config.vocab_size)

    @torch.no_grad()
    def plain() -> None:
        for row in records:
            texts = [row["prompt"] + completion for completion in (row["chosen"], *row["rejected"])]
            batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right").to(model.device)
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
            logits.log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])

    return {
        "completion_log_probs": lambda: completion_log_probs(model, records, tokenizer, batch_size=16, desc=None),
        "a row for each candidate": plain,
    }


def _searches(model: Any, records: Any, titles: int, vocabulary: int) -> dict[str, Callable]:
    from trl_sdpo.recsys import TitleTrie, search_catalogue

    tokenizer = make_tokenizer(vocabulary)
    titles = sorted({row["chosen"] for row in make_records(titles, 4, 0, vocabulary, seed=1)})
    trie = TitleTrie([[*tokenizer(title)["input_ids"], tokenizer.eos_token_id] for title in titles])
    prompts = [tokenizer(text)["input_ids"] for text in records["prompt"][:8]]
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)

    def free() -> None:
        model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], num_beams=10, num_return_sequences=10,
            max_new_tokens=trie.depth, do_sample=False, length_penalty=0.0, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip

    return {
        "search_catalogue": lambda: search_catalogue(
            model, prompts, tokenizer, trie, num_beams=10, top_k=10, desc=None
        ),
        "generate without a constraint": free,
    }

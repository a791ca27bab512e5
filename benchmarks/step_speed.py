"""
What a training step costs, against what TRL's layout costs: time, memory, and the bound that the token counts set.

    python benchmarks/step_speed.py                 # the whole table, about 15 minutes on two cores
    python benchmarks/step_speed.py --negatives 3   # one column
    python benchmarks/step_speed.py --device cuda --dtype bfloat16 --negatives 3,15,63,255 --systems ours,ours-flex,padded

A step is the forward of the reference, and the forward and backward of the policy: SmolLM2-135M with LoRA (r = 16, all
linear layers), prompts of MovieLens-100k that list 20 candidates, no gradient checkpointing. It takes as many records as
make 8 padded rows, two at K = 3 and one from K = 7 on; seconds and tokens are given per record. The systems, each in
a process of its own, take turns on the same records:

- `ours`: `SoftmaxDPOTrainer`, its collator and its loss;
- `padded`: 1 + K padded rows in the layout of TRL (prompt and completion, right-padded) through TRL's own fused LM head,
  and the same loss: built here, of nothing but TRL;
- `pairs`: `trl.DPOTrainer` over the K pairs of each record, four pairs at a time, which is what TRL offers today.

- `ours-upper`: `ours` with LoRA in the upper half of the layers alone, of which the lower half then runs once for policy
  and reference; `ours-upper-separate`: the same with the lower half run for both.

The token bound is tokens of `padded` over tokens of `ours`: how much faster a step would be if it cost the same per
token. Ranking is one forward without gradients for the 20 candidates of a record.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path


HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]

ANSWER = "step_speed:"
PADDED_ROWS = 8
SPARE_NEGATIVES = 8
YEAR = re.compile(r" \(\d{4}\)")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--negatives", default="3,15,63", help="K, several with commas (default: %(default)s)")
    parser.add_argument(
        "--systems",
        default="ours,padded,pairs,ours-upper,ours-upper-separate,ranking",
        help=f"of ranking, {', '.join(SYSTEMS)}",
    )
    parser.add_argument("--limit", type=int, default=15, help="largest K of padded and pairs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="steps measured (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of records and LoRA (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--data", help="MovieLens-100k, if it is on disk")
    parser.add_argument("--output", type=Path, default=Path("outputs/step_speed"), help="folder of the table and plot")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in a child: system:K
    return parser.parse_args()


def records_of_a_step(negatives: int) -> int:
    return max(PADDED_ROWS // (1 + negatives), 1)


def load_groups(args: argparse.Namespace, negatives: int) -> list[list[dict]]:
    """
    The records of each step, of which the first is the warm-up; the same records for every K: a larger pool
    begins with the smaller one. The years are left out of the titles, as in RecBole's copy of the data; with them, the
    padded rows for K = 15 do not fit 24 GiB.
    """
    from trl_sdpo.recsys import build_preference_dataset
    from trl_sdpo.recsys.download import load_movielens_100k

    size = records_of_a_step(negatives)
    dataset, _ = build_preference_dataset(
        load_movielens_100k(args.data),
        seed=args.seed,
        prompt_style="candidates",
        pool_size=max(negatives, 19) + SPARE_NEGATIVES,
        max_train_records=(args.steps + 1) * size,
        max_validation_records=1,
        max_test_records=1,
    )
    rows = dataset["train"].select_columns(["prompt", "chosen", "rejected"]).to_list()
    records = []
    for row in rows:
        prompt, chosen, *rejected = (YEAR.sub("", text) for text in (row["prompt"], row["chosen"], *row["rejected"]))
        # without the year, a remake has the title of the original
        rejected = [title for title in dict.fromkeys(rejected) if title != chosen]
        records.append({"prompt": prompt, "chosen": chosen, "rejected": rejected[:negatives]})
    return [records[start : start + size] for start in range(0, len(records), size)]


def load_model(args: argparse.Namespace, attn_implementation: str = "sdpa"):
    import torch
    from language_models import resolve_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve_model(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, args.dtype), attn_implementation=attn_implementation
    )
    return model.to(args.device), AutoTokenizer.from_pretrained(path)


def trainer_arguments(args: argparse.Namespace, folder: str) -> dict:
    return {
        "output_dir": folder,
        "beta": 1.0,
        "max_length": None,
        "report_to": "none",
        "gradient_checkpointing": False,
        "bf16": args.dtype == "bfloat16",
        "use_cpu": args.device == "cpu",
        "remove_unused_columns": False,
    }


def lora_config(**more):
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=16, **{"target_modules": "all-linear", **more})


def our_steps(args, groups, folder, system):
    """The model, and for each step a call and the tokens that it computes."""
    from datasets import Dataset

    from trl_sdpo import SoftmaxDPOConfig, SoftmaxDPOTrainer
    from trl_sdpo.frozen_layers import FrozenTrunk

    model, tokenizer = load_model(args, "flex_attention" if system == "ours-flex" else "sdpa")
    lora = lora_config()
    if "upper" in system:
        layers = model.config.num_hidden_layers
        projections = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
        lora = lora_config(target_modules=projections, layers_to_transform=list(range(layers // 2, layers)))
    trainer = SoftmaxDPOTrainer(
        model=model,
        args=SoftmaxDPOConfig(**trainer_arguments(args, folder)),
        train_dataset=Dataset.from_list([record for group in groups for record in group]),
        processing_class=tokenizer,
        peft_config=lora,
    )
    if "separate" in system:
        trainer._trunk = FrozenTrunk([])  # frozen layers run for policy and reference
    return _steps_of_trainer(trainer, len(groups), len(groups[0]))


def pair_steps(args, groups, folder, system):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from trl_sdpo import to_preference_pairs

    model, tokenizer = load_model(args)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**trainer_arguments(args, folder)),
        train_dataset=to_preference_pairs(Dataset.from_list([record for group in groups for record in group])),
        processing_class=tokenizer,
        peft_config=lora_config(),
    )
    return _steps_of_trainer(trainer, len(groups), PADDED_ROWS // 2)


def _steps_of_trainer(trainer, count, rows_at_a_time):
    trainer.model.train()
    rows = list(trainer.train_dataset)
    size = len(rows) // count

    def batches(rows):
        return (
            trainer.data_collator(rows[start : start + rows_at_a_time])
            for start in range(0, len(rows), rows_at_a_time)
        )

    def step(rows):
        for batch in batches(rows):
            batch = trainer._prepare_inputs(batch)
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
        trainer.model.zero_grad()

    def tokens(rows):
        return sum(batch["input_ids"].numel() for batch in batches(rows))

    steps = [rows[start : start + size] for start in range(0, len(rows), size)]
    return trainer.model, [(lambda rows=rows: step(rows), tokens(rows)) for rows in steps]


def padded_batch(records, tokenizer, device):
    """The rows of records as TRL's collator would lay them out, were there one for several rejected completions."""
    from torch import ones, tensor
    from trl.trainer.utils import pad

    from trl_sdpo.data_utils import tokenize_multi_preference

    rows = []
    for record in records:
        row = tokenize_multi_preference(record, 0, tokenizer, tokenizer.eos_token)
        rows += [(row["prompt_ids"], ids) for ids in (row["chosen_ids"], *row["rejected_ids"])]
    input_ids = pad([tensor(prompt + ids) for prompt, ids in rows], padding_value=tokenizer.pad_token_id)
    mask = pad([ones(len(prompt) + len(ids), dtype=int) for prompt, ids in rows])
    scored = pad([tensor([0] * len(prompt) + [1] * len(ids)) for prompt, ids in rows]).bool()
    labels = input_ids.masked_fill(~scored, -100)
    batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
    return {name: value.to(device) for name, value in batch.items()}


def padded_steps(args, groups, folder, system):
    import torch
    from peft import get_peft_model
    from trl.trainer.utils import add_fused_lm_head, use_adapter

    from trl_sdpo import softmax_dpo_loss

    model, tokenizer = load_model(args)
    torch.manual_seed(args.seed)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))  # as DPOTrainer does
    model = get_peft_model(model, lora_config()).train()

    def log_probs(batch):
        return model(**batch, use_cache=False, fused_lm_head=True).log_probs.sum(dim=1)

    def step(batch):
        with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            policy = log_probs(batch)
            with torch.no_grad(), use_adapter(model, adapter_name=None):
                reference = log_probs(batch)
            logratios = (policy - reference).view(len(groups[0]), -1)
            loss = softmax_dpo_loss(logratios[:, 0], logratios[:, 1:], 1.0).mean()
        loss.backward()
        model.zero_grad()

    batches = [padded_batch(group, tokenizer, args.device) for group in groups]
    return model, [(lambda batch=batch: step(batch), batch["input_ids"].numel()) for batch in batches]


def our_ranking(args, groups, folder, system):
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from trl_sdpo import DataCollatorForMultiPreference
    from trl_sdpo.data_utils import tokenize_multi_preference
    from trl_sdpo.prefix_sharing import score_completions

    model, tokenizer = load_model(args)
    add_fused_lm_head(model)
    collator = DataCollatorForMultiPreference(tokenizer.pad_token_id)
    rows = [tokenize_multi_preference(record, 0, tokenizer, tokenizer.eos_token) for (record,) in groups]
    batches = [{name: value.to(args.device) for name, value in collator([row]).items()} for row in rows]

    def rank(batch):
        with torch.no_grad():
            return score_completions(model.eval(), batch).log_probs.argmax().item()

    return model, [(lambda batch=batch: rank(batch), batch["input_ids"].numel()) for batch in batches]


def padded_ranking(args, groups, folder, system):
    import torch
    from trl.trainer.utils import add_fused_lm_head

    model, tokenizer = load_model(args)
    add_fused_lm_head(model)
    batches = [padded_batch(group, tokenizer, args.device) for group in groups]

    def rank(batch):
        with torch.no_grad():
            log_probs = model.eval()(**batch, use_cache=False, fused_lm_head=True).log_probs
            return log_probs.sum(dim=1).argmax().item()

    return model, [(lambda batch=batch: rank(batch), batch["input_ids"].numel()) for batch in batches]


SYSTEMS = {
    "ours": our_steps,
    "ours-flex": our_steps,
    "ours-upper": our_steps,
    "ours-upper-separate": our_steps,
    "padded": padded_steps,
    "pairs": pair_steps,
    "ours-ranking": our_ranking,
    "padded-ranking": padded_ranking,
}


class PeakMemory:
    """Bytes above what is held now: of this process (its resident set) or of the accelerator."""

    def __init__(self, device: str):
        self.device = device
        if device == "cuda":
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            self.before = self._resident("VmRSS")

    @staticmethod
    def _resident(name: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"/proc/self/status has no {name}: memory is measured on Linux only.")

    def peak(self) -> int:
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated() - self.before
        return self._resident("VmHWM") - self.before


def serve(args: argparse.Namespace) -> None:
    """In a child process: run one step for each line of the input, and tell its seconds; then the peak of memory."""
    system, negatives = args.one.split(":")
    with tempfile.TemporaryDirectory() as folder:
        model, (warm_up, *steps) = SYSTEMS[system](args, load_groups(args, int(negatives)), folder, system)
        for param in model.parameters():
            param.data.sum()  # weights mapped from a file are in memory only when they have been read
        memory = PeakMemory(args.device)
        warm_up[0]()
        print(ANSWER, json.dumps([tokens for _, tokens in steps]), flush=True)
        for step, _ in steps:
            sys.stdin.readline()
            start = time.perf_counter()
            step()
            if args.device == "cuda":
                import torch

                torch.cuda.synchronize()
            print(ANSWER, time.perf_counter() - start, flush=True)
        print(ANSWER, memory.peak(), flush=True)


class Child:
    """A process with one system in it, which computes only when it is told to."""

    def __init__(self, args: argparse.Namespace, system: str, negatives: int, log: Path):
        self.name, self.log = f"{system} with K = {negatives}", log
        command = [sys.executable, __file__, "--one", f"{system}:{negatives}"]
        for name in ("steps", "seed", "device", "dtype", "model", "data"):
            if getattr(args, name) is not None:
                command += [f"--{name}", str(getattr(args, name))]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )

    def answer(self):
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise RuntimeError(f"{self.name} failed:\n{self.log.read_text()[-4000:]}")

    def step(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()


def compare(args: argparse.Namespace, systems: list[str], negatives: int, progress) -> list[dict]:
    """
    Seconds and memory of several systems. They take turns step by step, so that a slow minute of the machine does
    not fall on one of them alone.
    """
    size = records_of_a_step(negatives)
    with tempfile.TemporaryDirectory() as folder:
        children = {}
        for system in systems:
            progress.set_description(f"{system}, K = {negatives}")
            children[system] = Child(args, system, negatives, Path(folder, f"{system}.log"))
            tokens = children[system].answer()  # loaded and warm, before the next one starts
            children[system].tokens = sum(tokens) / len(tokens) / size
        seconds = {system: [] for system in systems}
        for _ in range(args.steps):
            for system, child in children.items():
                seconds[system].append(child.step() / size)
                progress.update()
        return [
            {
                "system": system,
                "negatives": negatives,
                "records_of_a_step": size,
                "tokens": child.tokens,
                "seconds": seconds[system],
                "peak_bytes": child.answer(),
            }
            for system, child in children.items()
        ]


def machine(args: argparse.Namespace) -> dict:
    import torch
    import transformers
    import trl

    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "dtype": args.dtype,
        "seed": args.seed,
        "steps": args.steps,
        **{module.__name__: module.__version__ for module in (torch, transformers, trl)},
    }


def main() -> None:
    args = parse_arguments()
    if args.one:
        serve(args)
        return
    from step_speed_report import write_report
    from tqdm import tqdm

    systems = args.systems.split(",")
    groups = [
        (
            [name for name in systems if name in SYSTEMS and (name.startswith("ours") or negatives <= args.limit)],
            negatives,
        )
        for negatives in map(int, args.negatives.split(","))
    ]
    if "ranking" in systems:
        groups.append((["ours-ranking", "padded-ranking"], 19))
    results = []
    with tqdm(total=args.steps * sum(len(systems) for systems, _ in groups), unit=" steps") as progress:
        for systems, negatives in groups:
            results += compare(args, systems, negatives, progress)
    print(write_report(results, machine(args), args.output))


if __name__ == "__main__":
    main()

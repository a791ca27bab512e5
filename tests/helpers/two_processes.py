"""
What test_distributed.py runs on one process, and on two with
`ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 two_processes.py OUTPUT_DIR`.

Each scenario returns what must not depend on the number of processes, and what each process saw.
"""

import copy
import os
import sys
from pathlib import Path

import torch
import torch.distributed
from datasets import Dataset, IterableDataset, load_dataset
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from helpers.tiny_models import TITLES, build_llama, build_tokenizer
from trl_sdpo import DataCollatorForMultiPreference, RankingCallback, SoftmaxDPOConfig, SoftmaxDPOTrainer
from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.prefix_sharing.rows import record_of_row, score_completions


def make_records(num, smallest=2, largest=5):
    """Ragged records, no two alike."""
    rows = []
    for i in range(num):
        pool = smallest + i % (largest - smallest + 1)
        titles = [TITLES[(i * 3 + step) % 8] for step in range(8)]
        rows.append(
            {
                "prompt": f"User {i} watched: {titles[6]}, {titles[7]}. Next:",
                "chosen": f" {titles[0]}",
                "rejected": [f" {title}" for title in titles[1 : 1 + pool]],
            }
        )
    return rows


class Recorder(SoftmaxDPOTrainer):
    """Notes the records of each training step with their tokens, and so with the negatives drawn."""

    def training_step(self, model, inputs, *args, **kwargs):
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        rows = [tuple(ids[:length]) for ids, length in zip(inputs["input_ids"].tolist(), lengths, strict=True)]
        self.seen = getattr(self, "seen", [])
        record_ids = inputs["record_id"][record_of_row(inputs)].tolist()
        seen = dict.fromkeys(record_ids, ())
        for record_id, row in zip(record_ids, rows, strict=True):
            seen[record_id] += row
        self.seen.append(seen)
        return super().training_step(model, inputs, *args, **kwargs)


def make_config(output_dir, args=None):
    """Four records in a step, on however many processes."""
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    config = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 4 // num_processes,
        "per_device_eval_batch_size": 4 // num_processes,
        "beta": 0.3,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    return SoftmaxDPOConfig(**{**config, **(args or {})})


def make_trainer(output_dir, train_dataset, with_lora=False, args=None, **kwargs):
    tokenizer = build_tokenizer()
    args = make_config(output_dir, args)
    model = build_llama(len(tokenizer))
    if with_lora:
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, init_lora_weights=False)
        torch.manual_seed(0)
        model = get_peft_model(model, lora)
    else:
        kwargs["ref_model"] = build_llama(len(tokenizer), seed=1)
    return Recorder(model, args=args, train_dataset=train_dataset, processing_class=tokenizer, **kwargs)


def result(trainer):
    history = [entry for entry in trainer.state.log_history if "train_loss" not in entry]
    timings = ("runtime", "per_second", "preparation_time")
    logs = [{name: value for name, value in entry.items() if not name.endswith(timings)} for entry in history]
    weights = {name: param.detach().clone() for name, param in trainer.model.named_parameters()}
    return {"logs": logs, "weights": weights, "seen": getattr(trainer, "seen", [])}


def full(folder):
    trainer = make_trainer(folder, Dataset.from_list(make_records(8)), args={"num_negatives": 2})
    trainer.train()
    return result(trainer)


def continued_adapter(folder):
    """With gradient checkpointing and accumulation, as large models need them."""
    args = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}
    trainer = make_trainer(folder, Dataset.from_list(make_records(16)), with_lora=True, args=args)
    trainer.train()
    return result(trainer)


def padded_passes(folder):
    """In passes of a row each, of which records with larger pools have more than those of the other process."""
    args = {"prefix_sharing": "false", "max_tokens_per_pass": 1, "eval_strategy": "steps", "eval_steps": 2}
    test = Dataset.from_list(make_records(7))
    trainer = make_trainer(folder, Dataset.from_list(make_records(8)), args=args, eval_dataset=test)
    trainer.train()
    return result(trainer)


def uneven_evaluation(folder):
    """Seven records do not divide by two processes: one of them is handed out twice."""
    datasets = {"seven": Dataset.from_list(make_records(7)), "five": Dataset.from_list(make_records(5, 1, 4))}
    args = {"eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(folder, Dataset.from_list(make_records(8)), args=args, eval_dataset=datasets)
    trainer.train()
    return result(trainer)


def uneven_evaluation_of_streams(folder):
    """Streams have no length by which to tell the records that fill up the last batch."""
    datasets = {f"of_{num}": make_records(num) for num in (1, 3, 5, 7, 8)}
    datasets = {name: Dataset.from_list(rows).to_iterable_dataset() for name, rows in datasets.items()}
    trainer = make_trainer(folder, Dataset.from_list(make_records(8)), eval_dataset=datasets)
    trainer.evaluate()
    # and prepared after the start
    trainer.evaluate(Dataset.from_list(make_records(6)).to_iterable_dataset(), metric_key_prefix="late")
    return result(trainer)


def stream(folder):
    """Each process reads the whole stream and keeps its part of every batch."""
    dataset = Dataset.from_list(make_records(8)).to_iterable_dataset()
    trainer = make_trainer(folder, dataset, args={"num_negatives": 2})
    trainer.train()
    return result(trainer)


SHARD_SIZES = (2, 1, 5, 3)  # of which the first process reads 0 and 2


def read_shards(numbers, folder):
    """Records of shards, and a note of who reads them."""
    for number in numbers:
        with open(f"{folder}-read-{os.environ.get('RANK', '0')}.txt", "a") as file:
            file.write(f"{number}\n")
        first = sum(SHARD_SIZES[:number])
        yield from make_records(first + SHARD_SIZES[number])[first:]


def sharded_stream(folder):
    """Each process reads its own shards, in passes of unlike lengths, and a whole stream of the evaluation."""
    numbers = list(range(len(SHARD_SIZES)))
    train, test = (
        IterableDataset.from_generator(read_shards, gen_kwargs={"numbers": numbers, "folder": f"{folder}-{name}"})
        for name in ("train", "test")
    )
    args = {
        "num_negatives": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 4,
    }
    whole = make_trainer(folder, train, args={**args, "eval_strategy": "steps", "eval_steps": 6}, eval_dataset=test)
    whole.train()
    read = Path(f"{folder}-train-read-{os.environ.get('RANK', '0')}.txt").read_text().split()
    trainer = make_trainer(folder, train, args=args)
    trainer.train(resume_from_checkpoint=str(Path(folder) / "checkpoint-4"))
    same = all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), trainer.model.parameters(), strict=True))
    return {**result(whole), "same_as_whole": same, "read": [*map(int, read)]}


def resumed_stream(folder):
    """From the second step of the second pass."""
    dataset = Dataset.from_list(make_records(12)).to_iterable_dataset()
    args = {"num_negatives": 2, "max_steps": 7, "save_strategy": "steps", "save_steps": 5}
    whole = make_trainer(folder, dataset, args=args)
    whole.train()
    trainer = make_trainer(folder, dataset, args=args)
    trainer.train(resume_from_checkpoint=str(Path(folder) / "checkpoint-5"))
    same = all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), trainer.model.parameters(), strict=True))
    return {**result(trainer), "same_as_whole": same}


def precomputed_reference(folder):
    files = {"train": str(Path(folder).parent / "train.jsonl"), "test": str(Path(folder).parent / "test.jsonl")}
    data = load_dataset("json", data_files=files, cache_dir=str(Path(folder).parent / "cache"))
    args = {"precompute_ref_log_probs": True, "eval_strategy": "steps", "eval_steps": 4}
    trainer = make_trainer(folder, data["train"], args=args, eval_dataset=data["test"])
    trainer.train()
    return result(trainer)


def precomputed_reference_in_memory(folder):
    args = {"precompute_ref_log_probs": True, "eval_strategy": "steps", "eval_steps": 4}
    train, test = Dataset.from_list(make_records(8)), Dataset.from_list(make_records(7))
    trainer = make_trainer(folder, train, args=args, eval_dataset=test)
    trainer.train()
    return result(trainer)


def loss_that_is_not_finite(folder):
    """Of the second process alone."""
    trainer = make_trainer(folder, Dataset.from_list(make_records(8)))
    if trainer.accelerator.is_last_process:
        original = trainer._score

        def score(*args, **kwargs):
            scores = original(*args, **kwargs)
            return scores._replace(log_probs=scores.log_probs * torch.nan)

        trainer._start_is_checked = True
        trainer._score = score
    trainer._start_is_checked = True
    try:
        trainer.train()
    except ValueError as error:
        return {"error": str(error)}
    return {"error": "none"}


def resumed(folder):
    """The last checkpoint is only half there, and all processes must take the one before it."""
    args = {"save_strategy": "steps", "save_steps": 2, "num_negatives": 2}
    dataset = Dataset.from_list(make_records(8))
    whole = make_trainer(folder, dataset, args=args)
    whole.train()
    whole.accelerator.wait_for_everyone()
    if whole.is_world_process_zero():
        (Path(folder) / "checkpoint-4" / "trainer_state.json").unlink()
    whole.accelerator.wait_for_everyone()
    trainer = make_trainer(folder, dataset, args=args)
    trainer.train(resume_from_checkpoint=True)
    same = all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), trainer.model.parameters(), strict=True))
    return {**result(trainer), "same_as_whole": same}


def sampled_ranking(folder):
    """Samples that do not divide by two processes, one of them of a single record."""
    trainer = make_trainer(folder, Dataset.from_list(make_records(8)))
    for num, protocol in ((7, "ranking"), (5, "generation"), (1, "ranking")):
        name = f"{protocol}_of_{num}"
        trainer.add_callback(
            RankingCallback(trainer, Dataset.from_list(make_records(num)), 2, None, protocol=protocol, name=name)
        )
    trainer.train()
    return result(trainer)


def sharded_forward(folder):
    """Through FSDP2 of torch itself, since accelerate shards nothing on a CPU."""
    model = build_llama(len(build_tokenizer()))
    add_fused_lm_head(model)
    if torch.distributed.is_initialized():
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return log_probs_and_gradients(model)


def tensor_parallel_forward(folder):
    """Of transformers itself, since accelerate takes no `tp_size` on a CPU."""
    kwargs = {}
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        build_llama(len(build_tokenizer())).save_pretrained(folder)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        kwargs = {"tp_plan": "auto"}
    model = AutoModelForCausalLM.from_pretrained(folder, **kwargs)
    assert getattr(model, "tp_size", None) == (2 if kwargs else None)
    add_fused_lm_head(model)
    return log_probs_and_gradients(model)


def log_probs_and_gradients(model):
    """By layout; on two processes some parameters must be split, and their gradients are put together."""
    tokenizer = build_tokenizer()
    rows = [tokenize_multi_preference(row, i, tokenizer, tokenizer.eos_token) for i, row in enumerate(make_records(4))]
    output = {"logs": []}
    for prefix_sharing in (True, False):
        collator = DataCollatorForMultiPreference(tokenizer.pad_token_id, prefix_sharing=prefix_sharing)
        model.zero_grad()
        scores = score_completions(model, collator(copy.deepcopy(rows)))
        scores.log_probs.sum().backward()
        gradients = {name: param.grad for name, param in model.named_parameters()}
        split = {name for name, gradient in gradients.items() if hasattr(gradient, "full_tensor")}
        output["split"] = sorted(split)
        gradients = {
            name: (gradient.full_tensor() if name in split else gradient).clone()
            for name, gradient in gradients.items()
        }
        output["shared" if prefix_sharing else "padded"] = {"log_probs": scores.log_probs.detach(), **gradients}
    return output


SCENARIOS = (
    full,
    continued_adapter,
    padded_passes,
    uneven_evaluation,
    uneven_evaluation_of_streams,
    stream,
    sharded_stream,
    resumed_stream,
    precomputed_reference,
    precomputed_reference_in_memory,
    loss_that_is_not_finite,
    resumed,
    sampled_ranking,
    sharded_forward,
    tensor_parallel_forward,
)


if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    for scenario in SCENARIOS:
        folder = Path(sys.argv[1]) / scenario.__name__
        outcome = scenario(str(folder))
        torch.save(outcome, f"{folder}-{rank}.pt")
    torch.distributed.destroy_process_group()

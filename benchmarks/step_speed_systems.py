"""The systems that `step_speed.py` compares: each loads a model, and gives a call for each step."""

import argparse
import itertools
import re


PADDED_ROWS = 16
RECORDS_OF_A_STEP = 2
SPARE_NEGATIVES = 8
YEAR = re.compile(r" \(\d{4}\)")


def load_groups(args: argparse.Namespace, negatives: int) -> list[list[dict]]:
    """
    The records of each step: one for the warm-up, in which memory is measured, then two for each. They are the same for
    every K, since a larger pool begins with the smaller one. The years are left out of the titles, as in RecBole's copy
    of the data; with them, the padded rows for K = 15 do not fit 24 GiB.
    """
    from trl_sdpo.recsys import build_preference_dataset
    from trl_sdpo.recsys.interactions.movielens_100k import load_movielens_100k

    size = RECORDS_OF_A_STEP
    dataset, _ = build_preference_dataset(
        load_movielens_100k(args.data),
        seed=args.seed,
        prompt_style="candidates",
        pool_size=max(negatives, 19) + SPARE_NEGATIVES,
        max_train_records=1 + args.steps * size,
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
    return [records[:1], *(records[start : start + size] for start in range(1, len(records), size))]


def load_model(args: argparse.Namespace, attn_implementation: str = "sdpa"):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_sdpo.pipeline import resolve_model

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


def lora_config():
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear")


def our_steps(args, groups, folder, system):
    """The model, and for each step a call and the tokens that it computes."""
    from datasets import Dataset

    from trl_sdpo import SoftmaxDPOConfig, SoftmaxDPOTrainer

    model, tokenizer = load_model(args, "flex_attention" if system == "ours-flex" else "sdpa")
    trainer = SoftmaxDPOTrainer(
        model=model,
        args=SoftmaxDPOConfig(**trainer_arguments(args, folder)),
        train_dataset=Dataset.from_list([record for group in groups for record in group]),
        processing_class=tokenizer,
        peft_config=lora_config(),
    )
    return _steps_of_trainer(trainer, [len(group) for group in groups], RECORDS_OF_A_STEP)


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
    pairs = [len(group) * len(group[0]["rejected"]) for group in groups]
    return _steps_of_trainer(trainer, pairs, PADDED_ROWS // 2)


def _steps_of_trainer(trainer, sizes, rows_at_a_time):
    trainer.model.train()
    rows = iter(trainer.train_dataset)
    steps = [list(itertools.islice(rows, size)) for size in sizes]

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

    def step(batches):
        for batch in batches:
            with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
                policy = log_probs(batch)
                with torch.no_grad(), use_adapter(model, adapter_name=None):
                    reference = log_probs(batch)
                logratios = (policy - reference).view(-1, completions)
                loss = softmax_dpo_loss(logratios[:, 0], logratios[:, 1:], 1.0).mean()
            loss.backward()
        model.zero_grad()

    completions = 1 + len(groups[0][0]["rejected"])
    size = max(PADDED_ROWS // completions, 1)
    steps = [
        [padded_batch(group[start : start + size], tokenizer, args.device) for start in range(0, len(group), size)]
        for group in groups
    ]
    tokens = [sum(batch["input_ids"].numel() for batch in batches) for batches in steps]
    return model, [
        (lambda batches=batches: step(batches), count) for batches, count in zip(steps, tokens, strict=True)
    ]


def our_ranking(args, groups, folder, system):
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from trl_sdpo import DataCollatorForMultiPreference
    from trl_sdpo.data_utils import tokenize_multi_preference
    from trl_sdpo.prefix_sharing.rows import score_completions

    model, tokenizer = load_model(args)
    add_fused_lm_head(model)
    collator = DataCollatorForMultiPreference(tokenizer.pad_token_id)
    rows = [tokenize_multi_preference(group[0], 0, tokenizer, tokenizer.eos_token) for group in groups]
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
    batches = [padded_batch(group[:1], tokenizer, args.device) for group in groups]

    def rank(batch):
        with torch.no_grad():
            log_probs = model.eval()(**batch, use_cache=False, fused_lm_head=True).log_probs
            return log_probs.sum(dim=1).argmax().item()

    return model, [(lambda batch=batch: rank(batch), batch["input_ids"].numel()) for batch in batches]


SYSTEMS = {
    "ours": our_steps,
    "ours-flex": our_steps,
    "padded": padded_steps,
    "pairs": pair_steps,
    "ours-ranking": our_ranking,
    "padded-ranking": padded_ranking,
}

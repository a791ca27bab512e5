# Copyright 2020-2026 The HuggingFace Team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
#
# This file re-states parts of `create_model_card` of `trl/trainer/base_trainer.py` of TRL 1.16: the tags and links of a run.

"""What a trainer knows of its model, for the card."""

import os
from pathlib import Path

from accelerate.utils import is_peft_model
from datasets import Dataset
from peft import PeftConfig
from transformers import Trainer, is_wandb_available
from trl.trainer.utils import get_comet_experiment_url, get_config_model_id, get_trackio_space_url

from .card_parts import public_name
from .evaluation_results import Evaluation, read_evaluations
from .model_card import CURVES_FILE, ModelFacts, adapter_kind, read_data_report, read_json
from .pushes import RECOMMENDER_FILE


if is_wandb_available():
    import wandb


def collect_facts(
    trainer: Trainer,
    model_name: str | None,
    dataset_name: str | None,
    tags: str | list[str] | None,
    method: str = "s-dpo",
) -> ModelFacts:
    """What a trainer knows of its model, for [`make_model_card`]; `method` is that of [`ModelFacts`]."""
    args, output_dir = trainer.args, Path(trainer.args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = model.peft_config["default"] if is_peft_model(model) and "default" in model.peft_config else None
    dataset = trainer.train_dataset
    sized = isinstance(dataset, Dataset)
    name = model_name or Path(os.path.abspath(output_dir)).name
    base_model = get_config_model_id(trainer.model.config) or getattr(config, "base_model_name_or_path", None)
    return ModelFacts(
        model_name=name,
        repo_id=trainer.hub_model_id or name,
        base_model=base_model,
        # it was loaded, so what is not here came from there
        base_on_hub=bool(base_model) and not os.path.exists(base_model) and public_name(base_model) == base_model,
        adapter=adapter_kind(getattr(getattr(config, "peft_type", None), "value", None)),
        method=method,
        recipe=(_objective(trainer) if method == "s-dpo" else _objective_of_sft(trainer)) | _recipe(trainer, config),
        evaluations=_evaluations(trainer),
        recommender=read_json(output_dir / RECOMMENDER_FILE),
        report=read_data_report(output_dir),
        dataset_name=dataset_name,
        num_records=len(dataset) if sized else None,
        multi_preference="rejected_ids" not in dataset.column_names or pool_sizes(dataset) is not None
        if sized
        else True,
        figure=CURVES_FILE if (output_dir / CURVES_FILE).is_file() else None,
        tags=_tags(trainer, tags),
        links=_links(),
        tokens=[args.hub_token] if args.hub_token else [],
    )


def _tags(trainer: Trainer, tags: str | list[str] | None) -> list[str]:
    tags = [tags] if isinstance(tags, str) else [*(tags or [])]
    if hasattr(trainer.model.config, "unsloth_version"):
        tags.append("unsloth")
    if "JOB_ID" in os.environ:
        tags.append("hf_jobs")
    trackio_url = get_trackio_space_url()
    # Pop existing Trackio tag and re-add the one with the proper url parameters
    if trackio_url is not None:
        tags = [tag for tag in tags if not tag.startswith("trackio:")] + [f"trackio:{trackio_url}"]
    return tags


def _links() -> dict[str, str]:
    links = {
        "Weights & Biases": wandb.run.url if is_wandb_available() and wandb.run is not None else None,
        "Trackio": get_trackio_space_url(),
        "Comet": get_comet_experiment_url(),
    }
    return {name: url for name, url in links.items() if url}


def pool_sizes(dataset: Dataset) -> tuple[int, int] | None:
    """The smallest and the largest number of rejected completions of the first records; `None` for a single one."""
    if not isinstance(dataset, Dataset) or "rejected_ids" not in dataset.column_names or not len(dataset):
        return None
    pools = list(dataset.select(range(min(len(dataset), 1000)))["rejected_ids"])
    if not pools[0] or not isinstance(pools[0][0], (list, tuple)):
        return None
    return min(map(len, pools)), max(map(len, pools))


def _objective(trainer: Trainer) -> dict[str, object]:
    args, pools = trainer.args, pool_sizes(trainer.train_dataset)
    recipe: dict[str, object] = {"loss": ", ".join(args.loss_type), "β": args.beta}
    if args.loss_weights:
        recipe["loss weights"] = ", ".join(map(str, args.loss_weights))
    if pools is not None:
        drawn = pools if args.num_negatives is None else [min(pool, args.num_negatives) for pool in pools]
        text = str(drawn[1]) if drawn[0] == drawn[1] else f"{drawn[0]} to {drawn[1]}"
        stored = "" if args.num_negatives is None else f", drawn anew in every epoch of {pools[1]}"
        recipe["K, negatives of a record"] = text + stored
    return recipe | {"reference": _reference(trainer)}


def _objective_of_sft(trainer: Trainer) -> dict[str, object]:
    tokens = "completions alone" if trainer.args.completion_only_loss else "prompts and completions"
    return {"loss": f"of the tokens of {tokens}"}


def _recipe(trainer: Trainer, config: PeftConfig | None) -> dict[str, object]:
    args, steps = trainer.args, trainer.state.global_step
    recipe: dict[str, object] = {
        "steps": steps if steps == trainer.state.max_steps else f"{steps} of {trainer.state.max_steps}",
        "epochs": round(trainer.state.epoch or 0, 3),
        "records in a step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning rate": f"{args.learning_rate:g}, {getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}",
        "warm-up steps": args.get_warmup_steps(trainer.state.max_steps),
        "optimizer": getattr(args.optim, "value", args.optim),
        "precision": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        "max_length": args.max_length,
        "seed": args.seed,
    }
    if config is not None:
        for name, label in (
            ("r", "adapter rank"),
            ("lora_alpha", "adapter alpha"),
            ("lora_dropout", "adapter dropout"),
        ):
            if getattr(config, name, None) is not None:
                recipe[label] = getattr(config, name)
        modules = getattr(config, "target_modules", None) or []
        names = [modules] if isinstance(modules, str) else sorted({name.rsplit(".", 1)[-1] for name in modules})
        recipe["adapter on"] = ", ".join(names)
    return recipe


def _reference(trainer: Trainer) -> str:
    return trainer.reference_in_words + (", synchronised with the policy" if trainer.args.sync_ref_model else "")


def _evaluations(trainer: Trainer) -> list[Evaluation]:
    # At the end of training, the model is that of the best step, if it was asked for
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end and not trainer.is_in_train else None
    evaluations = read_evaluations(trainer.state.log_history, best)
    for one in evaluations:
        dataset = trainer.eval_dataset
        if isinstance(dataset, dict):
            dataset = dataset.get(one.dataset)
        elif one.dataset is not None:  # a sample of another data set, that a callback ranks
            dataset = None
        sized = isinstance(dataset, Dataset)
        if one.num_records is None:  # a trainer of TRL's own counts none
            sizes = getattr(trainer, "_eval_sizes", {})
            one.num_records = sizes.get(one.dataset, len(dataset) if sized else None)
        pools = pool_sizes(dataset) if sized else None
        one.num_candidates = None if pools is None else (1 + pools[0], 1 + pools[1])
    return evaluations

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
# This file re-states `push_to_hub` and `_push_from_checkpoint` of `transformers/trainer.py` of transformers 5.23 and
# `create_model_card` of `trl/trainer/base_trainer.py` of TRL 1.16, changed: what is pushed is a view of the folder without
# what stays here, and a push that failed says so and what to run.

import json
import os
import shutil
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset
from huggingface_hub import CommitInfo
from peft import PeftConfig
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers import is_wandb_available
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import (
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from transformers.utils.hub import PushInProgress, hf_api
from trl.trainer.utils import get_comet_experiment_url, get_config_model_id, get_trackio_space_url

from ..files import write_text
from .card_parts import without_private
from .evaluation_results import Evaluation, read_evaluations
from .model_card import (
    CURVES_FILE,
    ModelFacts,
    adapter_kind,
    make_model_card,
    read_data_report,
    read_json,
)
from .pushes import (
    CARD_FILE,
    LAST_CHECKPOINT,
    RECOMMENDER_FILE,
    left_out,
    push_command,
    remove_old_stages,
    stage_folder,
    try_again,
)
from .training_curves import plot_training_curves


if is_wandb_available():
    import wandb

if TYPE_CHECKING:
    from ..trainer.softmax_dpo_trainer import SoftmaxDPOTrainer

logger = get_logger(__name__)

_SECONDS_BETWEEN_WARNINGS = 300


def push_to_hub(
    trainer: "SoftmaxDPOTrainer",
    commit_message: str | None,
    blocking: bool,
    token: str | None,
    revision: str | None,
    private: bool | None,
    **kwargs,
) -> CommitInfo | Future | None:
    """As `Trainer.push_to_hub`, see the top of this file."""
    args = trainer.args
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)

    model_name = kwargs.pop("model_name", None)
    if model_name is None and args.should_save:
        model_name = _model_name(trainer)
    token = token if token is not None else args.hub_token

    # The model is saved before the Hub is asked for anything
    trainer.save_model(_internal_call=True)
    try:
        # In case the user calls this method with args.push_to_hub = False
        if trainer.hub_model_id is None:
            trainer.init_hf_repo(token=token, private=private)

        # Only push from one node.
        if not trainer.is_world_process_zero():
            return None

        tags = kwargs.get("tags") or []
        tags = [tags] if isinstance(tags, str) else [*tags]
        model_tags = getattr(trainer.model, "model_tags", None) or []
        kwargs["tags"] = [*tags, *(tag for tag in model_tags if tag not in tags)]
        trainer.create_model_card(model_name=model_name, **kwargs)

        # Wait for the current upload to be finished.
        trainer._finish_current_push()
        return _upload(
            trainer, args.output_dir, commit_message, not blocking, revision=revision, token=token, private=private
        )
    except Exception as error:
        repo_id = trainer.hub_model_id or args.hub_model_id or f"USER/{_model_name(trainer)}"
        error.add_note(try_again(Path(args.output_dir), _command(trainer, repo_id, private)))
        raise


def push_from_checkpoint(trainer: "SoftmaxDPOTrainer", checkpoint_folder: str) -> None:
    """As `Trainer._push_from_checkpoint`, see the top of this file."""
    args = trainer.args
    if not trainer.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
        return
    # If we haven't finished the last push, we don't do this one unless args.hub_always_push=True.
    in_progress = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
    if not args.hub_always_push and in_progress:
        return

    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    output_dir = args.output_dir
    if trainer.push_in_progress is None:
        remove_old_stages(Path(output_dir))
    # To avoid a new synchronization of all model weights, we just take the files from the checkpoint folder
    for modeling_file in _modeling_files(checkpoint_folder):
        # replaced and not written into, as an upload may still read it
        Path(output_dir, modeling_file).unlink(missing_ok=True)
        shutil.copy(Path(checkpoint_folder, modeling_file), Path(output_dir, modeling_file))
    # Saving the processing class is fast and we don't know how many files it may have spawned, so we resave it to be sure.
    if trainer.processing_class is not None:
        trainer.processing_class.save_pretrained(output_dir)
    # Same for the training arguments
    torch.save(args, os.path.join(output_dir, TRAINING_ARGS_NAME))

    if args.save_strategy == SaveStrategy.STEPS:
        commit_message = f"Training in progress, step {trainer.state.global_step}"
    else:
        commit_message = f"Training in progress, epoch {int(trainer.state.epoch)}"

    push_jobs = [_upload(trainer, output_dir, commit_message, run_as_future=True)]
    if args.hub_strategy in [HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS]:
        name = LAST_CHECKPOINT if args.hub_strategy == HubStrategy.CHECKPOINT else Path(checkpoint_folder).name
        message = commit_message + ", checkpoint"
        push_jobs.append(_upload(trainer, checkpoint_folder, message, run_as_future=True, path_in_repo=name))

    if not in_progress:
        trainer.push_in_progress = PushInProgress(push_jobs)
    else:
        trainer.push_in_progress.jobs.extend(push_jobs)


def _modeling_files(checkpoint_folder: str) -> list[str]:
    modeling_files = [CONFIG_NAME, GENERATION_CONFIG_NAME, WEIGHTS_NAME, SAFE_WEIGHTS_NAME]
    #  Add sharded checkpoints if we have an index
    for index_file in [WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_INDEX_NAME]:
        index_path = Path(checkpoint_folder, index_file)
        if index_path.is_file():
            index = json.loads(index_path.read_text(encoding="utf-8"))
            modeling_files += [index_file, *set(index["weight_map"].values())]
    modeling_files += [ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, ADAPTER_SAFE_WEIGHTS_NAME]
    return [name for name in modeling_files if Path(checkpoint_folder, name).is_file()]


def _upload(
    trainer: "SoftmaxDPOTrainer",
    folder: str,
    commit_message: str | None,
    run_as_future: bool,
    path_in_repo: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    private: bool | None = None,
) -> CommitInfo | Future:
    """Upload a view of a folder: the policy alone, of the files as they are now."""
    args, folder = trainer.args, Path(folder)
    private = args.hub_private_repo if private is None else private
    ignore = left_out(folder, private is True, args.redistribution_permitted)
    # The card beside a checkpoint is PEFT's, which has the path of the base model in it
    stage = stage_folder(folder, [*ignore, CARD_FILE] if path_in_repo else ignore)
    try:
        uploaded = hf_api().upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=stage,
            path_in_repo=path_in_repo,
            commit_message=commit_message,
            token=token if token is not None else args.hub_token,
            run_as_future=run_as_future,
            revision=revision if revision is not None else args.hub_revision,
        )
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    if run_as_future:
        command = _command(trainer, trainer.hub_model_id, private)
        uploaded.add_done_callback(partial(_end_of_push, stage, try_again(Path(args.output_dir), command)))
    else:
        shutil.rmtree(stage, ignore_errors=True)
    return uploaded


def _end_of_push(stage: Path, what_to_do: str, job: Future) -> None:
    """`Trainer` asks no job how it ended: what went wrong would be known to nobody."""
    shutil.rmtree(stage, ignore_errors=True)
    if not job.cancelled() and job.exception() is not None:
        logger.warning(f"A push to the Hub failed, and training goes on: {job.exception()} {what_to_do}")


def finish_current_push(trainer: "SoftmaxDPOTrainer") -> None:
    """As `Trainer._finish_current_push`, and says what to do about a Hub that does not answer."""
    push = getattr(trainer, "push_in_progress", None)
    if push is None or push.is_done():
        return
    logger.info("Waiting for the current checkpoint push to be finished, this might take a couple of minutes.")
    what_to_do = try_again(Path(trainer.args.output_dir), _command(trainer, trainer.hub_model_id, None))
    asked = time.monotonic()
    while not push.is_done():
        time.sleep(0.1)
        if time.monotonic() - asked > _SECONDS_BETWEEN_WARNINGS:
            asked = time.monotonic()
            logger.warning(f"Still waiting for the current checkpoint push. It may be interrupted. {what_to_do}")


def _command(trainer: "SoftmaxDPOTrainer", repo_id: str, private: bool | None) -> str:
    private = trainer.args.hub_private_repo if private is None else private
    return push_command(trainer.args.output_dir, repo_id, private is True, trainer.args.redistribution_permitted)


def _model_name(trainer: "SoftmaxDPOTrainer") -> str:
    if trainer.args.hub_model_id is None:
        return Path(trainer.args.output_dir).name
    return trainer.args.hub_model_id.split("/")[-1]


def create_model_card(
    trainer: "SoftmaxDPOTrainer", model_name: str | None, dataset_name: str | None, tags: str | list[str] | None
) -> None:
    """Write the card, and the figure of the training curves, into the folder of the run."""
    if not trainer.is_world_process_zero():
        return
    output_dir = Path(trainer.args.output_dir)
    os.makedirs(output_dir, exist_ok=True)
    # A checkpoint that goes nowhere needs no figure
    if trainer.args.push_to_hub or not trainer._saving_checkpoint:
        plot_training_curves(trainer.state.log_history, output_dir / CURVES_FILE)
    facts = collect_facts(trainer, model_name, dataset_name, tags)
    write_text(output_dir / CARD_FILE, str(make_model_card(facts)))


def remove_private_names(folder: str, token: str | None) -> None:
    """Take home paths and tokens from the card that PEFT writes, or adds to, whenever it saves an adapter."""
    card = Path(folder) / CARD_FILE
    if card.is_file():
        write_text(card, without_private(card.read_text(encoding="utf-8"), [token]))


def collect_facts(
    trainer: "SoftmaxDPOTrainer", model_name: str | None, dataset_name: str | None, tags: str | list[str] | None
) -> ModelFacts:
    """What a trainer knows of its model, for [`make_model_card`]."""
    args, output_dir = trainer.args, Path(trainer.args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = model.peft_config["default"] if is_peft_model(model) and "default" in model.peft_config else None
    dataset = trainer.train_dataset
    sized = isinstance(dataset, Dataset)
    name = model_name or Path(os.path.abspath(output_dir)).name
    return ModelFacts(
        model_name=name,
        repo_id=trainer.hub_model_id or name,
        base_model=get_config_model_id(trainer.model.config) or getattr(config, "base_model_name_or_path", None),
        adapter=adapter_kind(getattr(getattr(config, "peft_type", None), "value", None)),
        recipe=_recipe(trainer, config),
        evaluations=_evaluations(trainer),
        recommender=read_json(output_dir / RECOMMENDER_FILE),
        report=read_data_report(output_dir),
        dataset_name=dataset_name,
        num_records=len(dataset) if sized else None,
        multi_preference="rejected_ids" not in dataset.column_names or _pools(dataset) is not None if sized else True,
        figure=CURVES_FILE if (output_dir / CURVES_FILE).is_file() else None,
        tags=_tags(trainer, tags),
        links=_links(),
        tokens=[args.hub_token] if args.hub_token else [],
    )


def _tags(trainer: "SoftmaxDPOTrainer", tags: str | list[str] | None) -> list[str]:
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


def _pools(dataset: Dataset) -> tuple[int, int] | None:
    """The smallest and the largest number of rejected completions of the first records; `None` for a single one."""
    if not isinstance(dataset, Dataset) or "rejected_ids" not in dataset.column_names or not len(dataset):
        return None
    pools = list(dataset.select(range(min(len(dataset), 1000)))["rejected_ids"])
    if not pools[0] or not isinstance(pools[0][0], (list, tuple)):
        return None
    return min(map(len, pools)), max(map(len, pools))


def _recipe(trainer: "SoftmaxDPOTrainer", config: PeftConfig | None) -> dict[str, object]:
    args, pools = trainer.args, _pools(trainer.train_dataset)
    recipe: dict[str, object] = {"loss": ", ".join(args.loss_type), "β": args.beta}
    if args.loss_weights:
        recipe["loss weights"] = ", ".join(map(str, args.loss_weights))
    if pools is not None:
        drawn = pools if args.num_negatives is None else [min(pool, args.num_negatives) for pool in pools]
        text = str(drawn[1]) if drawn[0] == drawn[1] else f"{drawn[0]} to {drawn[1]}"
        stored = "" if args.num_negatives is None else f", drawn anew in every epoch of {pools[1]}"
        recipe["K, negatives of a record"] = text + stored
    steps = trainer.state.global_step
    recipe |= {
        "reference": _reference(trainer),
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


def _reference(trainer: "SoftmaxDPOTrainer") -> str:
    return trainer.reference_in_words + (", synchronised with the policy" if trainer.args.sync_ref_model else "")


def _evaluations(trainer: "SoftmaxDPOTrainer") -> list[Evaluation]:
    # At the end of training, the model is that of the best step, if it was asked for
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end and not trainer.is_in_train else None
    evaluations = read_evaluations(trainer.state.log_history, best)
    for one in evaluations:
        dataset = trainer.eval_dataset
        dataset = dataset.get(one.dataset) if isinstance(dataset, dict) else dataset
        sized = isinstance(dataset, Dataset)
        one.num_records = trainer._eval_sizes.get(one.dataset, len(dataset) if sized else None)
        pools = _pools(dataset) if sized else None
        one.num_candidates = None if pools is None else (1 + pools[0], 1 + pools[1])
    return evaluations

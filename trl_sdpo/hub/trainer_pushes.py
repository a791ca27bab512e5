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
# This file re-states `push_to_hub` and `_push_from_checkpoint` of `transformers/trainer.py` of transformers 5.23, changed:
# what is pushed is a view of the folder without what stays here, and a push that failed says so and what to run.

import json
import os
import shutil
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import torch
from accelerate.logging import get_logger
from huggingface_hub import CommitInfo
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers import Trainer
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

from ..files import write_text
from .card_facts import keep_facts, without_peft_versions
from .card_parts import without_private
from .model_card import CURVES_FILE, make_model_card
from .pushes import (
    CARD_FILE,
    LAST_CHECKPOINT,
    former_catalogue,
    left_out,
    push_command,
    remove_old_stages,
    stage_folder,
    try_again,
)
from .training_curves import plot_training_curves
from .training_facts import collect_facts


logger = get_logger(__name__)

_SECONDS_BETWEEN_WARNINGS = 300


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


def _end_of_push(stage: Path, what_to_do: str, job: Future) -> None:
    """`Trainer` asks no job how it ended: what went wrong would be known to nobody."""
    shutil.rmtree(stage, ignore_errors=True)
    if not job.cancelled() and job.exception() is not None:
        logger.warning(f"A push to the Hub failed, and training goes on: {job.exception()} {what_to_do}")


def remove_private_names(folder: str, token: str | None) -> None:
    """Take home paths and tokens from the card that PEFT writes, or adds to, whenever it saves an adapter."""
    card = Path(folder) / CARD_FILE
    if card.is_file():
        text = without_peft_versions(card.read_text(encoding="utf-8"))
        write_text(card, without_private(text, [token]))


def write_model_card(
    trainer: Trainer,
    model_name: str | None,
    dataset_name: str | None,
    tags: str | list[str] | None,
    *,
    method: str = "s-dpo",
    with_figure: bool = True,
) -> None:
    """
    Write the card of a trainer's model, what it was made of, and a figure of the training curves, into its directory.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer. Nothing is written but by its first process.
        model_name (`str`, *optional*), dataset_name (`str`, *optional*), tags (`str` or `list[str]`, *optional*):
            See [`PolicyPushes.create_model_card`].
        method (`str`, *optional*, defaults to `"s-dpo"`):
            See [`ModelFacts`].
        with_figure (`bool`, *optional*, defaults to `True`):
            Whether the figure is drawn.
    """
    if not trainer.is_world_process_zero():
        return
    output_dir = Path(trainer.args.output_dir)
    os.makedirs(output_dir, exist_ok=True)
    if with_figure:
        plot_training_curves(trainer.state.log_history, output_dir / CURVES_FILE)
    facts = collect_facts(trainer, model_name, dataset_name, tags, method)
    card = str(make_model_card(facts))
    write_text(output_dir / CARD_FILE, card)
    keep_facts(output_dir, facts, card)


class PolicyPushes(Trainer):
    """
    What a trainer writes into its cards and pushes: the policy alone, without what stays here. To stand before the
    trainer of TRL among the bases of a class.
    """

    _saving_checkpoint = False  # whether what is saved is a checkpoint, and not the model of the run
    _eval_sizes: dict[
        str | None, int
    ]  # number of records of the last evaluation, by the name of the dataset or `None`

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Write the model card `README.md`, and a figure of the training curves, into the output directory.

        Args:
            model_name (`str`, *optional*):
                Name of the model. By default that of the output directory.
            dataset_name (`str`, *optional*):
                Id of the training data on the Hub.
            tags (`str` or `list[str]`, *optional*):
                Tags to be associated with the model card.
        """
        # A checkpoint that goes nowhere needs no figure
        with_figure = self.args.push_to_hub or not self._saving_checkpoint
        write_model_card(self, model_name, dataset_name, tags, with_figure=with_figure)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            remove_private_names(output_dir or self.args.output_dir, self.args.hub_token)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """
        As [`~transformers.Trainer.push_to_hub`], for the policy alone. The catalogue stays behind where the licence
        of its source forbids redistribution, unless `args.redistribution_permitted` states that you may. The error of a
        push that fails says what to run to try again; the model is saved before.
        """
        args = self.args
        self.callback_handler.on_push_begin(args, self.state, self.control)

        model_name = kwargs.pop("model_name", None)
        if model_name is None and args.should_save:
            model_name = self._name_of_repo()
        token = token if token is not None else args.hub_token

        # The model is saved before the Hub is asked for anything
        self.save_model(_internal_call=True)
        try:
            # In case the user calls this method with args.push_to_hub = False
            if self.hub_model_id is None:
                if private is not None:
                    args.hub_private_repo = private  # transformers before 5.23 has no other way to say it
                self.init_hf_repo(token=token)

            # Only push from one node.
            if not self.is_world_process_zero():
                return None

            tags = kwargs.get("tags") or []
            tags = [tags] if isinstance(tags, str) else [*tags]
            model_tags = getattr(self.model, "model_tags", None) or []
            kwargs["tags"] = [*tags, *(tag for tag in model_tags if tag not in tags)]
            self.create_model_card(model_name=model_name, **kwargs)

            # Wait for the current upload to be finished.
            self._finish_current_push()
            return self._upload_policy(
                args.output_dir, commit_message, not blocking, revision=revision, token=token, private=private
            )
        except Exception as error:
            repo_id = self.hub_model_id or args.hub_model_id or f"USER/{self._name_of_repo()}"
            error.add_note(try_again(Path(args.output_dir), self._push_command(repo_id, private)))
            raise

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As `Trainer._push_from_checkpoint`, see the top of this file."""
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        # If we haven't finished the last push, we don't do this one unless args.hub_always_push=True.
        in_progress = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if not args.hub_always_push and in_progress:
            return

        self.callback_handler.on_push_begin(args, self.state, self.control)
        output_dir = args.output_dir
        if self.push_in_progress is None:
            remove_old_stages(Path(output_dir))
        # To avoid a new synchronization of all model weights, we just take the files from the checkpoint folder
        for modeling_file in _modeling_files(checkpoint_folder):
            # replaced and not written into, as an upload may still read it
            Path(output_dir, modeling_file).unlink(missing_ok=True)
            shutil.copy(Path(checkpoint_folder, modeling_file), Path(output_dir, modeling_file))
        # Saving the processing class is fast and we don't know how many files it may have spawned, so we resave it to be sure.
        if self.processing_class is not None:
            self.processing_class.save_pretrained(output_dir)
        # Same for the training arguments
        torch.save(args, os.path.join(output_dir, TRAINING_ARGS_NAME))

        if args.save_strategy == SaveStrategy.STEPS:
            commit_message = f"Training in progress, step {self.state.global_step}"
        else:
            commit_message = f"Training in progress, epoch {int(self.state.epoch)}"

        push_jobs = [self._upload_policy(output_dir, commit_message, run_as_future=True)]
        if args.hub_strategy in [HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS]:
            name = LAST_CHECKPOINT if args.hub_strategy == HubStrategy.CHECKPOINT else Path(checkpoint_folder).name
            message = commit_message + ", checkpoint"
            push_jobs.append(self._upload_policy(checkpoint_folder, message, run_as_future=True, path_in_repo=name))

        if not in_progress:
            self.push_in_progress = PushInProgress(push_jobs)
        else:
            self.push_in_progress.jobs.extend(push_jobs)

    def _finish_current_push(self) -> None:
        """As `Trainer._finish_current_push`, and says what to do about a Hub that does not answer."""
        push = getattr(self, "push_in_progress", None)
        if push is None or push.is_done():
            return
        logger.info("Waiting for the current checkpoint push to be finished, this might take a couple of minutes.")
        what_to_do = try_again(Path(self.args.output_dir), self._push_command(self.hub_model_id, None))
        asked = time.monotonic()
        while not push.is_done():
            time.sleep(0.1)
            if time.monotonic() - asked > _SECONDS_BETWEEN_WARNINGS:
                asked = time.monotonic()
                logger.warning(f"Still waiting for the current checkpoint push. It may be interrupted. {what_to_do}")

    def _upload_policy(
        self,
        folder: str | Path,
        commit_message: str | None,
        run_as_future: bool,
        path_in_repo: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        private: bool | None = None,
    ) -> CommitInfo | Future:
        """Upload a view of a folder: the policy alone, of the files as they are now."""
        args = self.args
        folder = Path(folder)
        private = args.hub_private_repo if private is None else private
        ignore = left_out(folder, private is True, args.redistribution_permitted)
        # The card beside a checkpoint is PEFT's, which has the path of the base model in it
        stage = stage_folder(folder, [*ignore, CARD_FILE] if path_in_repo else ignore)
        try:
            uploaded = hf_api().upload_folder(
                repo_id=self.hub_model_id,
                folder_path=stage,
                path_in_repo=path_in_repo,
                commit_message=commit_message,
                delete_patterns=former_catalogue(stage),
                token=token if token is not None else args.hub_token,
                run_as_future=run_as_future,
                revision=revision if revision is not None else args.hub_revision,
            )
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
        if run_as_future:
            command = self._push_command(self.hub_model_id, private)
            uploaded.add_done_callback(partial(_end_of_push, stage, try_again(Path(args.output_dir), command)))
        else:
            shutil.rmtree(stage, ignore_errors=True)
        return uploaded

    def _push_command(self, repo_id: str, private: bool | None) -> str:
        private = self.args.hub_private_repo if private is None else private
        return push_command(self.args.output_dir, repo_id, private is True, self.args.redistribution_permitted)

    def _name_of_repo(self) -> str:
        if self.args.hub_model_id is None:
            return Path(self.args.output_dir).name
        return self.args.hub_model_id.split("/")[-1]

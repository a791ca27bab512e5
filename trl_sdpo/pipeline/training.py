"""Training as a stage of a run: what is saved beside the model, and what a second start finds."""

import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..files import write_text
from ..hub.model_card import copy_data_report
from ..hub.pushes import push_command, try_again
from ..hub.training_facts import pool_sizes
from ..recsys.records.recommender_files import (
    RecommenderFiles,
    remove_catalogue,
    save_recommender_files,
)
from ..trainer.checkpoints import find_last_checkpoint, resolve_checkpoint
from .datasets import find_recommender_files
from .progress import evaluation_table, show_progress
from .state import BEGUN, DONE, NEW, STATE_FILE, StageState


logger = logging.getLogger(__name__)

_SECONDS, _ELAPSED = "train_seconds", "elapsed.json"


@dataclass(frozen=True)
class TrainedStage:
    """
    A stage that is done. Its directory, which it stands for wherever a path is taken, holds the model.

    Args:
        directory (`Path`):
            The directory.
        seconds (`float`):
            Of training, with those before an interruption.
        log (`list[dict]`):
            `trainer.state.log_history`.
    """

    directory: Path
    seconds: float
    log: list[dict]

    def __fspath__(self) -> str:
        return str(self.directory)

    def __str__(self) -> str:
        return str(self.directory)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(entry["step"] for entry in self.log)


def run_stage(
    state: StageState,
    make_trainer: Callable[[], Trainer],
    *,
    dataset: str | Path | None = None,
    append_eos: bool | None = None,
    resume: bool = True,
) -> TrainedStage:
    """
    Train a stage and save its model, or take up what an earlier run with the same settings left.

    Args:
        state ([`StageState`]):
            The directory, and what the result depends on.
        make_trainer (`Callable`):
            Makes the trainer, whose `output_dir` is the directory; only when there is something to train.
        dataset (`str` or `Path`, *optional*):
            The prepared data set, whose `recommender.json` and `catalogue.json` go with the model.
        append_eos (`bool`, *optional*):
            See [`train_and_save`].
        resume (`bool`, *optional*, defaults to `True`):
            Whether a finished stage is taken as it is, and an unfinished one goes on from its last whole checkpoint.
            If not, what a run has left is removed.

    Returns:
        [`TrainedStage`]: The stage.

    Raises:
        FileExistsError: the directory holds files of something else, or of other settings.
    """
    directory, found = state.directory, state.look()
    if found == DONE and resume:
        stage = _read_stage(directory)
        logger.info("%s: done before, in %.0f s.", directory, stage.seconds)
        return stage
    if found != NEW and not resume:
        if not (directory / STATE_FILE).is_file():
            raise FileExistsError(f"{directory}: holds what no run left. Pass another directory, or empty this one.")
        logger.warning("%s: what an earlier run left there is removed.", directory)
        shutil.rmtree(directory)
    elif found not in (NEW, BEGUN):
        raise FileExistsError(
            f"{directory}: holds {state.what_is_there()}. Pass another directory, or resume=False to begin anew."
        )
    state.write(done=False)
    trainer = make_trainer()
    checkpoint, _ = find_last_checkpoint(directory, not trainer.args.save_only_model)
    if checkpoint is not None:
        logger.info("%s: going on from %s.", directory, Path(checkpoint).name)
    train_and_save(trainer, dataset, checkpoint, append_eos)
    state.write(done=True)
    return _read_stage(directory)


def _read_stage(directory: Path) -> TrainedStage:
    metrics = json.loads((directory / "train_results.json").read_text(encoding="utf-8"))
    log = json.loads((directory / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return TrainedStage(directory, metrics[_SECONDS], log)


class _Stopwatch(TrainerCallback):
    """Leaves the seconds of training so far in each checkpoint, so that a resumed run knows them."""

    def __init__(self, checkpoint: str | None) -> None:
        path = None if checkpoint is None else Path(checkpoint) / _ELAPSED
        before = 0.0
        if path is not None and path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))["seconds"]
        self.start = time.perf_counter() - before

    @property
    def seconds(self) -> float:
        return round(time.perf_counter() - self.start, 1)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            write_text(folder / _ELAPSED, json.dumps({"seconds": self.seconds}))


def train_and_save(
    trainer: Trainer,
    dataset: str | Path | None,
    resume_from_checkpoint: str | None = None,
    append_eos: bool | None = None,
) -> None:
    """
    Train, evaluate where there is a data set for it, save the model with its metrics, and push it where that is asked for.

    The output directory then holds the adapter or the model, its tokenizer, `train_results.json`, `eval_results.json`,
    `trainer_state.json` with the log, and where the data set has them, `recommender.json` and `catalogue.json`.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer.
        dataset (`str` or `Path`, *optional*):
            Where the records come from: a directory, a file, or a name on the Hub.
        resume_from_checkpoint (`str`, *optional*):
            See [`~transformers.Trainer.train`].
        append_eos (`bool`, *optional*):
            Whether an EOS token ended the completions, which a recommender must know. By default what the data set says.
    """
    args = trainer.args
    checkpoint = resolve_checkpoint(resume_from_checkpoint, args.output_dir, args.save_only_model)
    files = report = None
    if args.should_save and dataset is not None:
        files, report = _recommender_files(dataset, append_eos)
    if report is not None:
        copy_data_report(report, args.output_dir)
    if files is not None:
        save_recommender_files(args.output_dir, files.config)
        # of an earlier run; it comes back at the end
        remove_catalogue(args.output_dir)
    stopwatch = _Stopwatch(checkpoint)
    trainer.add_callback(stopwatch)
    show_progress(trainer)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    seconds = stopwatch.seconds
    trainer.save_model(args.output_dir, _internal_call=True)  # pushed below, when all that belongs to it is on disk
    # with what a report of several models plots them over
    facts = {"num_negatives": _drawn(trainer), "beta": getattr(args, "beta", None)}
    facts = {name: value for name, value in facts.items() if value is not None}
    trainer.save_metrics("train", result.metrics | facts | {_SECONDS: seconds})
    trainer.save_state()
    if trainer.eval_dataset is not None:
        _evaluate(trainer)
    if not args.push_to_hub:  # which makes it, too
        trainer.create_model_card()  # that of the last checkpoint knows nothing of the evaluation
    trainer.accelerator.print(f"{args.output_dir}: the model, its tokenizer and all_results.json.")
    try:
        if args.push_to_hub:
            _push(trainer, dataset)
    finally:
        if files is not None:
            # behind all pushes: few publishers let their catalogue be passed on, and `trl-sdpo push` knows which
            save_recommender_files(args.output_dir, files.config, files.catalogue)
    trainer.end()


def _evaluate(trainer: Trainer) -> None:
    metrics = trainer.evaluate()
    for line in evaluation_table(metrics, trainer.eval_dataset):
        trainer.accelerator.print(line)
    trainer.save_metrics("eval", metrics)


def _drawn(trainer: Trainer) -> int | None:
    """K as it is drawn: no more negatives than the records have."""
    asked, pools = getattr(trainer.args, "num_negatives", None), pool_sizes(trainer.train_dataset)
    known = [k for k in (asked, None if pools is None else pools[1]) if k is not None]
    return min(known) if known and hasattr(trainer.args, "num_negatives") else None


def _push(trainer: Trainer, dataset: str | Path | None) -> None:
    args = trainer.args
    # a path of this machine is no name for others
    is_public = dataset is not None and not os.path.exists(dataset)
    try:
        trainer.push_to_hub(dataset_name=str(dataset) if is_public else None)
    except Exception as error:
        if not getattr(error, "__notes__", None):  # of a trainer of TRL's own
            command = push_command(args.output_dir, trainer.hub_model_id, args.hub_private_repo is True)
            error.add_note(try_again(Path(args.output_dir), command))
        raise
    trainer.accelerator.print(f"Pushed to {trainer.hub_model_id}.")


def _recommender_files(dataset: str | Path, append_eos: bool | None) -> tuple[RecommenderFiles | None, Path | None]:
    """What a recommender needs of the data set, with what became of the end of its completions, and where its report is."""
    files, report = find_recommender_files(dataset)
    if files.config is None:
        return None, report
    end = files.config.append_eos if append_eos is None else append_eos
    return dataclasses.replace(files, config=dataclasses.replace(files.config, append_eos=end)), report

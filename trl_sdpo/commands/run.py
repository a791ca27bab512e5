"""`trl-sdpo run CONFIG.yaml`: the sections of a file, one command after the other, and where it broke off."""

import argparse
import importlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .._errors import INTERRUPTED, RUN, SPOKEN_FOR
from ..cli import COMMANDS, GOES_ON, suggest
from ..pipeline.digests import digest, state_of_files
from ..pipeline.state import BEGUN, DONE, NEW, StageState
from ._config_file import ENVIRONMENT, has_sections, read_config, section_of


logger = logging.getLogger(__name__)

# In the order in which they build on each other
STAGES = tuple(name for name in ("prepare", "sft", "train", "evaluate", "recommend", "push") if name in COMMANDS)
TRAINING = ("sft", "train")
_SECONDS_TO_END = 15


@dataclass
class Stage:
    """
    A command with its flags.

    Args:
        name (`str`):
            The command.
        flags (`dict[str, Any]`):
            Those of its section and of `common`.
        digests (`dict[str, str]`):
            What its result depends on: a hash of each flag, of the files that it reads and of the stages before. Hashes,
            since a directory is passed on more often than one would pass on a token or the path of a home.
    """

    name: str
    flags: dict[str, Any]
    digests: dict[str, str]

    @property
    def output(self) -> Path | None:
        """The directory that the command makes; others, such as a push, are done each time."""
        flag = {"prepare": "output", "evaluate": "output", "sft": "output_dir", "train": "output_dir"}.get(self.name)
        return Path(self.flags[flag]) if self.flags.get(flag) else None

    @property
    def state(self) -> StageState:
        """What the directory says of an earlier run."""
        return StageState(self.output, self.digests)


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} CONFIG.yaml [SECTION.FLAG=VALUE ...] [--stages NAME ...] [--overwrite]",
        description="Run the commands that have a section in a YAML file, one after the other, each in a process of its "
        "own. What is done is not done again, and training that broke off goes on from its last checkpoint: to go on, "
        "run the same words again.",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="File with a section per command.")
    parser.add_argument(
        "changes", nargs="*", metavar="SECTION.FLAG=VALUE", help="In the place of what the file has: train.beta=0.5"
    )
    parser.add_argument("--stages", nargs="+", metavar="NAME", help=f"Only these of {', '.join(STAGES)}.")
    parser.add_argument(
        "--overwrite", action="store_true", help="Do anew what was done with other settings, in the same directories."
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Check all sections, then run their commands."""
    config = _change(read_config(args.config), args.changes, args.config)
    with tempfile.TemporaryDirectory() as folder:
        path = args.config
        if args.changes:
            path = str(Path(folder) / Path(path).name)
            Path(path).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        stages = plan(config, path)
        if args.stages:
            missing = [name for name in args.stages if name not in [stage.name for stage in stages]]
            if missing:
                raise ValueError(f"--stages: {args.config} has no section {missing[0]!r}. Add it, or leave it out.")
            stages = [stage for stage in stages if stage.name in args.stages]
        run_stages(stages, path, args.overwrite)


def plan(config: dict[str, Any], path: str) -> list[Stage]:
    """
    The commands of a file, in the order in which they build on each other.

    Args:
        config (`dict[str, Any]`):
            Of [`read_config`].
        path (`str`):
            The file, whose sections are checked before the first command starts.

    Returns:
        `list[Stage]`: The commands that have a section.

    Raises:
        ValueError: the file has no sections.
        SystemExit: a section holds what its command does not take.
    """
    if not has_sections(config) or not any(name in config for name in STAGES):
        raise ValueError(f"{path}: there is no section of a command. Put the flags under one of {', '.join(STAGES)}.")
    config = {name: section for name, section in config.items() if name != ENVIRONMENT}
    stages, before = [], ""
    for name in STAGES:
        if name not in config:
            continue
        parser = importlib.import_module(f".{name}", __package__).make_parser(f"trl-sdpo {name}")
        parser.check_file(path)
        # flags of `accelerate launch` say where a result is computed, and are no part of it
        known = parser.flags
        flags, _ = section_of(config, name, known, path)
        digests = {flag: digest(value) for flag, value in flags.items() if flag in known}
        digests["the files of `path`"] = digest(state_of_files(flags.get("path")))
        digests["the stages before it"] = before
        stages.append(Stage(name, flags, digests))
        before = digest([before, digests])
    return stages


def _change(config: dict[str, Any], changes: Sequence[str], path: str) -> dict[str, Any]:
    for change in changes:
        name, equals, value = change.partition("=")
        section, dot, flag = name.partition(".")
        if not equals or not dot:
            raise ValueError(f"{change!r} is not SECTION.FLAG=VALUE, such as train.beta=0.5.")
        if section not in config:
            hint = suggest(section, list(config))
            raise ValueError(f"{change!r}: {path} has no section {section!r}.{hint} Sections: {list(config)}.")
        try:
            config[section] = {**(config[section] or {}), flag: yaml.safe_load(value)}
        except yaml.YAMLError as error:
            raise ValueError(f"{change!r}: {value!r} is no YAML value: {error}") from error
    return config


def run_stages(stages: Sequence[Stage], path: str, overwrite: bool = False) -> None:
    """
    Run commands one after the other, less what is done, each in a process of its own, which gives back all of its
    memory.

    Args:
        stages (`Sequence[Stage]`):
            The commands.
        path (`str`):
            The file with their sections.
        overwrite (`bool`, *optional*, defaults to `False`):
            Do anew what was done with other settings.

    Raises:
        ValueError: a directory holds what was made with other settings, or by something else.
        ChildProcessError: a command failed.
    """
    for stage in stages:
        words = _words_to_go_on(stage, overwrite)
        if words is None:
            logger.info("── %s: done before, see %s", stage.name, stage.output)
            continue
        logger.info("── %s%s", stage.name, f" {' '.join(words)}" if words else "")
        if stage.output is not None and stage.name != "prepare":  # whose directory appears when it is whole
            stage.state.write(done=False)
        status = _start(stage.name, ["--config", path, *words])
        if status in (INTERRUPTED, -signal.SIGINT):
            raise KeyboardInterrupt
        if status != 0:
            raise ChildProcessError(
                f"{stage.name} ended with status {status}. When its error is mended, the same command goes on from there."
            )
        if stage.output is not None:
            stage.state.write(done=True)


def _words_to_go_on(stage: Stage, overwrite: bool) -> list[str] | None:
    """More words for a command that begins, begins anew or goes on; `None` where it is done."""
    found = NEW if stage.output is None else stage.state.look()
    if found == NEW:
        return []
    if found == DONE:
        return None
    if found == BEGUN:
        return _words_to_resume(stage)
    if not overwrite:
        raise ValueError(
            f"{stage.name}: {stage.output} holds {stage.state.what_is_there()}. Pass --overwrite to make it anew, "
            "another directory in the file, or --stages to leave this one out."
        )
    return (
        ["--overwrite_output_dir"]
        if stage.name in TRAINING
        else ["--overwrite"]
        if stage.name in ("prepare", "evaluate")
        else []
    )


def _words_to_resume(stage: Stage) -> list[str]:
    from ..trainer.checkpoints import find_last_checkpoint

    if stage.name not in TRAINING:
        return ["--overwrite"] if stage.name == "evaluate" else []
    checkpoint, _ = find_last_checkpoint(stage.output, not stage.flags.get("save_only_model", False))
    return ["--overwrite_output_dir"] if checkpoint is None else ["--resume_from_checkpoint", "True"]


def _start(name: str, words: list[str]) -> int:
    """The exit status of a command in a process of its own, which ends before this one does."""
    # the process finds this very package, wherever it is
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "trl_sdpo.cli", name, *words]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths, SPOKEN_FOR: RUN}) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            _end(process)
            raise


def _end(process: subprocess.Popen) -> None:
    """After Ctrl-C, which a terminal sends to both processes: wait, and tell a process that knows nothing of it."""
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()


def how_it_goes_on(args: argparse.Namespace) -> str:
    """What the same command does after an interruption."""
    return GOES_ON

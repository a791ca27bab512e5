"""`trl-sdpo run CONFIG.yaml`: the sections of a file, one command after the other, and where it broke off."""

import argparse
import importlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .._errors import INTERRUPTED, RUN, SPOKEN_FOR, passing_on_termination
from .._terminal import FlagHelpFormatter
from ..cli import COMMANDS, GOES_ON, suggest
from ..files import write_text
from ..pipeline.digests import digest, state_of_files
from ..pipeline.state import BEGUN, DONE, NEW, StageState
from ._config_file import (
    COMMON,
    ENVIRONMENT,
    OLD_NAMES,
    check_places,
    has_sections,
    read_config,
    section_of,
    with_new_names,
)


logger = logging.getLogger(__name__)

# In the order in which they build on each other
STAGES = tuple(name for name in ("prepare", "sft", "train", "evaluate", "recommend", "push") if name in COMMANDS)
TRAINING = ("sft", "train")
MAKES = ("prepare", "sft", "train", "evaluate")
TITLES = {
    "prepare": "records",
    "sft": "SFT",
    "train": "Softmax-DPO",
    "evaluate": "evaluation",
    "recommend": "recommendations",
    "push": "push to the Hub",
}
_SECONDS_TO_END = 15
# Of a row of a report: its metrics, their intervals over users, and of how many records and users they are
_FOR_CARDS = r"((hr|ndcg)@\d+|mrr)(_ci)?|n|users"
BEFORE = "the stages before it"


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
        section (`str`):
            A hash of its section as it stands in the file: where it is that of a stage that is done, nothing else needs
            to be looked at.
    """

    name: str
    flags: dict[str, Any]
    digests: dict[str, str]
    section: str = ""

    @property
    def output(self) -> Path | None:
        """The directory that the command makes; others, such as a push, are done each time."""
        folder = self.flags.get("output_dir") if self.name in MAKES else None
        return Path(folder) if folder else None

    @property
    def state(self) -> StageState:
        """What the directory says of an earlier run."""
        return StageState(self.output, self.digests, section=self.section)


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} CONFIG.yaml [SECTION.FLAG=VALUE ...] [--stages NAME ...] [--overwrite]",
        description="Run the commands that have a section in a YAML file, one after the other, each in a process of its "
        "own. What is done is not done again, and training that broke off goes on from its last checkpoint: to go on, "
        "run the same words again.",
        formatter_class=FlagHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="File with a section per command.")
    parser.add_argument(
        "changes", nargs="*", metavar="SECTION.FLAG=VALUE", help="In the place of what the file has: train.beta=0.5."
    )
    parser.add_argument("--stages", nargs="+", metavar="NAME", help=f"Only these of {', '.join(STAGES)}.")
    parser.add_argument(
        "--overwrite", action="store_true", help="Do anew what was done with other settings, in the same directories."
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Check all sections, then run their commands."""
    config = _change(_with_new_names(read_config(args.config)), args.changes, args.config)
    names = [name for name in STAGES if name in config]
    missing = [name for name in args.stages or () if name not in names]
    if missing:
        raise ValueError(f"--stages: {args.config} has no section {missing[0]!r}. Add it, or leave it out.")
    wanted = args.stages or names
    with tempfile.TemporaryDirectory() as folder:
        path = args.config
        if args.changes:
            path = str(Path(folder) / Path(path).name)
            Path(path).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        stages = [stage for stage in plan(config, path, wanted) if stage.name in wanted]
        run_stages(stages, path, args.overwrite)


def plan(config: dict[str, Any], path: str, wanted: Sequence[str] | None = None) -> list[Stage]:
    """
    The commands of a file, in the order in which they build on each other.

    Args:
        config (`dict[str, Any]`):
            Of [`read_config`].
        path (`str`):
            The file, whose sections are checked before the first command starts: first what needs no heavy import.
        wanted (`Sequence[str]`, *optional*):
            Commands that will run, of which the data sets and models are to be there, or made by one before it.

    Returns:
        `list[Stage]`: The commands that have a section.

    Raises:
        ValueError: the file has no sections, or what a section names is not there.
        SystemExit: a section holds what its command does not take.
    """
    if not has_sections(config) or not any(name in config for name in STAGES):
        raise ValueError(f"{path}: there is no section of a command. Put the flags under one of {', '.join(STAGES)}.")
    config = {name: section for name, section in _with_new_names(config).items() if name != ENVIRONMENT}
    names = [name for name in STAGES if name in config]
    done = _done_stages(config, names)
    if wanted is not None:
        _check_places(config, names, [name for name in wanted if name not in done])
    # those of torch last
    for name in sorted((name for name in names if name not in done), key=lambda name: name in TRAINING):
        _check_section(name, path)
    stages, before = [], ""
    for name in names:
        stage = done.get(name) or _make_stage(name, config, path, before)
        stages.append(stage)
        before = digest([before, stage.digests])
    return stages


def _with_new_names(config: dict[str, Any]) -> dict[str, Any]:
    """The file with the names that flags have now; the commands say so, each for its section."""
    return {
        name: with_new_names(name, section)[0] if isinstance(section, dict) else section
        for name, section in config.items()
    }


def _written(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The section of a command over what is common, whether or not the command has such flags."""
    return (config.get(COMMON) or {}) | (config[name] or {})


def _digest_of_section(name: str, config: dict[str, Any]) -> str:
    written = _written(name, config)
    return digest([name, written, state_of_files(written.get("path"))])


def _done_stages(config: dict[str, Any], names: Sequence[str]) -> dict[str, Stage]:
    """
    Stages that are done with the very sections of the file, the first ones in an unbroken row: those need no parser of
    their flags, for which TRL would be imported.
    """
    done, before = {}, ""
    for name in names:
        written = _written(name, config)
        folder, section = written.get("output_dir"), _digest_of_section(name, config)
        if name not in MAKES or not isinstance(folder, str):
            break
        digests = StageState(Path(folder), {}).digests_when_done(section)
        if digests is None or digests.get(BEFORE) != before:
            break
        done[name] = Stage(name, written, digests, section)
        before = digest([before, digests])
    return done


def _check_section(name: str, path: str) -> None:
    module = importlib.import_module(f".{name}", __package__)
    parser = module.make_parser(f"trl-sdpo {name}")
    arguments = parser.check_file(path)
    if hasattr(module, "check"):
        try:
            module.check(arguments)
        except (ValueError, OSError) as error:
            parser.error(str(error))


def _check_places(config: dict[str, Any], names: Sequence[str], running: Sequence[str]) -> None:
    # what a push puts on the Hub, its section says
    sections = {name: (config[name] or {}) if name == "push" else _written(name, config) for name in names}
    outputs = {
        name: flags["output_dir"] for name, flags in sections.items() if name in MAKES and flags.get("output_dir")
    }
    check_places({name: sections[name] for name in names if name in running}, outputs)


def _make_stage(name: str, config: dict[str, Any], path: str, before: str) -> Stage:
    # flags of `accelerate launch` say where a result is computed, and are no part of it
    parser = importlib.import_module(f".{name}", __package__).make_parser(f"trl-sdpo {name}")
    flags, _ = with_new_names(name, section_of(config, name, parser.flags_of_all, path)[0])
    digests = {flag: digest(value) for flag, value in flags.items() if flag in parser.flags}
    digests["the files of `path`"] = digest(state_of_files(flags.get("path")))
    digests[BEFORE] = before
    return Stage(name, flags, digests, _digest_of_section(name, config))


def _change(config: dict[str, Any], changes: Sequence[str], path: str) -> dict[str, Any]:
    for change in changes:
        name, equals, value = change.partition("=")
        section, dot, flag = name.partition(".")
        flag = OLD_NAMES.get(section, {}).get(flag, flag)
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
    for number, stage in enumerate(stages, start=1):
        words = _words_to_go_on(stage, overwrite)
        title = f"Stage {number} of {len(stages)}: {TITLES[stage.name]}"
        if words is None:
            logger.info("%s, done before: %s", title, stage.output)
            continue
        goes_on = ", goes on" if "--resume_from_checkpoint" in words else ""
        logger.info("%s%s%s", title, goes_on, "" if stage.output is None else f", into {stage.output}")
        if stage.output is not None and stage.name != "prepare":  # whose directory appears when it is whole
            stage.state.write(done=False)
        status = _start(stage.name, ["--config", path, *words, *_not_evaluated_twice(stage, stages)])
        if status in (INTERRUPTED, -signal.SIGINT):
            raise KeyboardInterrupt
        if status != 0:
            raise ChildProcessError(
                f"{stage.name} ended with status {status}. When its error is mended, the same command goes on from there."
            )
        if stage.output is not None:
            stage.state.write(done=True)
        if stage.name == "evaluate":
            _pass_on_metrics(stage, stages)
    if sentence := _what_next(stages):
        logger.info(sentence)


def _evaluated(stages: Sequence[Stage]) -> dict[str, str]:
    """The models that an evaluation of the file is of, by their directories, with the names they have in its report."""
    models = [model for stage in stages if stage.name == "evaluate" for model in stage.flags["model_name_or_path"]]
    named = [model.partition("=") if "=" in model else (Path(model).name, "=", model) for model in models]
    return {os.path.normpath(path): name for name, _, path in named}


def _not_evaluated_twice(stage: Stage, stages: Sequence[Stage]) -> list[str]:
    """Words for a training that the file evaluates later, unless it asks for an evaluation of its own."""
    asked = {"dataset_test_split", "eval_strategy", "eval_steps", "eval_on_start", "load_best_model_at_end"}
    if stage.name not in TRAINING or asked & stage.flags.keys() or stage.output is None:
        return []
    return ["--dataset_test_split", "none"] if os.path.normpath(stage.output) in _evaluated(stages) else []


def _pass_on_metrics(stage: Stage, stages: Sequence[Stage]) -> None:
    """Put the metrics of a report beside the models that were not evaluated in training, for their cards."""
    results = json.loads((stage.output / "results.json").read_text(encoding="utf-8"))
    ranking = next((section for section in results["sections"] if section["protocol"] == "ranking"), None)
    rows = {} if ranking is None else ranking["systems"]
    trained = [os.path.normpath(one.output) for one in stages if one.name in TRAINING and one.output is not None]
    for folder, name in _evaluated([stage]).items():
        if folder in trained and name in rows and not (kept := Path(folder) / "eval_results.json").exists():
            told = {key: value for key, value in rows[name].items() if re.fullmatch(_FOR_CARDS, key)}
            told["candidates"] = ranking["candidates"]
            write_text(kept, json.dumps({f"eval_{key}": value for key, value in told.items()}, indent=4) + "\n")


def _what_next(stages: Sequence[Stage]) -> str:
    """The next command to type, where a model has been trained."""
    models = [stage.output for stage in stages if stage.name in TRAINING and stage.output is not None]
    if not models or any(stage.name == "recommend" for stage in stages):
        return ""
    pages = [stage.output / "results.html" for stage in stages if stage.name == "evaluate" and stage.output]
    seen = f"The report is {pages[0]}. " if pages and pages[0].is_file() else ""
    return f'{seen}Next: trl-sdpo recommend --model_name_or_path {models[-1]} --history "TITLE" "TITLE"'


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
    return ["--overwrite"] if stage.name in MAKES else []


def _words_to_resume(stage: Stage) -> list[str]:
    from ..trainer.checkpoints import find_last_checkpoint

    if stage.name not in TRAINING:
        return ["--overwrite"] if stage.name == "evaluate" else []
    checkpoint, _ = find_last_checkpoint(stage.output, not stage.flags.get("save_only_model", False))
    return ["--overwrite"] if checkpoint is None else ["--resume_from_checkpoint", "True"]


def _start(name: str, words: list[str]) -> int:
    """The exit status of a command in a process of its own, which ends before this one does."""
    # the process finds this very package, wherever it is
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "trl_sdpo.cli", name, *words]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths, SPOKEN_FOR: RUN}) as process:
        try:
            with passing_on_termination():
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

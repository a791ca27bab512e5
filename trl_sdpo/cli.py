"""
The console script `trl-sdpo`.

A command is a module of `trl_sdpo.commands` with `make_parser(prog)`, which gives a [`CommandParser`], and `run(args)`,
which does the work. Nothing heavy is imported before the command is known.
"""

import argparse
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__


# What each command does, in one line.
COMMANDS = {
    "prepare": "Make a data set of multi-preference records from the files of interactions.",
    "sft": "Fine-tune a model on the chosen completions.",
    "train": "Train a model, or the adapter of sft, with Softmax-DPO.",
    "evaluate": "Evaluate models and other systems on the same records, with a report.",
    "recommend": "Recommend what comes after a history.",
    "demo": "Look at the lists of a recommender on a page of this machine.",
    "serve": "Serve a recommender over HTTP.",
    "run": "Run the commands of a YAML file, one after the other.",
    "push": "Push a model or a prepared data set to the Hugging Face Hub.",
}

BEGINS_ANEW, GOES_ON = "the same command begins anew", "the same command goes on"

# What a user can mend: one line says it, and no traceback.
_USER_ERRORS = (ValueError, OSError, ImportError)


def suggest(value: str, known: Sequence[str]) -> str:
    """A question that names the nearest of the known values, or nothing."""
    near = difflib.get_close_matches(value, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _make_parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:12}{text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="trl-sdpo",
        usage="trl-sdpo [-h] [--version] COMMAND ...",
        description="Softmax-DPO (S-DPO) for LLM recommenders.",
        epilog=f"commands:\n{commands}\n\n`trl-sdpo COMMAND --help` lists the flags of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trl-sdpo {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        argv (`Sequence[str]`, *optional*):
            The words behind `trl-sdpo`. By default those of the process.

    Returns:
        `int`: The exit status: 0, or 1 after an error of the data; errors of the words themselves exit with 2.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _make_parser()
    if not argv or argv[0].startswith("-"):
        parser.parse_args(argv)
        parser.error("which command? See --help.")
    name, *rest = argv
    if name not in COMMANDS:
        parser.error(f"{name!r} is no command.{suggest(name, list(COMMANDS))} See --help.")
    from ._terminal import quiet_libraries

    quiet_libraries()
    # Read when torch loads. OpenMP's threads otherwise wait in a loop, which takes the cores from whatever else runs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        command = importlib.import_module(f".commands.{name}", __package__)
    except KeyboardInterrupt:
        return _interrupted(BEGINS_ANEW)
    return run_command(
        command.make_parser, command.run, f"trl-sdpo {name}", rest, getattr(command, "how_it_goes_on", None)
    )


def run_command(
    make_parser: Callable,
    run: Callable,
    prog: str,
    words: Sequence[str],
    how_it_goes_on: Callable | None = None,
) -> int:
    """
    Run a command, with one line for an error that a user can mend and for an interruption.

    Args:
        make_parser (`Callable`), run (`Callable`):
            Of the command.
        prog (`str`):
            What the command is called.
        words (`Sequence[str]`):
            The words behind that.
        how_it_goes_on (`Callable`, *optional*):
            Takes the arguments, and says what the same command does after an interruption. By default it begins anew.

    Returns:
        `int`: The exit status: 0, 1 after an error, 130 after Ctrl-C.
    """
    from ._errors import RUN, SPOKEN_FOR, full_disk_sentence, in_flags, is_full_disk
    from ._terminal import log_to_terminal, quiet_libraries

    args, flags = None, ()
    quiet_libraries()  # a process of `accelerate launch` begins here

    def again() -> str:
        if os.environ.get(SPOKEN_FOR) == RUN:
            return GOES_ON
        return BEGINS_ANEW if args is None or how_it_goes_on is None else how_it_goes_on(args)

    try:
        parser = make_parser(prog)
        flags = getattr(parser, "flags", ())
        args = parser.parse_args(words)
        log_to_terminal(flags)
        _check_output(args)
        run(args)
    except KeyboardInterrupt:
        return _interrupted(again())
    except Exception as error:
        if is_full_disk(error):
            print(f"{prog}: error:", full_disk_sentence(_output_of(args)[1], again()), file=sys.stderr)
            return 1
        if not isinstance(error, _USER_ERRORS):
            raise
        text = in_flags(str(error), flags, loader="loader_options" in flags)
        print(f"{prog}: error:", text, *getattr(error, "__notes__", []), file=sys.stderr)
        return 1
    return 0


def _interrupted(again: str) -> int:
    from ._errors import INTERRUPTED, SPOKEN_FOR

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # no traceback of a second one
    if SPOKEN_FOR not in os.environ:
        print(f"\nInterrupted; {again}.", file=sys.stderr)
    return INTERRUPTED


def _check_output(args: Any) -> None:
    """Before anything is computed: what is to be a directory is no file."""
    name, place = _output_of(args)
    if place is not None:
        for one in (Path(place), *Path(place).parents):
            if one.is_file() and not (name == "output" and one == Path(place)):
                raise NotADirectoryError(f"--{name}: {one} is a file, and no directory. Pass another.")


def _output_of(args: Any) -> tuple[str, str | None]:
    """Where the arguments of a command say that it writes, and the flag that says so."""
    for holder in (args, getattr(args, "training_args", None)):
        for name in ("output_dir", "output"):
            if isinstance(getattr(holder, name, None), str):
                return name, getattr(holder, name)
    return "output_dir", None


if __name__ == "__main__":
    sys.exit(main())

"""What a command says of what ends it: errors in the words of its flags, an interruption, a full disk."""

import errno
import importlib.util
import os
import re
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


# Set by `trl-sdpo run` and by a launch: the process that started this one speaks for both
SPOKEN_FOR, RUN, LAUNCH = "TRL_SDPO_SPOKEN_FOR", "run", "launch"
INTERRUPTED = 130  # 128 and SIGINT, as a shell has it

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What torch and safetensors make of these
_FULL_WORDS = re.compile(
    rf"\(os error ({'|'.join(map(str, _FULL))})\)|PytorchStreamWriter failed|inline_container\.cc"
)

# Names of Python that are flags of another name, or calls in whose place a command has a flag
_OTHER_NAMES = {
    r"Pass processing_class\b": "Pass --tokenizer",
    r"\b\w+=\S+ \((--\w+)\)": r"\1",
    r"`?catalogue=DATASET_DIRECTORY`?": "--catalogue DATASET_DIRECTORY",
    r"\(prompt_style='history'\)": "(`trl-sdpo prepare --prompt_style history`)",
    r"`?template=get_template\(\.\.\.\)`?": "--template NAME",
    r"Make it with `trl_sdpo\.save_recommender_files\(.*?\)`, or copy it from the prepared data set with "
    r"`trl_sdpo\.copy_recommender_files\(.*?\)`": "Copy it from the directory that `trl-sdpo prepare` wrote",
    r"Load it with attn_implementation='sdpa' or 'eager', and in a dtype of its own": "Pass another --dtype, such as "
    "float32",
}
# Parameters that a command has under the name that they have in TRL's configurations, or in all commands
_RENAMED = {"batch_size": "per_device_eval_batch_size", "split": "dataset_split", "reference": "ref_model"}
# Options of the loaders, which a command has as `--loader_options name=value`
_LOADER_OPTIONS = (
    *("user", "item", "timestamp", "time_unit", "time_format", "rating", "title", "year", "movie_titles", "separator"),
    *("quote", "escape", "encoding", "items", "users", "events", "time", "read_only", "series", "merge_titles"),
    "attributes",
)
# A value as Python writes it
_VALUE = r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\([^)]*\)|\{[^}]*\}|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|\w+"
_OPTION = re.compile(
    r"(?P<quoted>(?<![\w=])'(?:[^'\\]|\\.)*'(?!\w))"  # a value of the data, which is not ours to change
    rf"|(?P<tick>`?)(?<![\w.-])(?P<name>[a-z]\w*)=(?P<value>{_VALUE})(?P=tick)"
    r"|`(?P<alone>[a-z]\w*)`"
)


@contextmanager
def passing_on_termination() -> Iterator[None]:
    """
    Let SIGTERM reach all processes that this one has started, as Ctrl-C does. `kill` and the schedulers of a cluster tell one
    process alone, and what it has started would train on, beside the next run.
    """

    def pass_on(*_: object) -> None:
        import psutil

        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_extra(module: str, extra: str, what: str) -> None:
    """
    Raise where a library of an extra is not installed.

    Args:
        module (`str`):
            What is imported.
        extra (`str`):
            The extra that has it.
        what (`str`):
            What needs it, as the sentence begins.

    Raises:
        ImportError: there is no such module.
    """
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{what} needs {module}, which is not installed: {install(extra)}")


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"python -m pip install 'trl-sdpo[{extra}]'"


def in_flags(message: str, flags: Collection[str], loader: bool = False) -> str:
    """
    A message of the package in the words of a command: `unknown_titles="keep"` becomes `--unknown_titles keep`.

    Args:
        message (`str`):
            What the error says. Quoted values, which come from the data, stay as they are.
        flags (`Collection[str]`):
            The names of the command's flags.
        loader (`bool`, *optional*, defaults to `False`):
            Whether the command has `--loader_options`.

    Returns:
        `str`: The message.

    Example:
        ```python
        >>> in_flags("min_history=0 is below 1. Pass at least 1.", ["min_history"])
        '--min_history 0 is below 1. Pass at least 1.'

        ```
    """
    for pattern, flag in _OTHER_NAMES.items():
        message = re.sub(pattern, flag, message)

    def replace(match: re.Match) -> str:
        name = match["name"] or match["alone"]
        if match["quoted"] is not None or name is None:
            return match[0]
        if name not in flags and "per_device_train_batch_size" not in flags:  # whose batches have other names
            name = _RENAMED.get(name, name)
        if name in flags:
            return f"--{name}" if match["alone"] else _with_value(name, match["value"])
        if loader and name in _LOADER_OPTIONS and match["value"] is not None:
            return f"--loader_options {name}={match['value']}"
        return match[0]

    return _OPTION.sub(replace, message)


def _with_value(name: str, value: str) -> str:
    if value == "None":
        return f"no --{name}"
    if value == "True":
        return f"--{name}"
    if value[0] in "([":
        value = value[1:-1].replace(",", "").replace("'", "")
    elif re.fullmatch(r"['\"][\w.:,/@-]+['\"]", value):
        value = value[1:-1]
    return f"--{name} {value}"


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, says that a file could not grow."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if not isinstance(error, OSError | ValueError) and _FULL_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def full_disk_sentence(folder: str | None, how_to_go_on: str) -> str:
    """What there is to do about a full disk; `folder` is where the command writes."""
    where = Path(folder or ".").absolute()
    where = next(one for one in (where, *where.parents) if one.is_dir())
    free = os.statvfs(where)
    size = free.f_bavail * free.f_frsize / 1e6
    room = f"{size:,.0f} MB" if size < 10_000 else f"{size / 1000:,.0f} GB"
    return (
        f"the disk is full, or a quota or a limit on the size of files is reached ({room} are free at {folder or where}). "
        f"Make room; {how_to_go_on}. A checkpoint that was half written is recognised and passed over."
    )


def how_training_goes_on(output_dir: str | None, resumes: bool) -> str:
    """
    What a second start of a training command does.

    Args:
        output_dir (`str`, *optional*):
            Where it trains.
        resumes (`bool`):
            Whether the command has `--resume_from_checkpoint` already.
    """
    states = Path(output_dir or ".").glob("checkpoint-*/trainer_state.json")  # which is written last
    if not output_dir or not any(states):
        return "the same command begins anew"
    return "the same command goes on" if resumes else "the same command with --resume_from_checkpoint True goes on"

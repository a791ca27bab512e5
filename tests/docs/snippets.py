"""Fenced blocks of Markdown pages: found, and run or checked."""

import argparse
import ast
import doctest
import importlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from exceptions import GIVEN, NOT_RUN, NotRun
from markdown_it import MarkdownIt

from trl_sdpo import cli


PYTHON = ("python", "py", "pycon")
SHELL = ("bash", "sh", "shell", "console")
PARSED = {"yaml": yaml.safe_load, "yml": yaml.safe_load, "json": json.loads}
# Nothing of these runs. A language that is in none of these tables is an error.
TEXT = ("", "text", "diff", "csv", "jsonl", "bibtex", "markdown", "math", "html")

# "# mine.yaml" in the first line of a block: the block is that file, for the blocks that follow.
_FILE_NAME = re.compile(r"^# (?P<name>[\w./-]+\.(?:yaml|yml|json|jsonl|csv|py|toml))\b")
_COMMENT = re.compile(r"""(?P<quoted>'[^']*'|"[^"]*")|(?:^|(?<=\s))\#.*""")
_ASSIGNMENT = re.compile(r"^(export )?(?P<name>\w+)=(\$\(.*\))?\S*$")


@dataclass
class Block:
    """
    A fenced block.

    Args:
        page (`str`):
            Name of the page.
        line (`int`):
            Its line in the page.
        language (`str`):
            The first word behind the fence.
        text (`str`):
            What is in it, without the indentation of a list around it.
    """

    page: str
    line: int
    language: str
    text: str


class SnippetError(AssertionError):
    """A block that does not run, or not parse."""


def blocks_of(path: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    tokens = MarkdownIt("commonmark").parse(path.read_text(encoding="utf-8"))
    fences = [token for token in tokens if token.type == "fence"]
    return [Block(path.name, token.map[0] + 1, (token.info.split() or [""])[0], token.content) for token in fences]


def commands_of(text: str) -> list[str]:
    """The commands of a shell block: lines that end in a backslash joined, comments gone, `&&` parted."""
    text = re.sub(r"\\\n\s*", "", text)
    prompt = any(line.startswith("$ ") for line in text.splitlines())
    commands = []
    for line in text.splitlines():
        if prompt:  # a session: what has no prompt is output
            line = line.removeprefix("$ ") if line.startswith("$ ") else ""
        line = _COMMENT.sub(lambda match: match["quoted"] or "", line).strip()
        commands += [part for part in line.split(" && ") if part]
    return commands


class Parsed(Exception):  # noqa: N818 - a result, not an error
    """The words of a command are known to be right."""


@contextmanager
def parsing_only():
    """Let a program parse its words, and end it there."""
    parse = argparse.ArgumentParser.parse_known_args

    def parse_known_args(self, args=None, namespace=None):
        _, unknown = parse(self, args, namespace)
        if unknown:
            raise SnippetError(f"{unknown[0]!r} is no flag of {self.prog}")
        raise Parsed

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", parse_known_args):
        yield


@contextmanager
def as_in_a_process_of_its_own():
    """What accelerate keeps in its classes, the precision for one, is that of one program."""
    kept = [(cls._shared_state, dict(cls._shared_state)) for cls in (PartialState, AcceleratorState, GradientState)]
    try:
        for state, _ in kept:
            state.clear()
        yield
    finally:
        for state, values in kept:
            state.clear()
            state.update(values)


@dataclass
class Page:
    """
    Runs the blocks of a page in the working directory.

    Args:
        name (`str`):
            Name of the page.
        clone (`Path`):
            Root of the repository.
    """

    name: str
    clone: Path
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    variables: dict[str, str] = field(default_factory=dict)
    exceptions_used: set[NotRun] = field(default_factory=set)

    def __post_init__(self):
        exec(compile(GIVEN.get(self.name, ""), f"GIVEN of {self.name}", "exec"), self.namespace)

    def run(self, block: Block) -> None:
        """
        Run or check a block.

        Raises:
            SnippetError: it does neither run nor stand in the table of exceptions.
        """
        try:
            self._run(block)
        except Exception as error:
            raise SnippetError(
                f"{block.page}, line {block.line}: this block fails with {type(error).__name__}: {error}\n\n"
                f"{block.text}\nMake it run: tests/docs/page_files.py has the files that a page finds, GIVEN in "
                "tests/docs/exceptions.py the names that its text takes as given. If it cannot run in a test (a GPU, "
                "minutes, a network), add a line with the reason to NOT_RUN there."
            ) from error

    def _run(self, block: Block) -> None:
        if match := _FILE_NAME.match(block.text):
            Path(match["name"]).parent.mkdir(parents=True, exist_ok=True)
            Path(match["name"]).write_text(block.text)
        if block.language in PYTHON:
            self._python(block)
        elif block.language in SHELL:
            for command in commands_of(block.text):
                self._command(command)
        elif block.language in PARSED:
            PARSED[block.language](block.text)
        elif block.language not in TEXT and not block.language.startswith("{"):  # a directive of MyST
            raise SnippetError(f"{block.language!r} is in none of the tables of tests/docs/snippets.py")

    def _exception(self, text: str) -> NotRun | None:
        for one in NOT_RUN:
            if one.page == self.name and text.startswith(one.starts_with):
                self.exceptions_used.add(one)
                return one
        return None

    def _python(self, block: Block) -> None:
        filename = f"{block.page}, line {block.line}"
        if block.text.lstrip().startswith(">>>"):
            self._session(block, filename)
            return
        # the lines of the page, for tracebacks
        code = "\n" * block.line + block.text
        if self._exception(block.text):
            imports = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), filename, "exec"), dict(self.namespace))
        else:
            exec(compile(code, filename, "exec"), self.namespace)

    def _session(self, block: Block, filename: str) -> None:
        test = doctest.DocTestParser().get_doctest(block.text, self.namespace, filename, filename, block.line)
        said = []
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        runner.run(test, out=said.append, clear_globs=False)
        if runner.failures:
            raise SnippetError("".join(said))
        self.namespace.update(test.globs)

    def _command(self, command: str) -> None:
        if re.match(r"(python3? -m )?pip install ", command):
            self._check_install(command)
        elif re.match(r"(python3? -m )?(pytest|sphinx)\b", command):
            self._check_paths(command)  # the tests that are running, and what test_build.py builds
        elif command.startswith("cd "):
            os.chdir(shlex.split(command)[1])
        elif assignment := _ASSIGNMENT.match(command):
            name = assignment["name"]
            self.variables[name] = self._shell(f'{command}\nprintf %s "${name}"')
        elif self._exception(command):
            self._check_words(command)
        elif (program := self._program(command)) is not None:
            words = self._words(command)[program.words :]
            if "..." in words:
                raise SnippetError("`...` stands for words that a reader has to guess: write them out")
            with as_in_a_process_of_its_own(), mock.patch.dict(os.environ, self.variables):
                program.run(words)
        else:
            self._shell(command)

    def _shell(self, command: str) -> str:
        # `python` is the one that runs the tests, and what it imports is this clone
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(self.clone), **self.variables}
        words = ["bash", "-ec", command]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise SnippetError(
                f"exit status {done.returncode} of {command}:\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
            )
        return done.stdout

    def _words(self, command: str) -> list[str]:
        if "$" in command:
            return self._shell(f"printf '%s\\0' {command}").split("\0")[:-1]
        return shlex.split(command)

    def _program(self, command: str) -> "Program | None":
        """What runs in this process, where the libraries are imported already; pipes and the like are bash's."""
        if re.search(r"[|<>;`]|\$\(", command):
            return None
        if command.startswith("trl-sdpo "):
            return Program(1, _run_cli)
        if match := re.match(r"python3? (?P<script>\S+\.py)\b", command):
            return Program(2, lambda words: _run_script(match["script"], words))
        return None

    def _check_words(self, command: str) -> None:
        """The words of a command that does not run are parsed, those of its launcher, too."""
        words = [word for word in self._words(command) if word != "..."]
        while "=" in words[0]:  # NAME=value ahead of the program
            words = words[1:]
        self._check_paths(" ".join(words))
        launched = next((index for index, word in enumerate(words) if word.endswith(".py")), None)
        if words[0] == "torchrun":
            importlib.import_module("torch.distributed.run").get_args_parser().parse_args(words[1:])
        elif words[:2] == ["accelerate", "launch"]:
            importlib.import_module("accelerate.commands.launch").launch_command_parser().parse_args(words[2:])
        elif words[0] == "trl-sdpo":
            launched = None
            _parse_only(_run_cli, words[1:])
        elif words[:2] == ["python", "-m"]:
            _parse_only(lambda rest: _run_module(words[2], rest), words[3:])
        elif words[0] not in ("python", "python3") or launched is None:
            raise SnippetError(f"nothing here knows how to check the words of {words[0]!r}")
        if launched is not None:
            _parse_only(lambda rest: _run_script(words[launched], rest), words[launched + 1 :])

    def _check_install(self, command: str) -> None:
        """Extras, constraints and clones that a line asks pip for are there."""
        words = shlex.split(command)
        for flag, value in zip(words, [*words[1:], ""], strict=True):
            if flag in ("-c", "-r", "-e") and not Path(value.partition("[")[0]).exists():
                raise SnippetError(f"{value} is not in a clone")
        setup = (self.clone / "setup.cfg").read_text(encoding="utf-8")
        for extras in re.findall(r"(?:trl-sdpo|\.)\[(.*?)\]", command):
            for extra in extras.split(","):
                if not re.search(rf"^{extra} =$", setup.partition("[options.extras_require]")[2], re.MULTILINE):
                    raise SnippetError(f"setup.cfg has no extra {extra!r}")

    def _check_paths(self, command: str) -> None:
        for word in command.split():
            path = word.partition("::")[0].rpartition("=")[2]
            if path.endswith((".py", ".yaml", ".yml", ".txt", ".cfg")) and not Path(path).exists():
                raise SnippetError(f"{path} is not there")


@dataclass
class Program:
    """How many words of a command name a program, and what runs it on the others."""

    words: int
    run: Callable[[list[str]], None]


def _run_cli(words: list[str]) -> None:
    try:
        status = cli.main(words)
    except SystemExit as stop:
        status = stop.code
    if status:
        raise SnippetError(f"exit status {status}")


def _run_script(script: str, words: list[str]) -> None:
    path = [str(Path(script).resolve().parent), *sys.path]
    with mock.patch.object(sys, "argv", [script, *words]), mock.patch.object(sys, "path", path):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                raise SnippetError(f"exit status {stop.code}") from stop


def _run_module(name: str, words: list[str]) -> None:
    with mock.patch.object(sys, "argv", [name, *words]), mock.patch.object(sys, "path", [str(Path.cwd()), *sys.path]):
        runpy.run_module(name, run_name="__main__")


def _parse_only(run: Callable[[list[str]], None], words: list[str]) -> None:
    with parsing_only():
        try:
            run(words)
        except Parsed:
            return
    raise SnippetError("the program ended without parsing its words")

"""`trl-sdpo push DIR REPO_ID`: a model or a prepared data set to the Hugging Face Hub, privately unless told otherwise."""

import dataclasses
from pathlib import Path
from typing import Any

from ._parser import CommandParser


TYPES = ("auto", "model", "dataset")


@dataclasses.dataclass
class PushArguments:
    """What to push, and where to."""

    directory: str | None = dataclasses.field(
        default=None, metadata={"help": "Directory of the model or data set. Needed."}
    )
    repo_id: str | None = dataclasses.field(default=None, metadata={"help": "Repository, as user/name. Needed."})
    type: str = dataclasses.field(
        default="auto", metadata={"help": "What it is. Default: what the directory holds.", "choices": TYPES}
    )
    public: bool = dataclasses.field(default=False, metadata={"help": "Make a public repository. Default: private."})
    redistribution_permitted: bool = dataclasses.field(
        default=False,
        metadata={"help": "State that you may pass on the data, also where the licence of their source forbids it."},
    )
    pseudonymise: bool = dataclasses.field(
        default=False,
        metadata={"help": "Replace the ids of users of a data set by ones that cannot be turned back."},
    )
    timeout: float = dataclasses.field(
        default=120.0,
        metadata={"help": "Seconds of silence of the Hub, after which a request is repeated. Default: 120."},
    )
    revision: str | None = dataclasses.field(default=None, metadata={"help": "Branch. Default: the main one."})
    commit_message: str | None = dataclasses.field(default=None, metadata={"help": "Message of the commit."})


class _PushParser(CommandParser):
    def parse_args(self, args: list[str]) -> Any:
        """As the parent; the directory and the repository may stand without their flags, and must be there."""
        plain = 0
        while plain < min(2, len(args)) and not args[plain].startswith("-"):
            plain += 1
        named = [
            word
            for flag, value in zip(("--directory", "--repo_id"), args[:plain], strict=False)
            for word in (flag, value)
        ]
        arguments = super().parse_args([*named, *args[plain:]])
        for name in ("directory", "repo_id"):
            if getattr(arguments, name) is None:
                self.error(f"--{name} is missing. Usage: {self.usage}")
        return arguments


def make_parser(prog: str) -> CommandParser:
    """The parser of the command."""
    return _PushParser(PushArguments, prog=prog, usage=f"{prog} DIR REPO_ID [flags]", description=__doc__)


def run(arguments: Any) -> None:
    """Push the directory, and say where it is."""
    folder = Path(arguments.directory)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such directory. Pass that of a model or of a prepared data set.")
    from huggingface_hub.utils import get_session

    from ..hub.pushes import push_dataset, push_model

    kind = arguments.type
    if kind == "auto":
        kind = "dataset" if any((folder / "data").glob("*.parquet")) else "model"
    # Without it, `huggingface_hub` waits without an end for a Hub that has taken a request
    get_session().timeout = arguments.timeout
    options = {"commit_message": arguments.commit_message} if arguments.commit_message else {}
    if arguments.pseudonymise:
        if kind != "dataset":
            raise ValueError(f"--pseudonymise: {folder} is a model, which holds no ids of users. Leave it out.")
        options["pseudonymise"] = True
    push = push_dataset if kind == "dataset" else push_model
    info = push(
        folder,
        arguments.repo_id,
        private=not arguments.public,
        redistribution_permitted=arguments.redistribution_permitted,
        revision=arguments.revision,
        **options,
    )
    print(f"{folder} is at {info.repo_url.url}, commit {info.oid[:12]}.")

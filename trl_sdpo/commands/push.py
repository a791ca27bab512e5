"""`trl-sdpo push DIR REPO_ID`: a model or a prepared data set to the Hugging Face Hub, privately unless told otherwise."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._config_file import flag_of_folder, old_name_sentence
from ._parser import CommandParser


TYPES = ("auto", "model", "dataset")


@dataclasses.dataclass
class PushArguments:
    """What to push, and where to."""

    model_name_or_path: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Directory of the model. This or --dataset_name is needed, or DIR without a flag."},
    )
    dataset_name: str | None = dataclasses.field(
        default=None, metadata={"help": "Directory of the prepared data set."}
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
        flags = [f"--{flag_of_folder(args[0])}", "--repo_id"] if plain else []
        named = [word for pair in zip(flags, args[:plain], strict=False) for word in pair]
        arguments = super().parse_args([*named, *args[plain:]])
        if arguments.model_name_or_path is None and arguments.dataset_name is None:
            self.error(f"--model_name_or_path is missing, and --dataset_name too. Usage: {self.usage}")
        if arguments.model_name_or_path is not None and arguments.dataset_name is not None:
            self.error("--model_name_or_path and --dataset_name: push one, then the other.")
        if arguments.repo_id is None:
            self.error(f"--repo_id is missing. Usage: {self.usage}")
        return arguments

    def _with_new_names(self, words: Sequence[str]) -> list[str]:
        """As the parent; the flag that was for both is that of what the directory holds."""
        words = list(words)
        if "--directory" in words[:-1]:
            flag = f"--{flag_of_folder(words[words.index('--directory') + 1])}"
            self._say([old_name_sentence("--directory", flag)])
            words[words.index("--directory")] = flag
        return super()._with_new_names(words)

    @property
    def flags_of_all(self) -> list[str]:
        """As the parent, less what is pushed: a file trains on the data set in `common`, and pushes what the section names."""
        return [name for name in self.flags if name not in ("model_name_or_path", "dataset_name")]


def make_parser(prog: str) -> CommandParser:
    """The parser of the command."""
    return _PushParser(
        PushArguments,
        prog=prog,
        usage=f"{prog} DIR REPO_ID [flags]",
        description="Push a model or a prepared data set to the Hugging Face Hub, privately unless told otherwise.",
    )


def run(arguments: Any) -> None:
    """Push the directory, and say where it is."""
    name = arguments.model_name_or_path or arguments.dataset_name
    folder, flag = Path(name), "model_name_or_path" if arguments.model_name_or_path else "dataset_name"
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such directory. Pass that of a model or of a prepared data set.")
    from huggingface_hub.utils import get_session

    from ..hub.privacy import personal_columns
    from ..hub.pushes import push_dataset, push_model

    kind = arguments.type
    if kind == "auto":
        kind = "model" if flag == "model_name_or_path" else "dataset"
        if kind == "model" and flag_of_folder(name) != flag:
            raise ValueError(f"--{flag}: {folder} holds a data set. Pass it as --dataset_name.")
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
    print(f"{folder} is at {info.repo_url.url}, commit {info.oid[:12]}{'' if arguments.public else ', private'}.")
    if kind == "dataset" and not arguments.pseudonymise and (told := personal_columns(folder)):
        print(
            f"Its records tell of people: {', '.join(told)}. --pseudonymise puts ids that cannot be turned back there."
        )

"""`trl-sdpo prepare SOURCE --output_dir DIR`: from the files of a publisher to records on disk."""

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import Any

from ..cli import suggest
from ..recsys.interactions.readers.paths import is_hub_name, nearest_file
from ..recsys.interactions.registry import loader_options, sources_by_loader
from ..recsys.prompts.templates import PromptTemplate
from ..recsys.records.compact import AUTO, FORMS
from ..recsys.records.config import DEFAULT, RECIPES, RecordConfig
from ..recsys.records.out_of_core.engine import ENGINES
from ..recsys.records.preparation import prepare
from ..recsys.records.recommender_files import find_file
from ..recsys.records.splits import SPLITS
from ._parser import CommandParser, error_of, flat_fields


_SOURCES = "such as movielens-1m, goodreads-poetry, lastfm, recbole or table"


@dataclasses.dataclass
class _Command:
    source: str | None = dataclasses.field(default=None, metadata={"help": f"The source by name, {_SOURCES}."})
    output_dir: str | None = dataclasses.field(default=None, metadata={"help": "Directory to make. Needed."})
    path: str | None = dataclasses.field(
        default=None, metadata={"help": "Files of the source. Default: downloaded once and cached."}
    )
    recipe: str = dataclasses.field(
        default=DEFAULT, metadata={"help": "'s-dpo' repeats the published records.", "choices": RECIPES}
    )
    tokenizer: str | None = dataclasses.field(
        default=None, metadata={"help": "Name or directory of a tokenizer, to count tokens with and for --max_length."}
    )
    num_workers: int | None = dataclasses.field(
        default=None, metadata={"help": "Threads. Default: the cores, 4 at most."}
    )
    overwrite: bool = dataclasses.field(default=False, metadata={"help": "Replace the data set in --output_dir."})
    form: str = dataclasses.field(
        default=AUTO,
        metadata={
            "help": "Records on disk as 'text', or as 'ids' of catalogue.parquet, which the commands render. By default "
            "text, unless it would take more than a gibibyte.",
            "choices": FORMS,
        },
    )
    engine: str = dataclasses.field(
        default=AUTO,
        metadata={
            "help": "Make the records in 'memory', or of a few users at a time from files on the 'disk', which goes on where "
            "it was killed. By default in memory, unless the events would take more than half of it.",
            "choices": ENGINES,
        },
    )
    loader_options: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "Options of the loader of the source, as name=value."}
    )


PrepareArguments = dataclasses.make_dataclass("PrepareArguments", [*flat_fields(RecordConfig)], bases=(_Command,))


class _PrepareParser(CommandParser):
    def parse_args(self, args: list[str]) -> Any:
        """As the parent; the source may stand without its flag, and must be there, as the output."""
        if args and not args[0].startswith("-"):
            args = ["--source", *args]
        arguments = super().parse_args(args)
        for name in ("source", "output_dir"):
            if getattr(arguments, name) is None:
                self.error(f"--{name} is missing. Usage: {self.usage}")
        return arguments


def make_parser(prog: str) -> CommandParser:
    """The parser of the command."""
    return _PrepareParser(
        PrepareArguments,
        prog=prog,
        usage=f"{prog} SOURCE --output_dir DIR [flags]",
        description="Make a data set of multi-preference records from the files of a publisher, or from a table of one's "
        "own.",
        epilog=_sources_text(),
    )


def _sources_text() -> str:
    """The sources, one line for each loader, with its options."""
    lines = ["sources, and the --loader_options of each:"]
    for names, options in sources_by_loader():
        if len(names) > 4:  # the genres and categories of one publisher
            names = [*names[:3], f"... ({len(names)} in all)"]
        text = textwrap.fill(", ".join(names), 96, initial_indent="  ", subsequent_indent="  ")
        said = textwrap.fill(", ".join(options) or "none", 96, initial_indent="      ", subsequent_indent="      ")
        lines += [text, said]
    return "\n".join(lines)


def check(arguments: Any) -> dict[str, Any]:
    """
    The fields of [`RecordConfig`] that were given, when they, the source and the options of its loader are right: all
    that can be told without reading the files.
    """
    known, options = loader_options(arguments.source), _loader_options(arguments)
    for name in options:
        if name not in known:
            raise ValueError(
                f"--loader_options: {arguments.source} has no option {name!r}.{suggest(name, known)} It has "
                f"{', '.join(known) or 'none'}."
            )
    path = arguments.path
    if path is not None and not Path(path).exists() and not (arguments.source == "table" and is_hub_name(path)):
        raise FileNotFoundError(f"--path: there is no {path!r} here.{nearest_file(path)} Correct it.")
    if arguments.tokenizer is not None and not Path(arguments.tokenizer).is_dir():
        with error_of("--tokenizer"):
            find_file(arguments.tokenizer, "tokenizer_config.json")
    given = {one.name: getattr(arguments, one.name) for one in dataclasses.fields(RecordConfig)}
    given = {name: value for name, value in given.items() if value is not None}
    if "ratios" in given:
        given["ratios"] = tuple(given["ratios"])
    if given.get("template", "").endswith(".json"):
        given["template"] = _read_template(Path(given["template"]))
    RecordConfig(**given)
    return given


def run(arguments: Any) -> None:
    """Make the data set, and say where it is and what its lists tell."""
    given = check(arguments)
    report = prepare(
        arguments.source,
        arguments.output_dir,
        path=arguments.path,
        recipe=arguments.recipe,
        processing_class=arguments.tokenizer,
        num_workers=arguments.num_workers,
        overwrite=arguments.overwrite,
        form=arguments.form,
        engine=arguments.engine,
        loader_options=_loader_options(arguments),
        **given,
    )
    counts = ", ".join(f"{report[split]['records']:,} {split}" for split in SPLITS if split in report)
    probe = report["leak_probe"]
    print(
        f"{arguments.output_dir}: {counts} records, from {report['events']:,} events of {report['users']:,} users with "
        f"{report['items']:,} items. report.md there says what was dropped."
    )
    print(
        f"Leak probe, hr@1 without the history: {probe['hr_at_1']:.3f} (95% interval {probe['ci'][0]:.3f} to "
        f"{probe['ci'][1]:.3f}), chance {probe['chance']:.3f}, popularity {probe['popularity']:.3f}, n = {probe['n']:,}."
    )


def _read_template(path: Path) -> PromptTemplate:
    try:
        return PromptTemplate(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path}: not the fields of a template ({error}): name, style, text, ...") from error


def _loader_options(arguments: Any) -> dict[str, str]:
    return dict(_name_and_value(text) for text in arguments.loader_options)


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--loader_options: {text!r} is not name=value.")
    return name, value

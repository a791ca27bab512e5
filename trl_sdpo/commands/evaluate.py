"""`trl-sdpo evaluate --dataset DIR --model A --model B --output DIR`: several systems on the same records."""

import dataclasses
import gc
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._parser import CommandParser, FlagHelpFormatter


if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from ..recommender.recommender import Recommender
    from ..recsys.records.recommender_files import Catalogue, RecommenderConfig

logger = logging.getLogger(__name__)


def _help(text: str, **more) -> dict:
    return {"help": text, **more}


# A flag that is given again adds to what it had.
_AGAIN = {"action": "extend", "metavar": "TEXT"}


@dataclasses.dataclass
class EvaluateArguments:
    """Flags of `trl-sdpo evaluate`."""

    dataset: str | None = dataclasses.field(
        default=None, metadata=_help("Records: a directory that prepare wrote, a file, or a name on the Hub. Needed.")
    )
    split: str = dataclasses.field(default="test", metadata=_help("Split to evaluate on."))
    model: list[str] = dataclasses.field(
        default_factory=list,
        metadata=_help(
            "Directory or Hub id of a model or an adapter, or NAME=DIRECTORY. May be given again.", **_AGAIN
        ),
    )
    scores: list[str] = dataclasses.field(
        default_factory=list,
        metadata=_help(
            "Scores of any other system: NAME=FILE.parquet, a row per record. May be given again.", **_AGAIN
        ),
    )
    reference: str | None = dataclasses.field(
        default=None, metadata=_help("Model before S-DPO: also rank by the implicit reward against it.")
    )
    protocol: list[str] = dataclasses.field(
        default_factory=lambda: ["ranking"],
        metadata=_help(
            "'ranking' (candidates by likelihood), 'generation' (written answers), 'catalogue' (all items)."
        ),
    )
    output: str | None = dataclasses.field(
        default=None, metadata=_help("Directory for results.json, .md and .html and for the scores. Needed.")
    )
    max_records: int | None = dataclasses.field(default=None, metadata=_help("Records at most, drawn by the seed."))
    seed: int = dataclasses.field(default=0, metadata=_help("Seed of draws, intervals and tests."))
    per_token: bool = dataclasses.field(
        default=False, metadata=_help("Rank by likelihood per token, which takes away the advantage of short titles.")
    )
    top_k: int = dataclasses.field(default=10, metadata=_help("Length of the lists from the whole catalogue."))
    facts: list[str] = dataclasses.field(
        default_factory=list,
        metadata=_help("What is known of a system, for plots: 'NAME:num_negatives=15,beta=1'.", **_AGAIN),
    )
    num_examples: int = dataclasses.field(default=5, metadata=_help("Hits and misses to show."))
    batch_size: int = dataclasses.field(default=16, metadata=_help("Records in a batch."))
    device: str | None = dataclasses.field(default=None, metadata=_help("Default: an accelerator, else the CPU."))
    dtype: str = dataclasses.field(default="auto", metadata=_help("Type of the weights. Default: as saved."))


class _EvaluateParser(CommandParser):
    def parse_args(self, args: list[str]) -> Any:
        """As the parent; what is needed must be there."""
        arguments = super().parse_args(args)
        for name in ("dataset", "output"):
            if getattr(arguments, name) is None:
                self.error(f"--{name} is missing. Usage: {self.usage}")
        if not arguments.model and not arguments.scores:
            self.error(f"--model is missing, and --scores too. Usage: {self.usage}")
        for name in arguments.protocol:
            if name not in ("ranking", "generation", "catalogue"):
                self.error(f"--protocol: {name!r} is none of 'ranking', 'generation', 'catalogue'.")
        for name in ("max_records", "top_k", "batch_size"):
            value = getattr(arguments, name)
            if value is not None and value < 1:
                self.error(f"--{name}: {value} is below 1.")
        return arguments


def make_parser(prog: str) -> CommandParser:
    """The parser of the command."""
    return _EvaluateParser(
        EvaluateArguments,
        prog=prog,
        formatter_class=FlagHelpFormatter,
        usage=f"{prog} --dataset DIR --model NAME=DIR [--model ...] --output DIR [flags]",
        description="Evaluate models, and scores of other systems, on the same records: metrics with chance and "
        "intervals, paired tests, what is easy and what is hard, and examples, in one page.",
    )


@dataclasses.dataclass
class _Task:
    """What is evaluated, and what it is done with."""

    args: EvaluateArguments
    records: "Dataset"
    rows: "np.ndarray | None"
    total: int
    train: "Dataset | None"
    config: "RecommenderConfig | None"
    catalogue: "Catalogue | None"


def run(args: EvaluateArguments) -> None:
    """Evaluate, write the report and print its tables."""
    from ..evaluation.comparison import evaluate_answers, evaluate_catalogue, evaluate_ranking, probe_records
    from ..evaluation.report import collect_results, results_text, write_report

    models = _named(args.model, "--model")
    files = _named(args.scores, "--scores")
    twice = sorted(models.keys() & files.keys())
    if twice:
        raise ValueError(f"{twice[0]!r} is the name of a model and of scores. Pass NAME=... with another name.")
    facts = {name: _facts_of(path) for name, path in models.items()}
    for name, values in _given_facts(args.facts, [*models, *files]).items():
        facts[name] = facts.get(name, {}) | values
    task = _load(args)
    found = _ask_models(task, models)
    found["ranking"] = _read_scores(task, files) | found["ranking"]
    options = {"seed": args.seed, "num_examples": args.num_examples, "train": task.train}
    sections = []
    if found["ranking"]:
        sections.append(evaluate_ranking(found["ranking"], task.records, catalogue=task.catalogue, **options))
    if found["generation"]:
        sections.append(evaluate_answers(found["generation"], task.records, catalogue=task.catalogue, **options))
    if found["catalogue"]:
        ks = tuple(k for k in (1, 3, 5, 10, args.top_k) if k <= args.top_k)
        ks = tuple(dict.fromkeys(sorted(ks)))
        sections.append(evaluate_catalogue(found["catalogue"], task.records, task.catalogue, ks=ks, **options))
    results = collect_results(
        sections,
        dataset={
            "name": _public(args.dataset),
            "split": args.split,
            "records": len(task.records),
            "of": task.total,
            "source": None if task.config is None else task.config.source,
        },
        settings=_settings(args),
        leak_probe=probe_records(task.records, task.train, args.seed),
        facts=facts,
    )
    paths = write_report(results, args.output)
    print(f"\n{results_text(results)}")
    print(f"{args.output}: {', '.join(path.name for path in paths)}.")


def _named(texts: list[str], flag: str) -> dict[str, str]:
    """Systems by name: what stands before the first `=`, or else the last part of the path."""
    named = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = Path(text).name, text
        if not name or not path:
            raise ValueError(f"{flag}: {text!r} is not NAME=PATH.")
        if name in named:
            raise ValueError(f"{flag}: two systems are called {name!r}. Pass NAME=PATH with other names.")
        named[name] = path
    return named


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _facts_of(model: str) -> dict[str, Any]:
    """What the examples, in `stage.json`, and `trl-sdpo train` leave beside a model of how it was trained."""
    settings = _read_object(Path(model) / "stage.json").get("settings")
    if not isinstance(settings, dict):
        settings = _read_object(Path(model) / "train_results.json")
    return {name: settings[name] for name in ("num_negatives", "beta") if isinstance(settings.get(name), int | float)}


def _given_facts(texts: list[str], systems: list[str]) -> dict[str, dict[str, Any]]:
    from ..evaluation.report import FACTS

    facts: dict[str, dict[str, Any]] = {}
    for text in texts:
        system, _, rest = text.rpartition(":")
        if system not in systems:
            raise ValueError(f"--facts: {text!r}: {system!r} is none of the systems {systems}.")
        for pair in rest.split(","):
            name, equals, value = pair.partition("=")
            if not equals or name not in FACTS:
                raise ValueError(f"--facts: {text!r}: {pair!r} is not NAME=VALUE with a name of {list(FACTS)}.")
            try:
                value = value if name == "stage" else float(value)
            except ValueError:
                raise ValueError(f"--facts: {text!r}: {value!r} is no number.") from None
            facts.setdefault(system, {})[name] = value
    return facts


def _load(args: EvaluateArguments) -> _Task:
    import numpy as np

    from ..pipeline.datasets import load_records, select_split
    from ..recsys.records.recommender_files import RecommenderFiles, load_recommender_files

    splits = load_records(args.dataset)
    records = select_split(splits, args.split, "--split", args.dataset)
    total, rows = len(records), None
    if args.max_records is not None and args.max_records < total:
        rows = np.sort(np.random.default_rng(args.seed).choice(total, args.max_records, replace=False))
        records = records.select(rows)
    folder = Path(args.dataset)
    files = load_recommender_files(folder) if folder.is_dir() else RecommenderFiles()
    train = splits["train"] if "train" in splits and args.split != "train" else None
    return _Task(args, records, rows, total, train, files.config, files.catalogue)


def _ask_models(task: _Task, models: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Scores, answers and lists of every model, by protocol; one model after the other is in memory."""
    args, found = task.args, {"ranking": {}, "generation": {}, "catalogue": {}}
    reference = _reference_scores(task, models)
    for name, path in models.items():
        recommender = _recommender(task, path)
        task.catalogue = task.catalogue or recommender.catalogue
        if "ranking" in args.protocol:
            is_reference = args.reference in (name, path)
            scores = reference if is_reference and reference is not None else _log_probs(task, recommender, name)
            _keep(task, name, scores)
            found["ranking"][name] = scores
            if reference is not None and not is_reference:
                from ..scoring.log_probs import implicit_rewards

                found["ranking"][f"{name} (implicit reward)"] = implicit_rewards(scores, reference)
        if "generation" in args.protocol:
            found["generation"][name] = recommender.answers(task.records, args.batch_size, desc=f"Generating, {name}")
        if "catalogue" in args.protocol:
            found["catalogue"][name] = _lists(task, recommender)
        del recommender
        gc.collect()
    return found


def _recommender(task: _Task, path: str) -> "Recommender":
    from ..recommender.recommender import Recommender
    from ..recsys.prompts.templates import get_template
    from ..recsys.records.recommender_files import RecommenderConfig, load_recommender_files

    config = None
    if load_recommender_files(path).config is None:
        # a model from before the training, such as a base, reads the records as they are
        if "catalogue" in task.args.protocol or task.config is not None:
            config = task.config
        else:
            config = RecommenderConfig([get_template("watched")])
    return Recommender.from_pretrained(
        path, catalogue=task.catalogue, config=config, device=task.args.device, dtype=task.args.dtype
    )


def _reference_scores(task: _Task, models: dict[str, str]) -> "list[np.ndarray] | None":
    args = task.args
    if args.reference is None or "ranking" not in args.protocol:
        return None
    recommender = _recommender(task, models.get(args.reference, args.reference))
    return _log_probs(task, recommender, "reference")


def _log_probs(task: _Task, recommender: "Recommender", name: str) -> "list[np.ndarray]":
    return recommender.log_probs(
        task.records, task.args.batch_size, per_token=task.args.per_token, desc=f"Ranking, {name}"
    )


def _lists(task: _Task, recommender: "Recommender") -> list[list[str]]:
    if "history_item_ids" not in task.records.column_names or "item_id" not in task.records.column_names:
        raise ValueError(
            f"{task.args.dataset}: no columns 'history_item_ids' and 'item_id', which --protocol catalogue needs. Make "
            "the records with `trl-sdpo prepare`."
        )
    options = {"top_k": task.args.top_k, "batch_size": max(1, task.args.batch_size // 2)}
    # by their ids: the title of one item may be the id of another
    found = recommender.recommend_ids(list(task.records["history_item_ids"]), **options)
    return [[item.item_id for item in row] for row in found]


def _keep(task: _Task, name: str, scores: "list[np.ndarray]") -> None:
    from ..recsys.baselines.scores import write_scores

    write_scores(scores, Path(task.args.output) / "scores" / f"{re.sub(r'[^0-9A-Za-z._-]+', '-', name)}.parquet")


def _read_scores(task: _Task, files: dict[str, str]) -> "dict[str, list[np.ndarray]]":
    from ..recsys.baselines.scores import read_scores

    found = {}
    for name, path in files.items():
        rows = read_scores(path)
        if task.rows is not None and len(rows) == task.total:
            rows = [rows[index] for index in task.rows]
        if len(rows) != len(task.records):
            raise ValueError(
                f"{path}: scores of {len(rows)} records, where --split {task.args.split} has {task.total} and "
                f"{len(task.records)} are evaluated. Score the same records."
            )
        found[name] = rows
    return found


def _public(path: str) -> str:
    """A path without what it says of the machine."""
    return Path(path).name if Path(path).is_absolute() else path


def _settings(args: EvaluateArguments) -> dict[str, Any]:
    from importlib.metadata import version

    from .. import __version__

    chosen = ("split", "reference", "max_records", "seed", "per_token", "top_k")
    settings = {name: getattr(args, name) for name in chosen if getattr(args, name) is not None}
    if args.reference is not None:
        settings["reference"] = _public(args.reference)
    for name, flag in (("models", "--model"), ("scores", "--scores")):
        named = _named(getattr(args, flag.removeprefix("--")), flag)
        settings[name] = ", ".join(f"{system} = {_public(path)}" for system, path in named.items())
    settings["protocol"] = ", ".join(args.protocol)
    return settings | {"trl-sdpo": __version__} | {name: version(name) for name in ("trl", "transformers", "torch")}

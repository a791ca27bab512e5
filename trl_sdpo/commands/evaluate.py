"""`trl-sdpo evaluate --dataset_name DIR --model_name_or_path A B --output_dir DIR`: several systems on the same records."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import suggest
from ._parser import SHARED_HELP, CommandParser, check_file_flag, check_model_flag, error_of, help_of


if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..evaluation.systems import Task
    from ..recsys.records.recommender_files import Catalogue


# The flags that name systems, by what these are
_FLAGS = {"baseline": "--baseline", "scores": "--scores", "lists": "--lists", "model": "--model_name_or_path"}
# A flag that is given again adds to what it had.
_AGAIN = {"action": "extend", "metavar": "TEXT"}


@dataclasses.dataclass
class EvaluateArguments:
    """Flags of `trl-sdpo evaluate`."""

    dataset_name: str | None = dataclasses.field(
        default=None,
        metadata=help_of("Records: a directory that prepare wrote, a file, or a name on the Hub. Needed."),
    )
    dataset_split: str = dataclasses.field(default="test", metadata=help_of("Split to evaluate on."))
    model_name_or_path: list[str] = dataclasses.field(
        default_factory=list,
        metadata=help_of(
            "Directory or Hub id of a model or an adapter, or NAME=DIRECTORY. May be given again.", **_AGAIN
        ),
    )
    scores: list[str] = dataclasses.field(
        default_factory=list,
        metadata=help_of(
            "Scores of any other system: NAME=FILE.parquet, a row per record. May be given again.", **_AGAIN
        ),
    )
    lists: list[str] = dataclasses.field(
        default_factory=list,
        metadata=help_of(
            "Lists of any other system for --protocol catalogue: NAME=FILE.parquet with a column item_ids. May be given "
            "again.",
            **_AGAIN,
        ),
    )
    baseline: list[str] = dataclasses.field(
        default_factory=list,
        metadata=help_of(
            "Baselines to train on the training records, in every protocol: 'popularity', 'cooccurrence', 'item-knn', "
            "'sasrec', 'gru4rec', 'content' (attributes of items), 'text' and 'sasrec-text' (see --text_model).",
            **_AGAIN,
        ),
    )
    text_model: str | None = dataclasses.field(
        default=None, metadata=help_of("Model whose vectors of titles --baseline text and sasrec-text read.")
    )
    fuse: list[str] = dataclasses.field(
        default_factory=list,
        metadata=help_of(
            "Names of baselines and models to fuse into one more system, 'fusion': their scores and the training counts, "
            "weighted by a fit on the validation records. May be given again.",
            **_AGAIN,
        ),
    )
    memorisation: str | None = dataclasses.field(
        default=None,
        metadata=help_of("Files of the source, as prepare's --path: probe whether the models know them by heart."),
    )
    ref_model: str | None = dataclasses.field(
        default=None, metadata=help_of("Model before S-DPO: also rank by the implicit reward against it.")
    )
    protocol: list[str] = dataclasses.field(
        default_factory=lambda: ["ranking"],
        metadata=help_of(
            "'ranking' (candidates by likelihood), 'generation' (written answers), 'catalogue' (all items)."
        ),
    )
    output_dir: str | None = dataclasses.field(
        default=None, metadata=help_of("Directory for results.json, .md and .html and for the scores. Needed.")
    )
    max_records: int | None = dataclasses.field(default=None, metadata=help_of("Records at most, drawn by the seed."))
    seed: int = dataclasses.field(default=0, metadata=help_of("Seed of draws, intervals and tests."))
    per_token: bool = dataclasses.field(
        default=False,
        metadata=help_of("Rank by likelihood per token, which takes away the advantage of short titles."),
    )
    pmi: bool = dataclasses.field(
        default=False,
        metadata=help_of("Also rank by pointwise mutual information: the likelihood less that without the history."),
    )
    top_k: int = dataclasses.field(default=10, metadata=help_of("Length of the lists from the whole catalogue."))
    num_beams: int | None = dataclasses.field(default=None, metadata=help_of(SHARED_HELP["num_beams"]))
    exact: bool = dataclasses.field(
        default=False,
        metadata=help_of(
            "Score all titles of the catalogue in place of a search: for some thousands, or few records."
        ),
    )
    repeats: bool = dataclasses.field(
        default=False, metadata=help_of("Let lists from the catalogue hold what the user had before.")
    )
    ignore_differences: bool = dataclasses.field(
        default=False, metadata=help_of("Evaluate models that were trained on other prompts than the records have.")
    )
    overwrite: bool = dataclasses.field(default=False, metadata=help_of("Replace the report in --output_dir."))
    facts: list[str] = dataclasses.field(
        default_factory=list,
        metadata=help_of("What is known of a system, for plots: 'NAME:num_negatives=15,beta=1'.", **_AGAIN),
    )
    num_examples: int = dataclasses.field(default=5, metadata=help_of("Hits and misses to show."))
    per_device_eval_batch_size: int = dataclasses.field(default=16, metadata=help_of("Records in a batch."))
    device: str | None = dataclasses.field(default=None, metadata=help_of(SHARED_HELP["device"]))
    dtype: str = dataclasses.field(default="auto", metadata=help_of(SHARED_HELP["dtype"]))


class _EvaluateParser(CommandParser):
    def parse_args(self, args: list[str]) -> Any:
        """As the parent; what is needed must be there."""
        arguments = super().parse_args(args)
        for name in ("dataset_name", "output_dir"):
            if getattr(arguments, name) is None:
                self.error(f"--{name} is missing. Usage: {self.usage}")
        if not (arguments.model_name_or_path or arguments.scores or arguments.baseline or arguments.lists):
            self.error(f"--model_name_or_path is missing, and --scores too. Usage: {self.usage}")
        if arguments.lists and "catalogue" not in arguments.protocol:
            self.error("--lists are compared under --protocol catalogue, which is not among those that were given.")
        if arguments.num_beams is not None and arguments.num_beams < max(2, arguments.top_k):
            self.error(f"--num_beams: {arguments.num_beams} is below 2 or below --top_k {arguments.top_k}.")
        for name in arguments.protocol:
            if name not in ("ranking", "generation", "catalogue"):
                self.error(f"--protocol: {name!r} is none of 'ranking', 'generation', 'catalogue'.")
        for name in ("max_records", "top_k", "per_device_eval_batch_size"):
            value = getattr(arguments, name)
            if value is not None and value < 1:
                self.error(f"--{name}: {value} is below 1.")
        return arguments


def make_parser(prog: str) -> CommandParser:
    """The parser of the command."""
    return _EvaluateParser(
        EvaluateArguments,
        prog=prog,
        usage=f"{prog} --dataset_name DIR --model_name_or_path NAME=DIR ... --output_dir DIR [flags]",
        description="Evaluate models, and scores of other systems, on the same records: metrics with chance and "
        "intervals, paired tests, what is easy and what is hard, and examples, in one page.",
    )


def run(args: EvaluateArguments) -> None:
    """Evaluate, write the report and print its tables."""
    _check_output(args)
    systems = _systems(args)
    facts = {name: _facts_of(path) for name, path in systems["model"].items()}
    names = [name for flag in systems.values() for name in flag]
    for name, values in _given_facts(args.facts, names).items():
        facts[name] = facts.get(name, {}) | values
    task = _load(args)
    found, differing = _found(args, task, systems)
    results = _results(args, task, found, facts)
    if args.memorisation is not None:
        from ..evaluation.probing import probe_memorisation

        results["memorisation"] = probe_memorisation(task, systems["model"], args.memorisation)
        said = {name: probe["verdict"] for name, probe in results["memorisation"].items()}
        results["settings"] |= {f"memorisation probe, {name}": verdict for name, verdict in said.items()}
    results["settings"] |= {f"differences, {name}": "; ".join(what) for name, what in differing.items()}
    from ..evaluation.report import results_text, write_report

    paths = write_report(results, args.output_dir)
    print(f"\n{results_text(results)}")
    for name, probe in results.get("memorisation", {}).items():
        print(f"Memorisation probe, {name}: {probe['verdict']}.")
    print(f"{args.output_dir}: {', '.join(path.name for path in paths)}.")


def _systems(args: EvaluateArguments) -> dict[str, dict[str, str]]:
    """What each flag names, by the name of the system; no name stands twice."""
    from ..evaluation.baselines import BASELINES

    for name in args.baseline:
        if name not in BASELINES:
            raise ValueError(f"--baseline: {name!r} is none of {list(BASELINES)}.{suggest(name, list(BASELINES))}")
    systems = {"baseline": {name: name for name in args.baseline}}
    systems |= {flag: _named(getattr(args, flag), f"--{flag}") for flag in ("scores", "lists")}
    systems["model"] = _named(args.model_name_or_path, "--model_name_or_path")
    seen: dict[str, str] = {}
    for flag, named in systems.items():
        for name in named:
            # scores and lists may be of one system
            if name in seen and {flag, seen[name]} != {"scores", "lists"}:
                raise ValueError(
                    f"{name!r} is the name of one system by {_FLAGS[seen[name]]} and of one by {_FLAGS[flag]}. Pass NAME=... with "
                    "another name."
                )
            seen[name] = flag
            if flag in ("scores", "lists"):
                check_file_flag(flag, named[name])
            elif flag == "model":
                check_model_flag("model_name_or_path", named[name])
    if args.ref_model is not None and args.ref_model not in systems["model"]:
        check_model_flag("ref_model", args.ref_model)
    return systems


def _found(args: EvaluateArguments, task: "Task", systems: dict) -> tuple[dict[str, Any], dict]:
    """Scores, answers and lists by protocol and system: baselines first, then those of files, then models."""
    from ..evaluation.systems import (
        REFERENCE,
        ScoreFiles,
        ask_baselines,
        ask_models,
        check_task,
        read_systems,
        train_baselines,
    )

    models = systems["model"] | ({} if args.ref_model is None else {REFERENCE: args.ref_model})
    models = {name: systems["model"].get(path, path) for name, path in models.items()}
    differing = check_task(task, models, args.baseline)
    if args.fuse:
        from ..evaluation.fusion import FUSION, check_fusion, fit_on_validation, fused_scores

        check_fusion(task, args.fuse, [*args.baseline, *systems["model"]], "--fuse")
    scores, lists = (read_systems(task, systems[kind], kind) for kind in ("scores", "lists"))
    if "catalogue" in args.protocol and task.catalogue is None:
        task.catalogue = _catalogue_of(systems["model"].values(), args.dataset_name)
    excluded = task.excluded() if "catalogue" in args.protocol else None
    files = ScoreFiles(Path(args.output_dir) / "scores", task.records)
    _end_run(args.output_dir)
    scorers = train_baselines(task, args.baseline)
    known = ask_baselines(task, scorers, excluded)
    asked = ask_models(task, systems["model"], args.ref_model, excluded, files)
    files.remove_others(list(systems["scores"].values()))
    found: dict[str, Any] = {protocol: known[protocol] | asked[protocol] for protocol in known}
    found["ranking"] = known["ranking"] | scores | asked["ranking"]
    found["catalogue"] = known["catalogue"] | lists | asked["catalogue"]
    if args.fuse:
        models = {name: systems["model"][name] for name in args.fuse if name in systems["model"]}
        fusion = fit_on_validation(task, {name: scorers[name] for name in args.fuse if name in scorers}, models)
        fusion.save(Path(args.output_dir) / "fusion.json")
        found["ranking"][FUSION] = fused_scores(fusion, task, found["ranking"])
        found["fusion"] = fusion
    return found | {"excluded": excluded}, differing


def _catalogue_of(models: "Iterable[str]", dataset: str) -> "Catalogue":
    from ..recsys.records.recommender_files import load_recommender_files

    for path in models:
        catalogue = load_recommender_files(path).catalogue
        if catalogue is not None:
            return catalogue
    raise ValueError(
        f"{dataset}: neither it nor a model has a catalogue.json, which --protocol catalogue needs. Make the records with "
        "`trl-sdpo prepare`, which writes one."
    )


def _results(args: EvaluateArguments, task: "Task", found: dict[str, Any], facts: dict) -> dict[str, Any]:
    from ..evaluation.comparison import evaluate_answers, evaluate_catalogue, evaluate_ranking
    from ..evaluation.probing import probe_all
    from ..evaluation.report import collect_results

    options = {"seed": args.seed, "num_examples": args.num_examples, "train": task.train}
    sections = []
    if found["ranking"]:
        section = evaluate_ranking(found["ranking"], task.records, catalogue=task.catalogue, **options)
        if "fusion" in found:
            section["fusion"] = dataclasses.asdict(found["fusion"])
        sections.append(section)
    if found["generation"]:
        options_of_answers = {"catalogue": task.catalogue, "stop_strings": task.stop_strings, **options}
        sections.append(evaluate_answers(found["generation"], task.records, **options_of_answers))
    if found["catalogue"]:
        options["ks"] = tuple(sorted({k for k in (1, 3, 5, 10, args.top_k) if k <= args.top_k}))
        if not args.exact:
            options["searches"] = dict.fromkeys(
                _named(args.model_name_or_path, ""), f"beam search, {task.beams} beams"
            )
        options["exclude"] = found["excluded"]
        sections.append(evaluate_catalogue(found["catalogue"], task.records, task.catalogue, **options))
    return collect_results(
        sections,
        dataset={
            "name": _public(args.dataset_name),
            "split": args.dataset_split,
            "records": len(task.records),
            "of": task.total,
            "source": None if task.config is None else task.config.source,
        },
        settings=_settings(args),
        facts=facts,
        **probe_all(task.splits, args.dataset_split, task.records, task.catalogue),
    )


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
    facts = {name: settings[name] for name in ("num_negatives", "beta") if isinstance(settings.get(name), int | float)}
    steps = _read_object(Path(model) / "trainer_state.json").get("global_step")
    return facts | ({"steps": steps} if isinstance(steps, int) else {})


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


def _load(args: EvaluateArguments) -> "Task":
    import numpy as np

    from ..evaluation.systems import Task
    from ..pipeline.datasets import find_recommender_files, load_records, select_split

    with error_of("--dataset_name"):
        splits = load_records(args.dataset_name)
    total, rows = len(select_split(splits, args.dataset_split, "--dataset_split", args.dataset_name)), None
    if args.max_records is not None and args.max_records < total:
        rows = np.sort(np.random.default_rng(args.seed).choice(total, args.max_records, replace=False))
    files, _ = find_recommender_files(args.dataset_name)
    options = ("seed", "per_token", "pmi", "top_k", "num_beams", "exact", "repeats", "device", "dtype")
    return Task(
        args.dataset_name,
        splits,
        args.dataset_split,
        rows,
        files.config,
        files.catalogue,
        args.protocol,
        ignore_differences=args.ignore_differences,
        batch_size=args.per_device_eval_batch_size,
        text_model=args.text_model,
        **{name: getattr(args, name) for name in options},
    )


def _check_output(args: EvaluateArguments) -> None:
    if (Path(args.output_dir) / "results.json").exists() and not args.overwrite:
        raise ValueError(
            f"--output_dir: {args.output_dir} holds a finished report. Pass --overwrite to replace it, or another directory."
        )


def _end_run(output: str) -> None:
    """What is written from outside a run is not what the run made: its note that this is done goes."""
    from ..pipeline.state import STATE_FILE

    state = Path(output) / STATE_FILE
    if _read_object(state).get("done"):
        state.unlink()


def _public(path: str) -> str:
    """A path without what it says of the machine."""
    return Path(path).name if Path(path).is_absolute() else path


def _settings(args: EvaluateArguments) -> dict[str, Any]:
    from importlib.metadata import version

    from .. import __version__

    settings: dict[str, Any] = {"split": args.dataset_split}
    settings |= {} if args.ref_model is None else {"reference": _public(args.ref_model)}
    chosen = ("max_records", "seed", "per_token", "top_k", "num_beams")
    settings |= {name: getattr(args, name) for name in chosen if getattr(args, name) is not None}
    for name, flag in (("models", "--model_name_or_path"), ("scores", "--scores"), ("lists", "--lists")):
        if name == "lists" and not args.lists:
            continue
        named = _named(getattr(args, flag.removeprefix("--")), flag)
        settings[name] = ", ".join(f"{system} = {_public(path)}" for system, path in named.items())
    settings["protocol"] = ", ".join(args.protocol)
    settings |= {name: True for name in ("pmi", "exact", "repeats") if getattr(args, name)}
    if args.baseline:
        settings["baselines"] = ", ".join(args.baseline)
    if args.text_model is not None:
        settings["text_model"] = _public(args.text_model)
    return settings | {"trl-sdpo": __version__} | {name: version(name) for name in ("trl", "transformers", "torch")}

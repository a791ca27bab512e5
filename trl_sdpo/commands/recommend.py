"""`trl-sdpo recommend --model_name_or_path DIR --history "Title A" "Title B"`: what comes next."""

import csv
import dataclasses
import hashlib
import io
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import BEGINS_ANEW, GOES_ON
from ..recsys.records.recommender_files import CATALOGUE_FILE, load_recommender_files, missing_file
from ._parser import SHARED_HELP, CommandParser, check_model_flag, help_of


if TYPE_CHECKING:
    from ..recommender.recommender import Recommendation, Recommender
    from ..recsys.interactions.readers.histories import HistoryQuery


logger = logging.getLogger(__name__)


@dataclasses.dataclass
class LoadingArguments:
    """Flags of every command that loads a recommender."""

    model_name_or_path: str | None = dataclasses.field(
        default=None, metadata=help_of("Directory or Hub id of a model or an adapter. Needed.")
    )
    template: str | None = dataclasses.field(
        default=None, metadata=help_of("Wording, by its name among those that the model was trained on.")
    )
    catalogue: str | None = dataclasses.field(
        default=None, metadata=help_of("Directory with a catalogue.json, such as the prepared data set.")
    )
    base_model: str | None = dataclasses.field(
        default=None, metadata=help_of("Model under the adapter, where it has moved.")
    )
    device: str | None = dataclasses.field(default=None, metadata=help_of(SHARED_HELP["device"]))
    dtype: str = dataclasses.field(default="auto", metadata=help_of(SHARED_HELP["dtype"]))


def loading_options(args: LoadingArguments) -> dict[str, Any]:
    """The arguments of [`Recommender.from_pretrained`]; a model that is not there is told before torch is imported."""
    check_model_flag("model_name_or_path", args.model_name_or_path)
    options = {field.name: getattr(args, field.name) for field in dataclasses.fields(LoadingArguments)}
    return {"model": options.pop("model_name_or_path"), **options}


@dataclasses.dataclass
class RecommendArguments(LoadingArguments):
    """Flags of `trl-sdpo recommend`."""

    history: list[str] = dataclasses.field(
        default_factory=list, metadata=help_of("Titles or item ids of one history, oldest first.")
    )
    histories: str | None = dataclasses.field(
        default=None,
        metadata=help_of(
            'Many: a .jsonl file with {"history": [...], "candidates": [...]} on each line, the latter optional, or with '
            '"history_item_ids" where all are ids; or a '
            ".csv file with a row per event and the columns user_id, title or item_id, and, where rows are not in order, "
            "timestamp."
        ),
    )
    candidates: list[str] = dataclasses.field(
        default_factory=list, metadata=help_of("Titles or ids to choose from. Default: the whole catalogue.")
    )
    top_k: int = dataclasses.field(default=10, metadata=help_of("How many to recommend."))
    output: str | None = dataclasses.field(
        default=None, metadata=help_of("File to write: .jsonl, a line per history, or .csv, a row per item.")
    )
    num_beams: int | None = dataclasses.field(default=None, metadata=help_of(SHARED_HELP["num_beams"]))
    new_items: str | None = dataclasses.field(
        default=None,
        metadata=help_of(
            "File of items that the catalogue lacks, .csv or .jsonl with item_id, title and its attributes."
        ),
    )
    score: str | None = dataclasses.field(
        default=None,
        metadata=help_of(
            "What to rank by: 'likelihood', 'pmi' (less that without the history), 'reward' (less that of --ref_model) or "
            "'fusion'. Default: the fusion that lies beside the model, else the likelihood.",
            choices=["likelihood", "pmi", "reward", "fusion"],
        ),
    )
    ref_model: str | None = dataclasses.field(
        default=None, metadata=help_of("Model before S-DPO, for --score reward. Default: the base under the adapter.")
    )
    unknown_titles: str = dataclasses.field(
        default="error",
        metadata=help_of("'keep' takes titles that are not in the catalogue as they are.", choices=["error", "keep"]),
    )
    per_device_eval_batch_size: int = dataclasses.field(default=8, metadata=help_of("Histories in a batch."))


class _RecommendParser(CommandParser):
    def parse_args(self, args: list[str]) -> Any:
        """As the parent; there must be a model and a history, or a file of histories."""
        arguments = super().parse_args(args)
        if arguments.model_name_or_path is None:
            self.error(f"--model_name_or_path is missing. Usage: {self.usage}")
        if bool(arguments.history) == bool(arguments.histories):
            self.error(f"pass either --history or --histories. Usage: {self.usage}")
        for flag, value, kinds in (
            ("histories", arguments.histories, (".jsonl", ".csv", ".parquet")),
            ("output", arguments.output, (".jsonl", ".csv", ".parquet")),
        ):
            if value is not None and Path(value).suffix not in kinds:
                self.error(f"--{flag}: {value!r} ends in none of {', '.join(kinds)}.")
        ends = [str(value).endswith(".parquet") for value in (arguments.histories, arguments.output)]
        if any(ends) and not all(ends):
            self.error("--histories and --output: both end in .parquet, or neither.")
        return arguments


def make_parser(prog: str) -> CommandParser:
    """The parser of the command."""
    return _RecommendParser(
        RecommendArguments,
        prog=prog,
        usage=f'{prog} --model_name_or_path DIR (--history "Title A" "Title B" | --histories FILE) [flags]',
        description="Recommend what comes after a history, or after each of many, with log-probabilities in nats.",
    )


def run(args: RecommendArguments) -> None:
    """Recommend, and print or write it."""
    if args.histories and args.histories.endswith(".parquet"):
        _recommend_file(args)
        return
    from ..recsys.interactions.readers.histories import HistoryQuery

    queries = [HistoryQuery("", args.history)] if args.history else _read(Path(args.histories))
    options = _loading_options(args)
    from ..recommender.recommender import Recommender

    recommender = Recommender.from_pretrained(**options)
    results = _recommend(recommender, queries, args)
    if args.output is not None:
        from ..files import write_text

        path = Path(args.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, _to_csv(queries, results) if path.suffix == ".csv" else _to_lines(queries, results))
        print(f"{path}: {sum(map(len, results)):,} recommendations for {len(queries):,} histories.")
    elif args.history:
        for place, item in enumerate(results[0], start=1):
            print(f"{place:3}. {item.title}  ({'no id' if item.item_id is None else item.item_id})  {item.score:.3f}")
        if not results[0]:
            print("Nothing is left to recommend: the history holds the whole catalogue.")
    else:
        print(_to_lines(queries, results), end="")


def how_it_goes_on(args: RecommendArguments) -> str:
    """What the same command does after an interruption: the parts of a Parquet file are kept."""
    return GOES_ON if args.histories and args.histories.endswith(".parquet") else BEGINS_ANEW


def _recommend_file(args: RecommendArguments) -> None:
    """Lists for a Parquet file, shared by the processes of `accelerate launch`."""
    options = _loading_options(args)
    from accelerate import PartialState

    from ..recommender.bulk import recommend_file
    from ..recommender.recommender import Recommender

    state, path, started = PartialState(cpu=args.device == "cpu"), Path(args.histories), time.monotonic()
    recommender = Recommender.from_pretrained(**{**options, "device": args.device or str(state.device)})
    depends_on = {**options, **_list_options(args), "candidates": args.candidates, "catalogue": args.catalogue}
    depends_on |= {"new_items": _digest(args.new_items)} if args.new_items else {}
    count = recommend_file(
        path,
        args.output,
        lambda rows: _recommend_rows(recommender, rows, path, args),
        {name: value for name, value in depends_on.items() if name not in ("device", "batch_size")},
        rank=state.process_index,
        world_size=state.num_processes,
        barrier=state.wait_for_everyone,
        report=lambda done, total, rate: logger.info(
            "%s of %s histories, %.1f a second", f"{done:,}", f"{total:,}", rate
        ),
    )
    rate = count / (time.monotonic() - started)
    print(
        f"{args.output}: {count:,} lists made in this run by this process, {rate:.1f} a second with all that it takes."
    )


def _recommend_rows(
    recommender: "Recommender", rows: list[dict], path: Path, args: RecommendArguments
) -> "list[list[Recommendation]]":
    for row in rows:
        if not row.get("history", row.get("history_item_ids")):
            raise ValueError(
                f"{path}: row {row['row']}: the history is empty. Write at least one item, or leave it out."
            )
    if "history" in rows[0]:
        from ..recsys.interactions.readers.histories import HistoryQuery

        queries = [HistoryQuery(str(row["row"]), row["history"], row.get("candidates")) for row in rows]
        return _recommend(recommender, queries, args)
    options = {name: value for name, value in _list_options(args).items() if name != "unknown_titles"}
    return recommender.recommend_ids([row["history_item_ids"] for row in rows], **options)


def _recommend(
    recommender: "Recommender", queries: "list[HistoryQuery]", args: RecommendArguments
) -> "list[list[Recommendation]]":
    options = _list_options(args)
    if args.history:
        found: list = recommender.recommend(args.history, args.candidates or None, **options)
        return [found]
    results: list = [None] * len(queries)
    own = [query.candidates or args.candidates or None for query in queries]
    # those with candidates together, and those without
    for wanted in (True, False):
        rows = [row for row, candidates in enumerate(own) if (candidates is not None) == wanted]
        if rows:
            histories = [queries[row].history for row in rows]
            found = recommender.recommend(histories, [own[row] for row in rows] if wanted else None, **options)
            for row, result in zip(rows, found, strict=True):
                results[row] = result
    return results


def _list_options(args: RecommendArguments) -> dict[str, Any]:
    options = {name: getattr(args, name) for name in ("top_k", "num_beams", "unknown_titles", "score")}
    return options | {"batch_size": args.per_device_eval_batch_size}


def _loading_options(args: RecommendArguments) -> dict[str, Any]:
    options = loading_options(args) | ({"ref_model": args.ref_model} if args.ref_model else {})
    if args.new_items:
        from ..recommender.new_items import read_new_items

        source = args.catalogue or args.model_name_or_path
        catalogue = load_recommender_files(source).catalogue
        if catalogue is None:
            raise missing_file(source, CATALOGUE_FILE)
        options["catalogue"] = read_new_items(args.new_items, catalogue)
    return options


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _read(path: Path) -> "list[HistoryQuery]":
    from ..recsys.interactions.readers.histories import read_histories

    return read_histories(path)


def _to_lines(queries: "list[HistoryQuery]", results: "list[list[Recommendation]]") -> str:
    lines = []
    for query, items in zip(queries, results, strict=True):
        key = {"user_id": query.key} if query.key else {}
        line = key | {"recommendations": [item._asdict() for item in items]}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)


def _to_csv(queries: "list[HistoryQuery]", results: "list[list[Recommendation]]") -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["user_id", "rank", "item_id", "title", "score"])
    for query, items in zip(queries, results, strict=True):
        for rank, item in enumerate(items, start=1):
            writer.writerow([query.key, rank, "" if item.item_id is None else item.item_id, item.title, item.score])
    return buffer.getvalue()

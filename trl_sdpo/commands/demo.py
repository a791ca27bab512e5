"""`trl-sdpo demo --model_name_or_path DIR`: a page of this machine to look at the lists of a recommender."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import install
from ._parser import SHARED_HELP, CommandParser, check_model_flag, check_port, help_of
from .recommend import LoadingArguments, loading_options


if TYPE_CHECKING:
    from ..recommender.recommender import Recommender
    from ..serving.histories import KnownUser


@dataclasses.dataclass
class DemoArguments(LoadingArguments):
    """Flags of `trl-sdpo demo`."""

    compare: list[str] = dataclasses.field(
        default_factory=list, metadata=help_of("Directories or Hub ids of models that stand beside it.")
    )
    dataset_name: str | None = dataclasses.field(
        default=None, metadata=help_of("Directory of the prepared data set, to load test users from.")
    )
    top_k: int = dataclasses.field(default=10, metadata=help_of("Length of a list."))
    host: str = dataclasses.field(
        default="127.0.0.1",
        metadata=help_of(SHARED_HELP["host"]),
    )
    space: str | None = dataclasses.field(
        default=None,
        metadata=help_of(
            "Write the page as a Space of the Hub, user/name, in place of opening it: models are Hub ids."
        ),
    )
    output_dir: str | None = dataclasses.field(
        default=None, metadata=help_of("Directory of the Space. Default: spaces/ and its name.")
    )
    push: bool = dataclasses.field(default=False, metadata=help_of("Push the Space, privately unless --public."))
    public: bool = dataclasses.field(default=False, metadata=help_of("Make a public Space. Default: private."))
    redistribution_permitted: bool = dataclasses.field(
        default=False,
        metadata=help_of("State that you may show the titles, also where the licence of their source forbids it."),
    )
    port: int = dataclasses.field(default=7860, metadata=help_of("Port to listen at."))


class _DemoParser(CommandParser):
    def parse_args(self, args: list[str]) -> DemoArguments:
        """As the parent; there must be a model."""
        arguments = super().parse_args(args)
        if arguments.model_name_or_path is None:
            self.error(f"--model_name_or_path is missing. Usage: {self.usage}")
        if arguments.top_k < 1:
            self.error(f"--top_k is {arguments.top_k}. Pass at least 1.")
        return arguments


def make_parser(prog: str) -> CommandParser:
    """The parser of the command."""
    return _DemoParser(
        DemoArguments,
        prog=prog,
        usage=f"{prog} --model_name_or_path DIR [--compare DIR ...] [--dataset_name DIR] [flags]",
        description="Open a page of this machine to look at the lists of a recommender.",
    )


def run(args: DemoArguments) -> None:
    """Load the models, open the page, and serve it until Ctrl-C; or write a Space."""
    if args.space is not None:
        _write_space(args)
        return
    check_port(args.host, args.port)
    check_model_flag("model_name_or_path", args.model_name_or_path)
    for model in args.compare:
        check_model_flag("compare", model)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import uvicorn

        from ..serving.demo import Page, make_app
    except ImportError as error:
        raise ImportError(f"{error}. `trl-sdpo demo` needs: {install('demo')}") from error

    recommenders = load_models(args)
    users = load_users(args.dataset_name, recommenders)
    app = make_app(Page(recommenders, users, args.top_k), f"{Path(args.model_name_or_path).name}: what comes next")
    print(f"The page is at http://{args.host}:{args.port}. Ctrl-C ends it.", flush=True)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning")


def _write_space(args: DemoArguments) -> None:
    from ..hub.licences import find_licence
    from ..recsys.records.recommender_files import load_recommender_files
    from ..serving.space import check_models, push_space, write_space

    models = [args.model_name_or_path, *args.compare]
    title, folder = args.space.split("/")[-1], Path(args.output_dir or Path("spaces") / args.space.split("/")[-1])
    check_models(models)
    config = load_recommender_files(args.model_name_or_path).config
    licence = find_licence([config.source if config else None])
    write_space(folder, models, title, licence)
    print(f"{folder}: app.py, requirements.txt, README.md.")
    if not args.push:
        print(
            f"Nothing was pushed. To push it: the same command with --push, or `hf upload {args.space} {folder} --type space`."
        )
        return
    info = push_space(
        folder, args.space, licence, private=not args.public, redistribution_permitted=args.redistribution_permitted
    )
    print(f"{folder} is at {info.repo_url.url}, commit {info.oid[:12]}.")


def load_models(args: DemoArguments) -> "dict[str, Recommender]":
    """The recommenders by their names; all have the items of the first."""
    from ..recommender.recommender import Recommender

    options = loading_options(args)
    recommenders: dict[str, Any] = {}
    for model in [args.model_name_or_path, *args.compare]:
        name = Path(model).name
        if name in recommenders:
            name = str(model)
        recommender = Recommender.from_pretrained(**{**options, "model": model})
        if recommender.catalogue is None:
            raise ValueError(f"{model}: has no catalogue.json, so nothing can be searched. Pass --catalogue DATA_DIR.")
        if recommender.template.style == "candidates":
            raise ValueError(
                f"{model}: was trained on prompts that show candidates, so it cannot choose from a whole catalogue. Pass a "
                "model of prompts without them (prompt_style: history)."
            )
        recommenders[name] = recommender
        first = next(iter(recommenders.values()))
        if recommender.catalogue.item_ids != first.catalogue.item_ids:
            raise ValueError(
                f"{model}: has other items than {args.model_name_or_path}. Compare models of the same data set."
            )
    return recommenders


def load_users(data: str | None, recommenders: "dict[str, Recommender]") -> "list[KnownUser]":
    """Users of the test records."""
    if data is None:
        return []
    from ..recsys.records.compact import load_prepared
    from ..serving.histories import users_of

    if not Path(data).is_dir():
        raise ValueError(f"--dataset_name: {data!r} is no directory. Pass that of a prepared data set.")
    records = load_prepared(data)["test"]
    return users_of(records, next(iter(recommenders.values())).catalogue)

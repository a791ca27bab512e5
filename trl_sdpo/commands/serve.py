"""`trl-sdpo serve --model_name_or_path DIR`: a recommender behind HTTP."""

import dataclasses

from .._errors import install
from ._parser import SHARED_HELP, CommandParser, check_port, help_of
from .recommend import LoadingArguments, loading_options


@dataclasses.dataclass
class ServeArguments(LoadingArguments):
    """Flags of `trl-sdpo serve`."""

    host: str = dataclasses.field(
        default="127.0.0.1",
        metadata=help_of(SHARED_HELP["host"]),
    )
    port: int = dataclasses.field(default=8000, metadata=help_of("Port to listen at."))
    workers: int = dataclasses.field(
        default=1, metadata=help_of("Processes, each with the model. One that dies is started again.")
    )
    max_batch_size: int = dataclasses.field(
        default=16, metadata=help_of("Requests that are computed together at most.")
    )
    max_waiting: int = dataclasses.field(
        default=256, metadata=help_of("Requests that may wait in a process; one more is answered with 503.")
    )
    timeout: float = dataclasses.field(default=30.0, metadata=help_of("Seconds that a request may take."))
    max_bytes: int = dataclasses.field(default=256 * 1024, metadata=help_of("Size of a request at most."))


class _ServeParser(CommandParser):
    def parse_args(self, args: list[str]) -> ServeArguments:
        """As the parent; there must be a model, and numbers within their range."""
        arguments = super().parse_args(args)
        if arguments.model_name_or_path is None:
            self.error(f"--model_name_or_path is missing. Usage: {self.usage}")
        for name in ("workers", "max_batch_size", "max_waiting", "timeout", "max_bytes"):
            if getattr(arguments, name) <= 0:
                self.error(f"--{name} is {getattr(arguments, name)}. Pass a number above 0.")
        return arguments


def make_parser(prog: str) -> CommandParser:
    """The parser of the command."""
    return _ServeParser(
        ServeArguments,
        prog=prog,
        usage=f"{prog} --model_name_or_path DIR [flags]",
        description="Serve a recommender over HTTP: /recommend, /score and /health, with a page of the interface at /docs.",
    )


def run(args: ServeArguments) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    check_port(args.host, args.port)
    options = loading_options(args)
    try:
        import uvicorn  # noqa: F401

        from ..serving import api  # noqa: F401
        from ..serving.server import serve
    except ImportError as error:
        raise ImportError(f"{error}. `trl-sdpo serve` needs: {install('serve')}") from error

    limits = {name: getattr(args, name) for name in ("max_batch_size", "max_waiting", "timeout", "max_bytes")}
    serve(options, limits, args.host, args.port, args.workers)

"""A [`Recommender`] behind HTTP: `/recommend`, `/score` and `/health`, with errors that name the field."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

from .. import __version__
from .batching import Batcher, QueueFullError
from .limits import RequestLimits


if TYPE_CHECKING:
    from ..recommender.recommender import Recommendation, Recommender

logger = logging.getLogger(__name__)

MAX_BYTES = 256 * 1024
MAX_ITEMS, MAX_CANDIDATES, MAX_TITLE = 500, 1_000, 1_000

_Text = Annotated[StrictStr, Field(min_length=1, max_length=MAX_TITLE)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Named(_Body):
    """An item by what it is known by, where a text could be either."""

    item_id: _Text | None = None
    title: _Text | None = None


Item = _Text | StrictInt | Named
_Score = Annotated[
    Literal["likelihood", "pmi", "reward", "fusion"] | None,
    Field(description="What to rank by. Default: the fusion where the model has one, else the likelihood."),
]
_ITEM_HELP = 'Titles, numbers of items, or {"item_id": ...} or {"title": ...} where a text could be either.'


class RecommendBody(_Body):
    """What `/recommend` takes."""

    history: Annotated[
        list[Item], Field(min_length=1, max_length=MAX_ITEMS, description=f"Oldest first. {_ITEM_HELP}")
    ]
    candidates: Annotated[
        list[Item] | None,
        Field(min_length=1, max_length=MAX_CANDIDATES, description="To choose from. Default: the whole catalogue."),
    ] = None
    top_k: Annotated[StrictInt, Field(ge=1, le=100, description="How many to recommend at most.")] = 10
    num_beams: Annotated[StrictInt | None, Field(ge=2, le=200, description="Width of the search.")] = None
    score: _Score = None


class ScoreBody(_Body):
    """What `/score` takes."""

    history: Annotated[
        list[Item], Field(min_length=1, max_length=MAX_ITEMS, description=f"Oldest first. {_ITEM_HELP}")
    ]
    candidates: Annotated[list[Item], Field(min_length=1, max_length=MAX_CANDIDATES, description=_ITEM_HELP)]
    score: _Score = None


class ScoredItem(BaseModel):
    """An item with the log-probability of its title as the answer, in nats, or the score that was asked for."""

    item_id: str | None
    title: str
    score: float


class RecommendAnswer(BaseModel):
    """The best first."""

    recommendations: list[ScoredItem]


class ScoreAnswer(BaseModel):
    """In the order of the candidates."""

    scores: list[ScoredItem]


class HealthAnswer(BaseModel):
    """Whether the server works, and on what."""

    status: str
    model: str
    items: int | None
    waiting: int
    version: str


class ErrorDetail(BaseModel):
    """Where it lies, and what to do."""

    field: str | None
    message: str


class ErrorAnswer(BaseModel):
    """An error, with the field of the request that caused it."""

    error: ErrorDetail


class _FieldError(Exception):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field, self.message = field, message


@dataclass(frozen=True)
class _Query:
    history: tuple[str, ...]
    candidates: tuple[str, ...] | None


def make_app(
    recommender: "Recommender",
    *,
    max_batch_size: int = 16,
    max_waiting: int = 256,
    timeout: float = 30.0,
    max_bytes: int = MAX_BYTES,
) -> FastAPI:
    """
    The application that `trl-sdpo serve` runs.

    Args:
        recommender ([`Recommender`]):
            With a catalogue.
        max_batch_size (`int`, *optional*, defaults to `16`), max_waiting (`int`, *optional*, defaults to `256`):
            See [`~serving.batching.Batcher`]. Requests of the same options are computed together.
        timeout (`float`, *optional*, defaults to `30.0`):
            Seconds that a request may take, its body and its place in the queue included.
        max_bytes (`int`, *optional*, defaults to 256 KiB):
            Of a body.

    Returns:
        `fastapi.FastAPI`: The application. Its page of the interface is at `/docs`, the description at `/openapi.json`.
    """
    batcher = Batcher(
        lambda group, works: _compute(recommender, cast(tuple, group), works), max_batch_size, max_waiting
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)

    app = FastAPI(
        title="trl-sdpo", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="A recommender that was trained with Softmax-DPO. Scores are log-probabilities in nats.",
        responses={code: {"model": ErrorAnswer} for code in (400, 413, 422, 500, 503, 504)},
    )  # fmt: skip
    app.add_middleware(RequestLimits, max_bytes=max_bytes, timeout=timeout)
    _add_error_answers(app)
    _add_routes(app, recommender, batcher)
    _add_page(app)
    return app


def _add_routes(app: FastAPI, recommender: "Recommender", batcher: Batcher) -> None:
    async def answer(group: tuple, work: _Query) -> "Sequence[Recommendation]":
        return await asyncio.wrap_future(batcher.submit(group, work))

    @app.post("/recommend", response_model=RecommendAnswer)
    async def recommend(body: RecommendBody) -> dict[str, Any]:
        """What comes after a history, from the whole catalogue or from candidates."""
        query = _query(recommender, body.history, body.candidates)
        if query.candidates is None and recommender.template.style == "candidates":
            raise _FieldError("candidates", "This model was trained on prompts that show candidates. Pass some.")
        score = _checked_score(recommender, body.score)
        if score != "likelihood" and body.num_beams is not None:
            raise _FieldError("num_beams", f"Score '{score}' is of the whole catalogue, without beams. Leave it out.")
        found = await answer(("recommend", query.candidates is None, body.top_k, body.num_beams, score), query)
        return {"recommendations": [item._asdict() for item in found]}

    @app.post("/score", response_model=ScoreAnswer)
    async def score(body: ScoreBody) -> dict[str, Any]:
        """The log-probability of each candidate as what comes after a history."""
        query = _query(recommender, body.history, body.candidates)
        found = await answer(("score", _checked_score(recommender, body.score)), query)
        return {"scores": [item._asdict() for item in found]}

    @app.get("/health", response_model=HealthAnswer)
    async def health() -> dict[str, Any]:
        """Whether the server takes requests."""
        items = None if recommender.catalogue is None else len(recommender.catalogue)
        return {
            "status": "ok", "model": recommender.name.rpartition("/")[2], "items": items,
            "waiting": batcher.num_waiting, "version": __version__,
        }  # fmt: skip


def _add_page(app: FastAPI) -> None:
    """The page of the interface, out of files of this machine: FastAPI's own asks a server elsewhere for its script."""
    app.mount("/static", StaticFiles(directory=swagger_ui_path))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="trl-sdpo",
            swagger_js_url="/static/swagger-ui-bundle.js",
            swagger_css_url="/static/swagger-ui.css",
            swagger_favicon_url="/static/favicon-32x32.png",
        )


def _checked_score(recommender: "Recommender", score: str | None) -> str:
    """What to rank by: what this model cannot give is refused here, before it reaches a batch."""
    try:
        return recommender.check_score(score)
    except ValueError as error:
        raise _FieldError("score", str(error)) from None


def _query(recommender: "Recommender", history: list, candidates: list | None) -> _Query:
    return _Query(
        _ids(recommender, history, "history"),
        None if candidates is None else _ids(recommender, candidates, "candidates"),
    )


def _ids(recommender: "Recommender", items: list, field: str) -> tuple[str, ...]:
    """Ids of the catalogue: what is unknown is refused here, before it reaches a batch."""
    found = []
    for number, item in enumerate(items):
        where = f"{field}[{number}]"
        try:
            found.append(recommender.lookup.id_of(_index(recommender, item, where)))
        except ValueError as error:
            raise _FieldError(where, str(error).removeprefix(f"{where}: ")) from None
    return tuple(found)


def _index(recommender: "Recommender", item: "str | int | Named", where: str) -> int:
    if not isinstance(item, Named):
        return recommender.lookup.find(item, where)[0]
    if (item.item_id is None) == (item.title is None):
        raise ValueError("pass either item_id or title.")
    if item.item_id is not None:
        return recommender.lookup.find_id(item.item_id, where)[0]
    return recommender.lookup.find_title(item.title, where)[0]


def _compute(recommender: "Recommender", group: tuple, works: Sequence[_Query]) -> list:
    histories = [list(work.history) for work in works]
    if group[0] == "score":
        candidates = [list(work.candidates) for work in works]
        scores = recommender.score(histories, candidates, batch_size=len(works), score=group[1])
        return [_scored(recommender, work.candidates, row) for work, row in zip(works, scores, strict=True)]
    _, whole, top_k, num_beams, score = group
    lists = None if whole else [list(work.candidates) for work in works]
    options = {"num_beams": num_beams, "batch_size": len(works), "score": score}
    return recommender.recommend_ids(histories, lists, top_k, **options)


def _scored(
    recommender: "Recommender", item_ids: Sequence[str], scores: "Sequence[float] | np.ndarray"
) -> "list[Recommendation]":
    from ..recommender.recommender import Recommendation

    return [
        Recommendation(item_id, recommender.lookup.title_of(item_id, "candidates"), float(score))
        for item_id, score in zip(item_ids, scores, strict=True)
    ]


def _error(status: int, message: str, field: str | None = None, **headers: str) -> JSONResponse:
    return JSONResponse({"error": {"field": field, "message": message}}, status, headers=headers or None)


def _add_error_answers(app: FastAPI) -> None:
    """Every error is JSON of one form, and none shows code, paths or traces."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _error(422, first["msg"], _field(first["loc"]))

    @app.exception_handler(_FieldError)
    async def unknown(request: Request, error: _FieldError) -> JSONResponse:
        return _error(422, error.message, error.field)

    @app.exception_handler(QueueFullError)
    async def full(request: Request, error: QueueFullError) -> JSONResponse:
        return _error(503, str(error), **{"Retry-After": "1"})

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def internal(request: Request, error: Exception) -> JSONResponse:
        number = uuid.uuid4().hex[:12]
        logger.error("Error %s", number, exc_info=error)
        return _error(500, f"The server failed on this request; its log has the reason under {number}.")


def _field(location: Sequence[str | int]) -> str | None:
    """`("body", "history", 3, "str")` as `history[3]`: what pydantic adds of the types that it tried is left out."""
    field = ""
    for part in location[1:]:
        if isinstance(part, int):
            field += f"[{part}]" if field else ""
        elif not field or part in Named.model_fields:
            field += f".{part}" if field else part
    return field or None

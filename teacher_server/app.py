"""The HTTP side: routes, life span, and errors turned into answers."""

import asyncio
import reprlib
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from teacher_server.answers import AnswerStore
from teacher_server.keys import KeyGuard, read_key
from teacher_server.look import add_page
from teacher_server.metrics import Metrics
from teacher_server.schemas import (
    Answer,
    Answered,
    BatchAnswer,
    ErrorAnswer,
    ErrorBody,
    Failed,
    Health,
    Question,
    TeacherInfo,
)
from teacher_server.service import Outcome, Service
from teacher_server.settings import Settings
from teacher_server.teachers import Teacher
from teacher_server.teachers.choice import choose_teacher

_RETRY_SOON = {"Retry-After": "1"}
_GONE = 499
"""The status of a request whose client went away; nobody reads it."""


@dataclass
class State:
    """What the routes share; `failure` is why there is no teacher: it could not start, or is gone."""

    settings: Settings
    teacher: Teacher
    store: AnswerStore | None
    metrics: Metrics
    service: Service
    ready: bool = False
    failure: str | None = None


def create_app(settings: Settings) -> FastAPI:
    """The service; `app.state.teaching` is its `State`.

    Raises:
        BadKeyFile: the file of the key holds none.
        CannotTeach: there cannot be a teacher as the settings ask for it.
        StoreError: the answer store cannot be used.
    """
    key = read_key(settings.api_key_file)
    teacher = choose_teacher(settings)
    store = AnswerStore(settings.store) if settings.store else None
    if store is not None:
        store.register(teacher.identity, teacher.description)
    metrics = Metrics()
    service = Service(
        teacher, store, metrics, settings, on_gone=lambda why: _end(app.state.teaching, f"is gone: {why}")
    )
    app = FastAPIOffline(
        title="A teacher",
        description="Asks a teacher what it would do in a picture of a grid world.",
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.teaching = State(settings, teacher, store, metrics, service)
    app.include_router(_router)
    add_page(app)
    app.add_middleware(_BodyLimit, limit=int(settings.max_body_mib * 2**20))
    if key is not None:
        app.add_middleware(KeyGuard, key=key)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_crash)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    teaching: State = app.state.teaching
    starting = asyncio.create_task(_start(teaching))
    yield
    teaching.ready = False
    starting.cancel()
    await teaching.teacher.close()
    if teaching.store is not None:
        await teaching.store.close()


async def _start(teaching: State) -> None:
    """Starts the teacher while the service lives already; ends the process if that fails."""
    try:
        await teaching.teacher.start()
    except Exception as error:
        _end(teaching, f"could not start: {error}")
    else:
        teaching.ready = True


def _end(teaching: State, why: str) -> None:
    """Ends the process: whatever watches over it is to start another."""
    teaching.ready, teaching.failure = False, why
    signal.raise_signal(signal.SIGTERM)


def _or_error(value: Any, validate: ValidatorFunctionWrapHandler) -> Question | ErrorBody:
    try:
        question: Question = validate(value)
    except ValidationError as error:
        return _unprocessable(error.errors(include_url=False))
    return question


_KEYLESS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorAnswer, "description": "The teacher has a key, and the request does not bear it."}
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    **_KEYLESS,
    413: {"model": ErrorAnswer, "description": "The body or the picture is too large."},
    422: {"model": ErrorAnswer, "description": "Something in the question is wrong; `field` says what."},
    502: {"model": ErrorAnswer, "description": "The teacher's answer could not be read: `raw` holds it."},
    503: {"model": ErrorAnswer, "description": "Not ready or overloaded; Retry-After says how long."},
    504: {"model": ErrorAnswer, "description": "The teacher did not answer in time."},
}
_BATCH_ERRORS: dict[int | str, dict[str, Any]] = {status: _ERRORS[status] for status in (401, 413, 422, 503)}

_router = APIRouter()


@_router.post("/policy", response_model=Answer, responses=_ERRORS)
async def policy(request: Request, question: Question) -> Response:
    """What would the teacher do? The analysis of the picture, then the action."""
    (outcome,) = await _answers(request, [question])
    return _error(outcome) if isinstance(outcome, ErrorBody) else _json(outcome)


@_router.post("/policy/batch", response_model=BatchAnswer, responses=_BATCH_ERRORS)
async def policy_batch(
    request: Request,
    questions: Annotated[list[Annotated[Question, WrapValidator(_or_error)]], Body(min_length=1)],
) -> Response:
    """Many questions at once. Each has its own status in the answer, which keeps their order."""
    most = _teaching(request).settings.max_batch
    if len(questions) > most:
        return _error(ErrorBody(status=413, reason=f"{len(questions)} questions in a batch; at most {most}"))
    return _json(
        BatchAnswer(
            answers=[
                Answered(answer=outcome)
                if isinstance(outcome, Answer)
                else Failed(status=outcome.status, error=outcome)
                for outcome in await _answers(request, questions)
            ]
        )
    )


@_router.get("/teacher", responses=_KEYLESS)
async def teacher(request: Request) -> TeacherInfo:
    """Who answers: the identity and everything in it."""
    teacher = _teaching(request).teacher
    return TeacherInfo(
        identity=teacher.identity,
        kind=teacher.kind,
        description=teacher.description,
        hosting=teacher.hosting,
        tasks=teacher.tasks,
    )


@_router.get("/livez")
async def livez() -> Health:
    """Whether the service lives."""
    return Health(status="alive")


@_router.get("/readyz", responses={503: {"model": ErrorAnswer, "description": "Not ready."}})
async def readyz(request: Request) -> Health:
    """Whether the teacher can answer."""
    _ready(request)
    return Health(status="ready")


@_router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(_teaching(request).metrics.page(), media_type=CONTENT_TYPE_LATEST)


def _teaching(request: Request) -> State:
    state: State = request.app.state.teaching
    return state


def _ready(request: Request) -> State:
    teaching = _teaching(request)
    if not teaching.ready:
        raise HTTPException(503, "the teacher is not ready", headers=_RETRY_SOON)
    return teaching


async def _answers(request: Request, questions: Sequence[Question | ErrorBody]) -> list[Outcome]:
    """The outcomes; the work on them is cancelled when the client goes away."""
    answering = asyncio.ensure_future(_ready(request).service.answer(questions))
    gone = asyncio.ensure_future(request.receive())  # the body is read: all that can come is the end
    try:
        await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise HTTPException(_GONE, "the client went away")
        return answering.result()
    except asyncio.CancelledError:  # by the server, when its time to stop is over
        raise HTTPException(503, "the service is stopping", headers=_RETRY_SOON) from None
    finally:
        answering.cancel()
        gone.cancel()


def _json(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(model.model_dump_json(), status, headers, media_type="application/json")


def _error(body: ErrorBody, headers: Mapping[str, str] | None = None) -> Response:
    if body.retry_after is not None:
        headers = {"Retry-After": f"{body.retry_after:.0f}"}
    return _json(ErrorAnswer(error=body), body.status, headers)


def _unprocessable(problems: Sequence[Any]) -> ErrorBody:
    """Pydantic's problems in words, the first few, each with the field and the value."""
    fields, reasons = zip(*(_in_words(problem) for problem in problems[:5]), strict=True)
    return ErrorBody(status=422, field=fields[0], reason="; ".join(reasons))


def _in_words(problem: Any) -> tuple[str | None, str]:
    kind, value = problem["type"], problem["input"]
    if kind == "json_invalid":
        return None, f"the body is not JSON: {problem['ctx']['error']}"
    if isinstance(value, bytes):
        return None, "the body is not JSON: its content type is not application/json"
    reason = problem["msg"].removeprefix("Value error, ")
    if kind not in ("missing", "value_error", "too_short", "too_long"):
        reason += f", not {reprlib.repr(value)}"
    path = [part for part in problem["loc"] if part != "body"]
    if not path:
        return None, reason
    field = reprlib.repr(path[0]).strip("'")  # a client may name fields as it likes: short, and escaped
    return field, f"{field}: {reason}"


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    _teaching(request).metrics.failures.labels("422").inc()
    return _error(_unprocessable(error.errors()))


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(ErrorBody(status=error.status_code, reason=error.detail), error.headers)


async def _on_crash(_: Request, error: Exception) -> Response:
    return _error(ErrorBody(status=500, reason="the service failed on this request; its log says why"))


class _BodyLimit:
    """Refuses a body that is larger than the limit, before more of it is read."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        taken = 0
        told = dict(scope["headers"]).get(b"content-length", b"0")

        async def receive_at_most() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit or int(told) > self._limit:
                reason = f"the body has more than {self._limit} bytes; ask fewer questions at once"
                raise HTTPException(413, reason)
            return message

        await self._app(scope, receive_at_most, send)

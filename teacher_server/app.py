"""The HTTP side: routes, life span, and errors turned into answers."""

import asyncio
import reprlib
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from starlette.exceptions import HTTPException

from teacher_server.admission import Admission, Share
from teacher_server.answers import AnswerStore
from teacher_server.guard import ADMINISTRATION, QUESTIONS, KeyGuard, KeyRing
from teacher_server.hosting import Host, NotReady
from teacher_server.look import add_page
from teacher_server.look.docs import add_docs
from teacher_server.metrics import Metrics
from teacher_server.reception import Reception, caller_of, while_client_waits
from teacher_server.schemas import (
    Answer,
    Answered,
    BatchAnswer,
    ErrorAnswer,
    ErrorBody,
    Failed,
    Health,
    Hosted,
    Question,
    Swap,
    Swapped,
    TeacherInfo,
)
from teacher_server.service import Outcome, Service, told_of
from teacher_server.settings import Settings
from teacher_server.swapping import CannotSwap, Swapper
from teacher_server.teachers.choice import choose_teacher
from teacher_server.watchdog import Watchdog


@dataclass(frozen=True)
class State:
    """What the routes share."""

    settings: Settings
    host: Host
    store: AnswerStore | None
    metrics: Metrics
    service: Service
    swapper: Swapper
    watchdog: Watchdog
    keyless: bool
    """Whether whoever reaches the service may ask."""


def create_app(settings: Settings) -> FastAPI:
    """The service; `app.state.teaching` is its `State`.

    Raises:
        BadKeyFile: the file of a key holds none.
        CannotTeach: there cannot be a teacher as the settings ask for it.
        StoreError: the answer store cannot be used.
    """
    keys, admin_keys = KeyRing(settings.api_key_file), KeyRing(settings.admin_key_file)
    teacher = choose_teacher(settings)
    metrics = Metrics()
    store = None
    if settings.store:
        evicted = metrics.store_evicted.inc
        store = AnswerStore(settings.store, max_mib=settings.store_max_mib, on_evicted=evicted)
    # Ends the process: whatever watches over it is to start another
    host = Host(teacher, settings, store, metrics, on_end=lambda: signal.raise_signal(signal.SIGTERM))
    app = FastAPIOffline(
        title="A teacher",
        description="Asks a teacher what it would do in a picture of a grid world. Requests may bear"
        " X-Timeout-S (seconds that the client will wait), X-Client (its name, by which room is shared) and"
        " X-Request-ID (which the answer and the log repeat).",
        docs_url=None,  # see `add_docs`
        redoc_url=None,
        openapi_tags=_TAGS,
        servers=[{"url": ".", "description": "this teacher"}],  # holds behind a proxy's path prefix too
        lifespan=_lifespan,
    )
    service = Service(host, store, metrics, settings)
    swapper, watchdog = Swapper(host, metrics), Watchdog(host, metrics)
    app.state.teaching = State(settings, host, store, metrics, service, swapper, watchdog, keyless=keys.empty)
    app.include_router(_router)
    add_page(app)
    add_docs(app)
    bodies = Share(int(settings.max_pending_mib * 2**20), "bytes")
    metrics.pending_bytes.set_function(lambda: bodies.taken)
    metrics.ready.set_function(lambda: host.ready)
    limit = int(settings.max_body_mib * 2**20)
    # The last one added is the first to see a request
    app.add_middleware(Admission, questions=service.share, body_bytes=bodies, limit=limit)
    app.add_middleware(KeyGuard, keys=admin_keys, paths=ADMINISTRATION, flag="--admin-key-file", closed=True)
    app.add_middleware(KeyGuard, keys=keys, paths=QUESTIONS, flag="--api-key-file")
    app.add_middleware(Reception, metrics=metrics, log=settings.log_requests)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(NotReady, _on_not_ready)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    teaching: State = app.state.teaching
    teaching.host.start()
    watching = asyncio.create_task(teaching.watchdog.run())
    yield
    watching.cancel()
    teaching.service.close()
    await teaching.host.close()
    if teaching.store is not None:
        await teaching.store.close()


def _or_error(value: Any, validate: ValidatorFunctionWrapHandler) -> Question | ErrorBody:
    try:
        question: Question = validate(value)
    except ValidationError as error:
        return _unprocessable(error.errors(include_url=False))
    return question


_KEYLESS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorAnswer, "description": "The teacher has a key, and the request does not bear it."},
    422: {"model": ErrorAnswer, "description": "A header cannot be used; `field` says which."},
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    **_KEYLESS,
    400: {"model": ErrorAnswer, "description": "The body cannot be parsed."},
    413: {"model": ErrorAnswer, "description": "The body or the picture is too large."},
    422: {"model": ErrorAnswer, "description": "Something in the question is wrong; `field` says what."},
    429: {"model": ErrorAnswer, "description": "The client has its share; Retry-After says how long."},
    502: {"model": ErrorAnswer, "description": "The teacher's answer could not be read: `raw` holds it."},
    503: {"model": ErrorAnswer, "description": "Not ready or overloaded; Retry-After says how long."},
    504: {"model": ErrorAnswer, "description": "The teacher did not answer in time."},
}
_UNADMITTED: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorAnswer, "description": "The request does not bear the admin key."},
    403: {"model": ErrorAnswer, "description": "The teacher has no admin key, so nobody may."},
}
_SWAP_ERRORS: dict[int | str, dict[str, Any]] = {
    **_UNADMITTED,
    **{status: _ERRORS[status] for status in (400, 413, 429)},
    409: {"model": ErrorAnswer, "description": "It cannot be swapped now; nothing was touched."},
    422: {"model": ErrorAnswer, "description": "It cannot be served here; nothing was touched."},
    500: {"model": ErrorAnswer, "description": "Neither it nor the one before can be loaded: the end."},
    502: {"model": ErrorAnswer, "description": "It was loaded and is no good: the one before answers again."},
    503: {"model": ErrorAnswer, "description": "There is no teacher yet; nothing was touched."},
}
_BATCH_ERRORS: dict[int | str, dict[str, Any]] = {
    status: _ERRORS[status] for status in (400, 401, 413, 422, 429, 503)
}

_TAGS = [
    {"name": "Questions", "description": "What a student asks. With the teacher's key, where it has one."},
    {"name": "Administration", "description": "With the admin key, without which nobody may."},
    {"name": "Health and figures", "description": "For whatever watches over the service. Without a key."},
]
_QUESTIONS: dict[str, Any] = {
    "tags": ["Questions"],
    "dependencies": [Security(HTTPBearer(scheme_name="Key", auto_error=False))],  # documents; KeyGuard asks
}
_ADMINISTRATION: dict[str, Any] = {
    "tags": ["Administration"],
    "dependencies": [Security(HTTPBearer(scheme_name="Admin key", auto_error=False))],
}
_HEALTH: dict[str, Any] = {"tags": ["Health and figures"]}
_FOLDER = Body(openapi_examples={"folder": {"summary": "a folder", "value": {"model": "/models/NAME"}}})

_router = APIRouter()


@_router.post("/policy", response_model=Answer, responses=_ERRORS, summary="Ask a question", **_QUESTIONS)
async def policy(request: Request, question: Question) -> Response:
    """What would the teacher do? The analysis of the picture, then the action."""
    (outcome,) = await _answers(request, [question])
    return _error(outcome) if isinstance(outcome, ErrorBody) else _json(outcome)


@_router.post(
    "/policy/batch",
    response_model=BatchAnswer,
    responses=_BATCH_ERRORS,
    summary="Ask many questions",
    **_QUESTIONS,
)
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


@_router.get("/teacher", responses=_KEYLESS, summary="Which teacher answers", **_QUESTIONS)
async def teacher(request: Request) -> TeacherInfo:
    """Who answers: the identity and everything in it."""
    host = _teaching(request).host
    teacher = host.teacher
    return TeacherInfo(
        identity=teacher.identity,
        kind=teacher.kind,
        description=teacher.description,
        hosting=teacher.hosting,
        tasks=teacher.tasks,
        state=host.state,
    )


@_router.get(
    "/admin/checkpoint", responses=_UNADMITTED, summary="Which checkpoint is served", **_ADMINISTRATION
)
async def checkpoint(request: Request) -> Hosted:
    """Which checkpoint is served, and what goes on."""
    host = _teaching(request).host
    model = host.settings.model
    return Hosted(
        state=host.state, identity=host.teacher.identity, model=None if model is None else model.absolute()
    )


@_router.post(
    "/admin/checkpoint",
    response_model=Swapped,
    responses=_SWAP_ERRORS,
    summary="Serve another checkpoint",
    **_ADMINISTRATION,
)
async def swap(request: Request, wanted: Annotated[Swap, _FOLDER]) -> Response:
    """Serves another checkpoint from now on; answers when that one does, or the one before does again."""
    try:
        return _json(await _teaching(request).swapper.swap(wanted))
    except CannotSwap as refusal:
        return _error(refusal.error)


@_router.get("/livez", summary="Does the service live?", **_HEALTH)
async def livez() -> Health:
    """Whether the service lives."""
    return Health(status="alive")


@_router.get(
    "/readyz",
    responses={503: {"model": ErrorAnswer, "description": "Not ready."}},
    summary="Can the teacher answer?",
    **_HEALTH,
)
async def readyz(request: Request) -> Health:
    """Whether the teacher can answer."""
    with _teaching(request).host.lease():
        return Health(status="ready")


@_router.get("/metrics", response_class=Response, summary="Figures for Prometheus", **_HEALTH)
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(_teaching(request).metrics.page(), media_type=CONTENT_TYPE_LATEST)


def _teaching(request: Request) -> State:
    state: State = request.app.state.teaching
    return state


async def _answers(request: Request, questions: Sequence[Question | ErrorBody]) -> list[Outcome]:
    """The outcomes; the work on them is cancelled when the client goes away."""
    caller = caller_of(request.scope)
    asking = _teaching(request).service.answer(questions, client=caller.client, patience_s=caller.patience_s)
    outcomes = await while_client_waits(request, asking)
    caller.told = told_of(outcomes)
    return outcomes


def _json(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(model.model_dump_json(), status, headers, media_type="application/json")


def _error(body: ErrorBody, headers: Mapping[str, str] | None = None) -> Response:
    return _json(ErrorAnswer(error=body), body.status, body.headers or headers)


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


async def _on_not_ready(_: Request, error: Exception) -> Response:
    return _error(ErrorBody(status=503, reason=str(error), retry_after=1.0))

"""The routes: questions, administration, health and metrics."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response, Security
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from teacher_api.schemas import (
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
from teacher_server.http.request_context import caller_of, while_client_waits
from teacher_server.http.responses import error_response, respond, unprocessable
from teacher_server.service.questions import Outcome, told_of
from teacher_server.service.state import State
from teacher_server.service.swap import CannotSwap


def _or_error(value: Any, validate: ValidatorFunctionWrapHandler) -> Question | ErrorBody:
    try:
        question: Question = validate(value)
    except ValidationError as error:
        return unprocessable(error.errors(include_url=False))
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

TAGS = [
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

router = APIRouter()


@router.post("/policy", response_model=Answer, responses=_ERRORS, summary="Ask a question", **_QUESTIONS)
async def policy(request: Request, question: Question) -> Response:
    """What would the teacher do? The analysis of the picture, then the action."""
    (outcome,) = await _answers(request, [question])
    return error_response(outcome) if isinstance(outcome, ErrorBody) else respond(outcome)


@router.post(
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
        return error_response(
            ErrorBody(status=413, reason=f"{len(questions)} questions in a batch; at most {most}")
        )
    return respond(
        BatchAnswer(
            answers=[
                Answered(answer=outcome)
                if isinstance(outcome, Answer)
                else Failed(status=outcome.status, error=outcome)
                for outcome in await _answers(request, questions)
            ]
        )
    )


@router.get("/teacher", responses=_KEYLESS, summary="Which teacher answers", **_QUESTIONS)
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


@router.get(
    "/admin/checkpoint", responses=_UNADMITTED, summary="Which checkpoint is served", **_ADMINISTRATION
)
async def checkpoint(request: Request) -> Hosted:
    """Which checkpoint is served, and what goes on."""
    host = _teaching(request).host
    model = host.settings.model
    return Hosted(
        state=host.state, identity=host.teacher.identity, model=None if model is None else model.absolute()
    )


@router.post(
    "/admin/checkpoint",
    response_model=Swapped,
    responses=_SWAP_ERRORS,
    summary="Serve another checkpoint",
    **_ADMINISTRATION,
)
async def swap(request: Request, wanted: Annotated[Swap, _FOLDER]) -> Response:
    """Serves another checkpoint from now on; answers when that one does, or the one before does again."""
    try:
        return respond(await _teaching(request).swapper.swap(wanted))
    except CannotSwap as refusal:
        return error_response(refusal.error)


@router.get("/livez", summary="Does the service live?", **_HEALTH)
async def livez() -> Health:
    """Whether the service lives."""
    return Health(status="alive")


@router.get(
    "/readyz",
    responses={503: {"model": ErrorAnswer, "description": "Not ready."}},
    summary="Can the teacher answer?",
    **_HEALTH,
)
async def readyz(request: Request) -> Health:
    """Whether the teacher can answer."""
    with _teaching(request).host.lease():
        return Health(status="ready")


@router.get("/metrics", response_class=Response, summary="Figures for Prometheus", **_HEALTH)
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

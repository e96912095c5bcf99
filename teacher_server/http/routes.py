"""The routes of the HTTP API: questions, administration, health and metrics."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response, Security
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from teacher_api.schemas import (
    Answer,
    BatchAnswer,
    ErrorAnswer,
    ErrorBody,
    Health,
    Hosted,
    Question,
    Swap,
    Swapped,
    TeacherInfo,
)
from teacher_server.http.request_context import context_of, while_client_waits
from teacher_server.http.responses import (
    answer_response,
    batch_response,
    error_response,
    respond,
    unprocessable,
)
from teacher_server.service.outcomes import Outcome, counts
from teacher_server.service.state import ServiceState
from teacher_server.service.swap import CannotSwap


def _or_error(value: Any, validate: ValidatorFunctionWrapHandler) -> Question | ErrorBody:
    try:
        question: Question = validate(value)
    except ValidationError as error:
        return unprocessable(error.errors(include_url=False))
    return question


def _error(description: str) -> dict[str, Any]:
    return {"model": ErrorAnswer, "description": description}


_Responses = dict[int | str, dict[str, Any]]

_KEY_ERRORS: _Responses = {
    401: _error("The service requires an API key, and the request has no valid one."),
    422: _error("A header is not valid; `field` names it."),
}
_ERRORS: _Responses = {
    **_KEY_ERRORS,
    400: _error("The body cannot be parsed."),
    413: _error("The body, the batch or the picture is too large."),
    422: _error("The question or a header is not valid; `field` names the part that is wrong."),
    429: _error("The client has used its quota. Retry after the seconds in `Retry-After`."),
    502: _error("The teacher's answer could not be read; `raw` holds its text."),
    503: _error("The teacher is not ready or overloaded. Retry after the seconds in `Retry-After`."),
    504: _error("The teacher did not answer in time."),
}
_EXAMPLE = {
    "probabilities": {"left": 0.002, "right": 0.002, "forward": 0.996},
    "action": "forward",
    "analysis": "Agent: column 1, row 1, facing right. Target: the green goal square at column 4, row 4.",
    "stages": {
        "analysis": {"text": "Agent: column 1, row 1, facing right. ...", "tokens": 0, "milliseconds": 1.8},
        "action": {"text": '{"left": 0.002, "right": 0.002, ...}', "tokens": 0, "milliseconds": 0.0},
    },
    "teacher": "planner-41a21daf5e1d557e",
    "stored": False,
    "milliseconds": {"waiting": 0.1, "picture": 0.6, "teacher": 2.0, "total": 2.9},
}
_ANSWERED: _Responses = {200: {"content": {"application/json": {"example": _EXAMPLE}}}}
_BATCH_ERRORS: _Responses = {status: _ERRORS[status] for status in (400, 401, 413, 422, 429, 503)}
_ADMIN_ERRORS: _Responses = {
    401: _error("The request has no valid admin key."),
    403: _error("The service has no admin key and refuses all administration."),
}
_SWAP_ERRORS: _Responses = {
    **_ADMIN_ERRORS,
    **{status: _ERRORS[status] for status in (400, 413, 429)},
    409: _error("The teacher cannot swap checkpoints, or not now. Nothing was changed."),
    422: _error("The checkpoint cannot be served here. Nothing was changed."),
    500: _error("Neither the new checkpoint nor the previous one could be loaded. The service ends."),
    502: _error("The new checkpoint failed when it was loaded or tried. The previous one answers again."),
    503: _error("The teacher is not ready. Nothing was changed."),
}

TAGS = [
    {"name": "Questions", "description": "Ask the teacher. Requires an API key if the service has one."},
    {"name": "Administration", "description": "Swap the checkpoint. Requires the admin key."},
    {"name": "Health and metrics", "description": "For orchestrators and Prometheus. Requires no key."},
]
_QUESTIONS: dict[str, Any] = {
    "tags": ["Questions"],
    # For the schema alone: `AuthenticationMiddleware` checks the key
    "dependencies": [Security(HTTPBearer(scheme_name="API key", auto_error=False))],
}
_ADMINISTRATION: dict[str, Any] = {
    "tags": ["Administration"],
    "dependencies": [Security(HTTPBearer(scheme_name="Admin key", auto_error=False))],
}
_HEALTH: dict[str, Any] = {"tags": ["Health and metrics"]}
_FOLDER = Body(openapi_examples={"folder": {"summary": "a folder", "value": {"model": "/models/NAME"}}})

router = APIRouter()


@router.post(
    "/policy", response_model=Answer, responses=_ANSWERED | _ERRORS, summary="Ask a question", **_QUESTIONS
)
async def policy(request: Request, question: Question) -> Response:
    """Asks the teacher what to do in a picture of a grid world.

    The teacher analyses the picture in its first stage and chooses among the actions in its second stage. The
    answer holds a probability for each of the question's actions, in the order of the question.

    A stored answer is returned at once, with `stored` true. Equal questions that arrive at the same time are
    sent to the teacher once. An answer is never made up: if the teacher's text cannot be read, the status is
    502.
    """
    (outcome,) = await _outcomes(request, [question])
    return answer_response(outcome)


@router.post(
    "/policy/batch",
    response_model=BatchAnswer,
    responses=_BATCH_ERRORS,
    summary="Ask a batch of questions",
    **_QUESTIONS,
)
async def policy_batch(
    request: Request,
    questions: Annotated[list[Annotated[Question, WrapValidator(_or_error)]], Body(min_length=1)],
) -> Response:
    """Asks many questions in one request.

    The response has status 200 and holds an outcome for each question, in order. Each outcome has its own
    status: 200 with an answer, or another status with an error. A question that is not valid does not affect
    the others.
    """
    most = ServiceState.of(request).settings.max_batch
    if len(questions) > most:
        reason = f"{len(questions)} questions in a batch; at most {most} are allowed"
        return error_response(ErrorBody(status=413, reason=reason))
    return batch_response(await _outcomes(request, questions))


@router.get("/teacher", responses=_KEY_ERRORS, summary="Describe the teacher", **_QUESTIONS)
async def teacher(request: Request) -> TeacherInfo:
    """Returns the teacher's identity, what the identity is a digest of, its tasks and its state."""
    host = ServiceState.of(request).host
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
    "/admin/checkpoint", responses=_ADMIN_ERRORS, summary="Describe the checkpoint", **_ADMINISTRATION
)
async def checkpoint(request: Request) -> Hosted:
    """Returns the folder of the served checkpoint, and the state of the service."""
    host = ServiceState.of(request).host
    model = host.settings.model
    return Hosted(
        state=host.state, identity=host.teacher.identity, model=None if model is None else model.absolute()
    )


@router.post(
    "/admin/checkpoint",
    response_model=Swapped,
    responses=_SWAP_ERRORS,
    summary="Swap the checkpoint",
    **_ADMINISTRATION,
)
async def swap(request: Request, wanted: Annotated[Swap, _FOLDER]) -> Response:
    """Serves another checkpoint without a restart of the service.

    The new checkpoint is checked first; until then nothing changes. The service then finishes the questions
    in hand, loads the checkpoint, asks it about each task and runs a vision check. The response is sent when
    the new checkpoint answers, or, if it fails, when the previous checkpoint answers again.
    """
    try:
        return respond(await ServiceState.of(request).swapper.swap(wanted))
    except CannotSwap as refusal:
        return error_response(refusal.error)


@router.get("/livez", summary="Liveness", **_HEALTH)
async def livez() -> Health:
    """Answers 200 as long as the service runs, also while the teacher is not ready."""
    return Health(status="alive")


@router.get(
    "/readyz",
    responses={503: {"model": ErrorAnswer, "description": "The teacher is not ready."}},
    summary="Readiness",
    **_HEALTH,
)
async def readyz(request: Request) -> Health:
    """Answers 200 while the teacher can answer questions, otherwise 503."""
    with ServiceState.of(request).host.lease():
        return Health(status="ready")


@router.get("/metrics", response_class=Response, summary="Metrics", **_HEALTH)
async def metrics(request: Request) -> Response:
    """Returns the metrics of the service in Prometheus's text format."""
    return Response(ServiceState.of(request).metrics.page(), media_type=CONTENT_TYPE_LATEST)


async def _outcomes(request: Request, questions: Sequence[Question | ErrorBody]) -> list[Outcome]:
    """Returns the outcomes; the work on them is cancelled when the client disconnects."""
    context, service = context_of(request.scope), ServiceState.of(request).service
    asking = service.answer(questions, client=context.client, patience_s=context.patience_s)
    outcomes = await while_client_waits(request, asking)
    context.log_fields = counts(outcomes)
    return outcomes

"""Responses: models and answers as JSON, and every error as an `ErrorAnswer`."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from teacher_api.schemas import ErrorAnswer, ErrorBody, Failed
from teacher_api.validation import sentence
from teacher_server.service.outcomes import AnswerJson, Outcome
from teacher_server.service.state import ServiceState


def respond(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Returns a model as a JSON response."""
    return _json(model.model_dump_json(), status, headers)


def answer_response(outcome: Outcome) -> Response:
    """Returns the outcome of one question as a response."""
    return error_response(outcome) if isinstance(outcome, ErrorBody) else _json(outcome.text)


def batch_response(outcomes: Sequence[Outcome]) -> Response:
    """Returns the outcomes of a batch as a `BatchAnswer`, joined from the JSON texts of its answers."""
    items = [
        f'{{"status":200,"answer":{outcome.text}}}'
        if isinstance(outcome, AnswerJson)
        else Failed(status=outcome.status, error=outcome).model_dump_json()
        for outcome in outcomes
    ]
    return _json(f'{{"answers":[{",".join(items)}]}}')


def error_response(body: ErrorBody, headers: Mapping[str, str] | None = None) -> Response:
    """Returns an error as a response, with its status and headers."""
    return respond(ErrorAnswer(error=body), body.status, body.headers or headers)


def unprocessable(problems: Sequence[Any]) -> ErrorBody:
    """Returns the first of Pydantic's problems as an error, each with its field and value."""
    fields, reasons = zip(*(_in_words(problem) for problem in problems[:5]), strict=True)
    return ErrorBody(status=422, field=fields[0], reason="; ".join(reasons))


def _in_words(problem: Any) -> tuple[str | None, str]:
    if problem["type"] == "json_invalid":
        return None, f"the body is not JSON: {problem['ctx']['error']}"
    if isinstance(problem["input"], bytes):
        return None, "the body is not JSON: its content type is not application/json"
    path = [part for part in problem["loc"] if part != "body"]
    if not path:
        return None, sentence(problem, "")
    field = reprlib.repr(path[0]).strip("'")  # chosen by the client: shortened and escaped
    return field, sentence(problem, field)


async def on_invalid(request: Request, error: Exception) -> Response:
    """Answers 422: the request does not match its schema."""
    assert isinstance(error, RequestValidationError)
    ServiceState.of(request).metrics.failures.labels("422").inc()
    return error_response(unprocessable(error.errors()))


async def on_http_error(_: Request, error: Exception) -> Response:
    """Answers with the status of an HTTP error that a route or the framework raised."""
    assert isinstance(error, HTTPException)
    return error_response(ErrorBody(status=error.status_code, reason=error.detail), error.headers)


async def on_not_ready(_: Request, error: Exception) -> Response:
    """Answers 503: no teacher can answer now."""
    return error_response(ErrorBody(status=503, reason=str(error), retry_after=1.0))


def _json(text: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(text, status, headers, media_type="application/json")

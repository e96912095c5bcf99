"""Responses: models as JSON, and every error as an `ErrorAnswer`."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from teacher_api.schemas import (
    ErrorAnswer,
    ErrorBody,
)
from teacher_api.validation import sentence


def respond(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A model as a JSON response."""
    return Response(model.model_dump_json(), status, headers, media_type="application/json")


def error_response(body: ErrorBody, headers: Mapping[str, str] | None = None) -> Response:
    """An error as a response with its status and its headers."""
    return respond(ErrorAnswer(error=body), body.status, body.headers or headers)


def unprocessable(problems: Sequence[Any]) -> ErrorBody:
    """Pydantic's problems in words, the first few, each with the field and the value."""
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
    field = reprlib.repr(path[0]).strip("'")  # a client may name fields as it likes: short, and escaped
    return field, sentence(problem, field)


async def on_invalid(request: Request, error: Exception) -> Response:
    """422: the request does not match its schema."""
    assert isinstance(error, RequestValidationError)
    request.app.state.teaching.metrics.failures.labels("422").inc()
    return error_response(unprocessable(error.errors()))


async def on_http_error(_: Request, error: Exception) -> Response:
    """An HTTP error that a route or the framework raised."""
    assert isinstance(error, HTTPException)
    return error_response(ErrorBody(status=error.status_code, reason=error.detail), error.headers)


async def on_not_ready(_: Request, error: Exception) -> Response:
    """503: there is no teacher to ask now."""
    return error_response(ErrorBody(status=503, reason=str(error), retry_after=1.0))

"""Request context: middleware for a request's client, id and time limit, its log line and its metrics."""

import asyncio
import logging
import math
import re
import secrets
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from teacher_api.schemas import ErrorAnswer, ErrorBody
from teacher_server.service.logs import request_id
from teacher_server.service.metrics import Metrics
from teacher_server.settings import LogRequests

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_NAME = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_OVERLOAD = (429, 503)
GONE = 499
"""The status, for log and metrics, of a request whose client disconnected."""


@dataclass
class RequestContext:
    """What the service knows of a request besides its content.

    Attributes:
        client: The client's name: of its key, or else of the header X-Client, or else its address.
        request_id: The id in the response and in the log: the header X-Request-ID, or else a random one.
        patience_s: Seconds that the client will wait for the response.
        log_fields: Further fields of the request's log line.
    """

    client: str
    request_id: str
    patience_s: float = math.inf
    log_fields: dict[str, Any] = field(default_factory=dict)


class RefusedMidway(HTTPException):
    """The request is refused while its body is being read."""

    def __init__(self, error: ErrorBody) -> None:
        super().__init__(error.status, error.reason, error.headers)


class RequestContextMiddleware:
    """The outermost middleware: gives each request its context.

    Reads the headers X-Request-ID, X-Client and X-Timeout-S, adds the request's id and the security headers
    to the response, turns unexpected errors into a 500, counts the request and logs it.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, log: LogRequests) -> None:
        self._app, self._metrics, self._log = app, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        headers = dict(scope["headers"])
        context = RequestContext(_client(scope, headers), _request_id(headers))
        scope.setdefault("state", {})["context"] = context
        request_id.set(context.request_id)
        added = [*_HEADERS, (b"x-request-id", context.request_id.encode())]

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        try:
            context.patience_s = _patience(headers)
            await self._app(scope, receive, send_with_headers)
        except _BadHeader as error:
            await refuse(error.body, send_with_headers)
        except Exception:
            _log.exception("the service failed on a request")
            if not status:
                reason = "the service failed on this request; see the teacher's log"
                await refuse(ErrorBody(status=500, reason=reason), send_with_headers)
        finally:
            self._record(scope, context, status or GONE, time.perf_counter() - began)

    def _record(self, scope: Scope, context: RequestContext, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "")  # the declared path: a client may send any
        self._metrics.requests.labels(route, str(status)).inc()
        failed = status >= 400 and status not in _OVERLOAD
        if self._log == "all" or (self._log == "failed" and failed):
            fields = {"client": context.client, "route": route or "-", "status": status}
            fields |= {"milliseconds": round(seconds * 1000, 1)} | context.log_fields
            _log.info("%s", scope["method"], extra={"fields": fields})


def context_of(scope: Scope) -> RequestContext:
    """Returns the context of a request."""
    context: RequestContext = scope["state"]["context"]
    return context


async def refuse(error: ErrorBody, send: Send, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Sends an error as the response."""
    body = ErrorAnswer(error=error).model_dump_json().encode()
    sent = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    sent += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": sent})
    await send({"type": "http.response.body", "body": body})


async def while_client_waits(request: Request, work: Awaitable[_T]) -> _T:
    """Returns the work's result. Cancels the work when the client disconnects.

    Raises:
        HTTPException: The client disconnected, or the service is stopping.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # the body is read: only a disconnect can follow
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(GONE, "the client disconnected")
        return working.result()
    except asyncio.CancelledError:  # by uvicorn, at the end of the time to stop
        raise HTTPException(503, "the service is stopping", headers={"Retry-After": "1"}) from None
    finally:
        working.cancel()
        gone.cancel()


class _BadHeader(Exception):
    """The value of a header is not valid."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.body = ErrorBody(status=422, field=name, reason=f"{name}: {reason}")


def _client(scope: Scope, headers: dict[bytes, bytes]) -> str:
    name = headers.get(b"x-client", b"")
    address = scope["client"][0] if scope.get("client") else "unknown"
    return name.decode() if _NAME.fullmatch(name) else address


def _request_id(headers: dict[bytes, bytes]) -> str:
    sent = headers.get(b"x-request-id", b"")
    return sent.decode() if _NAME.fullmatch(sent) else secrets.token_hex(8)


def _patience(headers: dict[bytes, bytes]) -> float:
    sent = headers.get(b"x-timeout-s")
    if sent is None:
        return math.inf
    try:
        seconds = float(sent)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise _BadHeader(
            "X-Timeout-S", "must be a number of seconds above 0, the time that the client will wait"
        )
    return seconds

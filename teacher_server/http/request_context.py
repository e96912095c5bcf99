"""How each request is received: who asks, by what id, how long they wait; and what is written down of it."""

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
"""The status of a request whose client went away; nobody reads it."""


@dataclass
class Caller:
    """Who asks.

    Attributes:
        client: by the key that it bears; without keys the name that it gives itself, or its address.
        request_id: by which it can be found in the log; the client's own, where it sends one.
        patience_s: seconds that it will wait.
        told: what the log is to say of this request besides.
    """

    client: str
    request_id: str
    patience_s: float = math.inf
    told: dict[str, Any] = field(default_factory=dict)


class RefusedOnTheWay(HTTPException):
    """A request that is refused while its body is read."""

    def __init__(self, error: ErrorBody) -> None:
        super().__init__(error.status, error.reason, error.headers)


class Reception:
    """The first to see a request and the last to see its answer.

    Reads the headers X-Request-ID, X-Client and X-Timeout-S, gives the answer its id and the headers that
    a browser is to have, turns what nobody foresaw into 500, counts, and writes a line.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, log: LogRequests) -> None:
        self._app, self._metrics, self._log = app, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        headers = dict(scope["headers"])
        caller = Caller(_client(scope, headers), _request_id(headers))
        scope.setdefault("state", {})["caller"] = caller
        request_id.set(caller.request_id)
        told = [*_HEADERS, (b"x-request-id", caller.request_id.encode())]

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *told]
            await send(message)

        try:
            caller.patience_s = _patience(headers)
            await self._app(scope, receive, send_with_headers)
        except _BadHeader as error:
            await refuse(error.body, send_with_headers)
        except Exception:
            _log.exception("the service failed on a request")
            if not status:
                reason = "the service failed on this request; its log says why"
                await refuse(ErrorBody(status=500, reason=reason), send_with_headers)
        finally:
            self._record(scope, caller, status or GONE, time.perf_counter() - began)

    def _record(self, scope: Scope, caller: Caller, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "")  # as it is declared: a client may ask for any path
        self._metrics.requests.labels(route, str(status)).inc()
        failed = status >= 400 and status not in _OVERLOAD
        if self._log == "all" or (self._log == "failed" and failed):
            told = {"client": caller.client, "route": route or "-", "status": status}
            told |= {"milliseconds": round(seconds * 1000, 1)} | caller.told
            _log.info("%s", scope["method"], extra={"told": told})


def caller_of(scope: Scope) -> Caller:
    """Who asks."""
    caller: Caller = scope["state"]["caller"]
    return caller


async def refuse(error: ErrorBody, send: Send, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Answers with an error."""
    body = ErrorAnswer(error=error).model_dump_json().encode()
    told = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    told += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": told})
    await send({"type": "http.response.body", "body": body})


async def while_client_waits(request: Request, work: Awaitable[_T]) -> _T:
    """The work's result; it is cancelled when the client goes away.

    Raises:
        HTTPException: the client is gone, or the service is stopping.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # the body is read: all that can come is the end
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(GONE, "the client went away")
        return working.result()
    except asyncio.CancelledError:  # by the server, when its time to stop is over
        raise HTTPException(503, "the service is stopping", headers={"Retry-After": "1"}) from None
    finally:
        working.cancel()
        gone.cancel()


class _BadHeader(Exception):
    """A header that cannot be used."""

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
        raise _BadHeader("X-Timeout-S", "seconds that the client will wait, a number above 0")
    return seconds

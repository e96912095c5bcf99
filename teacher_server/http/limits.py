"""Limits: middleware that bounds the questions and bytes in the service and shares them among clients."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from teacher_api.schemas import ErrorBody
from teacher_server.http.request_context import RefusedMidway, context_of, refuse
from teacher_server.service.quotas import Quota

_LIMITED = ("/policy", "/playground/", "/admin/")
"""Prefixes of the paths whose bodies are counted, and refused above a limit."""


class LimitsMiddleware:
    """Refuses a request whose client has used its quota of questions or bytes, before the body is read.

    Args:
        questions: The questions in the service.
        body_bytes: The bytes of all request bodies in the service. Decoding a body takes a few times as much
            memory.
        limit: Bytes of one body.
    """

    def __init__(self, app: ASGIApp, questions: Quota, body_bytes: Quota, limit: int) -> None:
        self._app, self._questions, self._bytes, self._limit = app, questions, body_bytes, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_LIMITED):
            await self._app(scope, receive, send)
            return
        client = context_of(scope).client
        held = int(dict(scope["headers"]).get(b"content-length", b"0"))
        if (refusal := self._refusal(client, held, held)) is not None:
            await refuse(refusal, send)
            return
        received = 0

        async def receive_at_most() -> Message:
            nonlocal received, held
            message = await receive()
            received += len(message.get("body", b""))
            if (beyond := received - held) > 0:  # the request states no content length
                if (refusal := self._refusal(client, received, beyond)) is not None:
                    raise RefusedMidway(refusal)
                self._bytes.take(client, beyond)
                held = received
            return message

        self._bytes.take(client, held)
        try:
            await self._app(scope, receive_at_most, send)
        finally:
            self._bytes.give_back(client, held)

    def _refusal(self, client: str, size: int, more: int) -> ErrorBody | None:
        if size > self._limit:
            reason = f"the body has more than {self._limit} bytes; send fewer questions at once"
            return ErrorBody(status=413, reason=reason)
        if not self._questions.available(client):
            return self._questions.refusal(client)
        if more > self._bytes.available(client):
            return self._bytes.refusal(client)
        return None

"""What is let in: a bounded amount of questions and bytes, shared among clients, before anything is read."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from teacher_api.schemas import ErrorBody
from teacher_server.http.request_context import RefusedOnTheWay, caller_of, refuse
from teacher_server.service.quotas import Share

_GUARDED = ("/policy", "/look/", "/admin/")
"""How the paths begin whose bodies are counted, and refused where there is no room."""
_RETRY_AFTER_S = 1.0


class Admission:
    """Refuses a request before its body is read, where its client has no room for questions or bytes.

    Args:
        questions: those in the service.
        body_bytes: those of all bodies that are here; what a body turns into is a few times that.
        limit: bytes of one body.
    """

    def __init__(self, app: ASGIApp, questions: Share, body_bytes: Share, limit: int) -> None:
        self._app, self._questions, self._bytes, self._limit = app, questions, body_bytes, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_GUARDED):
            await self._app(scope, receive, send)
            return
        client = caller_of(scope).client
        held = int(dict(scope["headers"]).get(b"content-length", b"0"))
        if (refusal := self._refusal(client, held, held)) is not None:
            await refuse(refusal, send)
            return
        came = 0

        async def receive_at_most() -> Message:
            nonlocal came, held
            message = await receive()
            came += len(message.get("body", b""))
            if (beyond := came - held) > 0:  # a body whose length was not told
                if (refusal := self._refusal(client, came, beyond)) is not None:
                    raise RefusedOnTheWay(refusal)
                self._bytes.take(client, beyond)
                held = came
            return message

        self._bytes.take(client, held)
        try:
            await self._app(scope, receive_at_most, send)
        finally:
            self._bytes.give(client, held)

    def _refusal(self, client: str, size: int, more: int) -> ErrorBody | None:
        if size > self._limit:
            reason = f"the body has more than {self._limit} bytes; ask fewer questions at once"
            return ErrorBody(status=413, reason=reason)
        if not self._questions.room(client):
            return self._questions.refusal(client)
        if more > self._bytes.room(client):
            return self._bytes.refusal(client)
        return None

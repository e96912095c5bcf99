"""uvicorn's HTTP protocol with limits on slow, idle and too many connections."""

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from teacher_api.schemas import ErrorAnswer, ErrorBody

_MOST_HEAD = 16 * 1024
"""Limit in bytes for the request line and the headers."""


class BoundedHttp(HttpToolsProtocol):
    """Closes a connection when the request is not received, or the response not taken, within some seconds.

    Args:
        within_s: Seconds from the first byte of the connection, or of a later request, to the last byte of
            the request; and seconds that a response may wait for the client to take it.
        most: Simultaneous connections.
    """

    def __init__(self, *, within_s: float, most: int, **given: Any) -> None:
        super().__init__(**given)
        self._within_s, self._most = within_s, most
        self._deadline: asyncio.TimerHandle | None = None
        self._head: int | None = None
        """Bytes of the head that is being read, without its first packet; None: no head is being read."""
        self._refusal = ErrorBody(status=400, reason="this is not a valid HTTP request")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > self._most:
            self._refuse(
                ErrorBody(status=503, reason="too many connections; connect again later", retry_after=1)
            )
        else:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        began = self._head is not None
        super().data_received(data)
        if began and self._head is not None and not self.transport.is_closing():
            self._head += len(data)
            if self._head > _MOST_HEAD:
                self._refuse(_too_large())

    def on_message_begin(self) -> None:
        self._head = 0
        self._arm()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head = None
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > _MOST_HEAD:
            self._refusal = _too_large()
            raise ValueError  # stops the parser; `send_400_response` follows
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._disarm()
        super().on_message_complete()

    def pause_writing(self) -> None:
        self._arm()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._disarm()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal)

    def _refuse(self, error: ErrorBody) -> None:
        body = ErrorAnswer(error=error).model_dump_json().encode()
        lines = [
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        ]
        lines += [f"{name}: {value}" for name, value in error.headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()

    def _arm(self) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(self._within_s, self.transport.abort)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _too_large() -> ErrorBody:
    return ErrorBody(status=431, reason=f"the request line and the headers have more than {_MOST_HEAD} bytes")

"""HTTP servers with scripted replies."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request: its path, its JSON body, and its headers by lower-case names."""

    path: str
    body: Any
    headers: dict[str, str]
    handler: BaseHTTPRequestHandler = field(repr=False)


Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]] | None
"""Status, the body, sent as JSON unless it is bytes, and further headers; None closes the connection."""


@dataclass(eq=False)
class HttpServer:
    """Listens on 127.0.0.1; `asked` has the requests so far, `answer` makes the replies."""

    port: int
    answer: Callable[[Asked], Answer]
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def http_server(answer: Callable[[Asked], Answer]) -> Iterator[HttpServer]:
    """Runs a server for the time of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # sends headers and body together

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.path, body, headers, self)
            served.asked.append(asked)
            told = served.answer(asked)
            if told is None:
                self.close_connection = True
                return
            status, content, more = (*told, {})[:3]
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        served = HttpServer(server.server_port, answer)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
            for asked in served.asked:  # or kept-alive connections would still get replies
                with suppress(OSError):
                    asked.handler.connection.shutdown(socket.SHUT_RDWR)

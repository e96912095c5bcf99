"""Runs the service on a port of its own until it is told to stop."""

import errno
import logging
import os
import signal
import socket
import sys

import uvicorn

from teacher_server.app import State, create_app
from teacher_server.settings import Settings

_GRACE_S = 5
"""For requests in hand when the service is told to stop; `docker stop` kills after 10 s."""


class CannotListen(Exception):
    """The address cannot be listened on; the message says what to do."""


def serve(settings: Settings) -> int:
    """Answers until SIGTERM or SIGINT, then lets requests in hand finish.

    Returns:
        The exit code: 0, or 1 if the teacher could not start or is gone.

    Raises:
        BadKeyFile: the file of the key holds none.
        CannotListen: the address is taken or is not ours.
        CannotTeach: there cannot be a teacher as the settings ask for it.
        StoreError: the answer store cannot be used.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    with _listen(settings.host, settings.port) as listener:
        app = create_app(settings)
        teaching: State = app.state.teaching
        # uvicorn raises the signal that stopped it once more when it is done: then it is no error
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE_S, server_header=False
        )
        _Server(config, f"listening on {_url(listener)} as {teaching.host.teacher.identity}").run([listener])
    if teaching.host.failure is not None:
        print(f"teacher: error: the teacher {teaching.host.failure}", file=sys.stderr, flush=True)
        if teaching.host.hangs:
            os._exit(1)  # a thread in a driver could keep the process from ending otherwise
        return 1
    return 0


class _Server(uvicorn.Server):
    """Says where it listens as soon as it answers."""

    def __init__(self, config: uvicorn.Config, greeting: str) -> None:
        super().__init__(config)
        self._greeting = greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"teacher: {self._greeting}", flush=True)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotListen(f"port {port} on {host} is in use; choose another with --port") from error
        raise CannotListen(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

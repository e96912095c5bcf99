"""`teacher serve`: answers questions over HTTP."""

import errno
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import Any

import uvicorn

from teacher_api.command_line import CannotStart, fail
from teacher_server.answers.errors import StoreError
from teacher_server.app import create_app
from teacher_server.http.connections import BoundedHttp
from teacher_server.service.logs import write_logs
from teacher_server.service.state import ServiceState
from teacher_server.settings import Settings
from teacher_server.teachers.registry import CannotTeach

SWITCH_S = 0.0005
"""Seconds that a thread may run before others get their turn, a tenth of Python's default: planning and
decoding must not delay requests that are refused."""


class CannotListen(CannotStart):
    """The service cannot listen on the address; the message says what to do."""


def main(settings: Settings) -> int:
    """Runs the command; returns the exit code of `serve`."""
    try:
        return serve(settings)
    except (CannotTeach, StoreError) as error:
        raise CannotStart(str(error)) from error


def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT, then finishes the requests in progress.

    Returns:
        The exit code: 0, or 1 if the teacher could not start or has failed.

    Raises:
        BadKeyFile: a file of keys cannot be used.
        CannotListen: the address is in use or not of this machine, or needs API keys that are not set.
        CannotTeach: the settings of the teacher cannot be used.
        StoreError: the answer store cannot be used.
    """
    write_logs(settings.log_format)
    sys.setswitchinterval(SWITCH_S)
    _allow_connections()
    with _listen(settings.host, settings.port) as listener:
        app = create_app(settings)
        state: ServiceState = app.state.service
        check_keys(settings, keyless=state.keyless, address=listener.getsockname()[0])
        # uvicorn raises the signal again after its shutdown; by then the signal is no error
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        http: Any = partial(BoundedHttp, within_s=settings.receive_s, most=settings.max_connections)
        config = uvicorn.Config(
            app,
            http=http,
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=settings.drain_s,
            server_header=False,
        )
        _Server(config, f"listening on {_url(listener)} as {state.host.teacher.identity}").run([listener])
    if state.host.failure is not None:
        fail(f"the teacher {state.host.failure}", 1)
        if state.host.unresponsive:
            os._exit(1)  # a thread that hangs in a driver would keep the process alive
        return 1
    return 0


def check_keys(settings: Settings, *, keyless: bool, address: str) -> None:
    """Checks that nobody on a network reaches the service without a key, unless the settings allow it.

    Args:
        keyless: whether no API key is required.
        address: the IP address that is listened on.

    Raises:
        CannotListen: others could reach it.
    """
    if keyless and not settings.allow_keyless and not ip_address(address).is_loopback:
        raise CannotListen(
            f"`host` {settings.host} is not a loopback address, so the service requires API keys: set"
            " `api_key_file`, or `allow_keyless` if the network restricts access"
        )


class _Server(uvicorn.Server):
    """Prints the address when the server answers."""

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
            raise CannotListen(f"port {port} on {host} is in use: choose another `port`") from error
        raise CannotListen(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error


def _allow_connections() -> None:
    """Raises the limit of open files to the system's maximum; the settings limit connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

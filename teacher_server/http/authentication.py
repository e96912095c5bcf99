"""API keys: middleware that checks the key of a request before the body is read."""

import logging
import secrets
import time
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from teacher_api.keys import BadKeyFile, read_keys
from teacher_api.schemas import ErrorBody
from teacher_server.http.request_context import context_of, refuse

_log = logging.getLogger(__name__)

QUESTIONS = ("/policy", "/teacher", "/playground")
ADMINISTRATION = ("/admin",)
"""Prefixes of the paths that require a key. Health, metrics, documentation and the bare page require none."""

_CHECK_EVERY_S = 1.0


class ApiKeys:
    """The keys of a file, which is read again when it changes, so that keys come and go without a restart."""

    def __init__(self, path: Path | None) -> None:
        """Raises BadKeyFile: see `read_keys`."""
        self._path = path
        self._names = self._read()
        self._checked, self._version = time.monotonic(), self._stamp()

    @property
    def empty(self) -> bool:
        """Whether there is no key to require."""
        return not self._names

    def name_of(self, key: bytes) -> str | None:
        """Returns the name of a key, None for an unknown one. The time depends on the key's length alone."""
        self._reload()
        found = None
        for known, name in self._names.items():
            if secrets.compare_digest(known, key):
                found = name
        return found

    def _reload(self) -> None:
        now = time.monotonic()
        if now - self._checked < _CHECK_EVERY_S:
            return
        self._checked = now
        if (version := self._stamp()) == self._version:
            return
        self._version = version
        try:
            names = self._read()
        except BadKeyFile:
            _log.error("the key file can no longer be read: the previous keys stay valid")
            return
        if not names and self._names:  # the file is being written, or by mistake: never open the service
            _log.error("the key file no longer holds any key: the previous keys stay valid")
            return
        self._names = names

    def _read(self) -> dict[bytes, str]:
        keys = read_keys(self._path) if self._path is not None else {}
        return {key.encode(): name for key, name in keys.items()}

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino)


class AuthenticationMiddleware:
    """Answers 401 to requests without a valid key, before their bodies are read.

    Args:
        paths: Prefixes of the paths that require a key.
        setting: The setting that names the key file.
        closed: Whether requests are refused (403) rather than served when there is no key to require.
    """

    def __init__(
        self, app: ASGIApp, keys: ApiKeys, paths: tuple[str, ...], setting: str, *, closed: bool = False
    ) -> None:
        self._app, self._keys, self._paths, self._closed = app, keys, paths, closed
        self._setting = setting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self._paths):
            refusal = self._refusal(scope)
            if refusal is not None:
                challenge = [(b"www-authenticate", b"Bearer")] if refusal.status == 401 else []
                await refuse(refusal, send, challenge)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ErrorBody | None:
        sent = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = sent.partition(b" ")
        name = self._keys.name_of(key.strip() if scheme.lower() == b"bearer" else b"")
        if name is not None:
            context_of(scope).client = name
            return None
        if self._keys.empty:
            reason = f"this teacher has no key for these requests: start it with `{self._setting}`"
            return ErrorBody(status=403, reason=reason) if self._closed else None
        what = "the key of the request is not valid" if sent else "this teacher requires a key"
        header = "send the header `Authorization: Bearer KEY` with a key from the file of"
        return ErrorBody(status=401, reason=f"{what}: {header} `{self._setting}`")

"""Who checks the keys that requests have to bear, before their bodies are read."""

import logging
import secrets
import time
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from teacher_api.keys import BadKeyFile, read_keys
from teacher_api.schemas import ErrorBody
from teacher_server.http.request_context import caller_of, refuse

_log = logging.getLogger(__name__)

QUESTIONS = ("/policy", "/teacher", "/look")
ADMINISTRATION = ("/admin",)
"""How the paths begin that need a key of their own; health, metrics, documents and the bare page are open."""

_LOOK_AGAIN_S = 1.0


class KeyRing:
    """The keys of a file, read again when it changes, so that a teacher goes on while keys come and go."""

    def __init__(self, path: Path | None) -> None:
        """Raises BadKeyFile: see `read_keys`."""
        self._path = path
        self._names = self._read()
        self._looked, self._version = time.monotonic(), self._stamp()

    @property
    def empty(self) -> bool:
        """Whether there is no key that could be asked for."""
        return not self._names

    def bearer(self, key: bytes) -> str | None:
        """Who bears this key; None: nobody. It takes as long for every key of one length."""
        self._look_again()
        found = None
        for known, name in self._names.items():
            if secrets.compare_digest(known, key):
                found = name
        return found

    def _look_again(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_AGAIN_S:
            return
        self._looked = now
        if (version := self._stamp()) == self._version:
            return
        self._version = version
        try:
            names = self._read()
        except BadKeyFile:
            _log.error("the file of the keys cannot be read any more: those before go on to be asked for")
            return
        if not names and self._names:  # it is being written, or a mistake: no reason to let everybody in
            _log.error("the file of the keys holds none any more: those before go on to be asked for")
            return
        self._names = names

    def _read(self) -> dict[bytes, str]:
        keys = read_keys(self._path) if self._path is not None else {}
        return {key.encode(): name for key, name in keys.items()}

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            told = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return told and (told.st_mtime_ns, told.st_size, told.st_ino)


class KeyGuard:
    """Answers 401 to requests without a key, before their bodies are read.

    Args:
        paths: how the paths begin that need it.
        flag: of the file that holds the keys.
        closed: whether nobody is let in (403) where there is no key to ask for, instead of everybody.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyRing, paths: tuple[str, ...], flag: str, *, closed: bool = False
    ) -> None:
        self._app, self._keys, self._paths, self._flag, self._closed = app, keys, paths, flag, closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self._paths):
            refusal = self._refusal(scope)
            if refusal is not None:
                asked = [(b"www-authenticate", b"Bearer")] if refusal.status == 401 else []
                await refuse(refusal, send, asked)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ErrorBody | None:
        told = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = told.partition(b" ")
        bearer = self._keys.bearer(key.strip() if scheme.lower() == b"bearer" else b"")
        if bearer is not None:
            caller_of(scope).client = bearer
            return None
        if self._keys.empty:
            reason = f"this teacher has no key for it: start it with {self._flag} FILE"
            return ErrorBody(status=403, reason=reason) if self._closed else None
        what = "the request bears another key than this teacher's" if told else "this teacher asks for a key"
        header = f"send the header Authorization: Bearer KEY, KEY being what {self._flag} holds"
        return ErrorBody(status=401, reason=f"{what}: {header}")

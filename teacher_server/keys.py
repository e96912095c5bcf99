"""The keys that a teacher's requests have to bear: where they are read from, and who checks them."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from teacher_server.command_line import CannotStart
from teacher_server.schemas import ErrorAnswer, ErrorBody

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

QUESTIONS = ("/policy", "/teacher", "/look")
ADMINISTRATION = ("/admin",)
"""How the paths begin that need a key of their own; health, metrics, documents and the bare page are open."""


class BadKeyFile(CannotStart):
    """A file that no key can be read from, and what to do."""


def read_key(path: Path | None) -> str | None:
    """The key in a file, without white space around it; None without a file, or where it is empty.

    Raises:
        BadKeyFile: it cannot be read, or holds something else than one line of printable ASCII.
    """
    if path is None:
        return None
    try:
        key = path.read_bytes().decode("latin-1").strip(" \t\r\n")
    except OSError as error:
        raise BadKeyFile(
            f"cannot read the key in {path}: {error.strerror}; give a file that holds it"
        ) from error
    if key and not is_key(key):
        raise BadKeyFile(f"{path} holds no key: write one line of printable ASCII characters into it")
    return key or None


def is_key(text: str) -> bool:
    """Whether a text can be a key: one line of printable ASCII, not empty, no space at its ends."""
    return bool(text) and text.isascii() and text.isprintable() and text == text.strip()


class KeyGuard:
    """Answers 401 to requests without the key, before their bodies are read.

    Args:
        key: None: nobody is let in, and gets 403.
        paths: how the paths begin that need it.
        flag: of the file that holds it.
    """

    def __init__(self, app: "ASGIApp", key: str | None, paths: tuple[str, ...], flag: str) -> None:
        self._app, self._paths, self._flag = app, paths, flag
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "http" and scope["path"].startswith(self._paths):
            refusal = self._refusal(dict(scope["headers"]).get(b"authorization", b""))
            if refusal is not None:
                await _refuse(refusal, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, told: bytes) -> ErrorBody | None:
        if self._key is None:
            reason = f"this teacher has no key for it: start it with {self._flag} FILE"
            return ErrorBody(status=403, reason=reason)
        scheme, _, key = told.partition(b" ")
        if scheme.lower() == b"bearer" and secrets.compare_digest(key.strip(), self._key):
            return None
        what = "the request bears another key than this teacher's" if told else "this teacher asks for a key"
        header = f"send the header Authorization: Bearer KEY, KEY being what {self._flag} holds"
        return ErrorBody(status=401, reason=f"{what}: {header}")


async def _refuse(error: ErrorBody, send: "Send") -> None:
    body = ErrorAnswer(error=error).model_dump_json().encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

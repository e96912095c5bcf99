"""Errors of the answer store: messages for the user who opens it, and short causes for the service's log."""

import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)

_SQLITE_PERM, _SQLITE_AUTH = 3, 23
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_ENVIRONMENT = _BUSY | {
    _SQLITE_PERM,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    _SQLITE_AUTH,
}
"""SQLite's result codes that report a problem of disk, memory or locking, not of the file's content."""

DAMAGED_ANSWER = "a stored answer is damaged; the teacher answers the question again"


class StoreError(Exception):
    """The answer store cannot be used; the message names the file and says what to do.

    `cause` gives the reason in a few words, without paths and without anything from a question.
    """

    def __init__(self, message: str, cause: str = "cannot be used") -> None:
        super().__init__(message)
        self.cause = cause


class FailureLog:
    """Logs failures of the store: at most one line per cause and minute."""

    def __init__(self, *, every_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s, self._clock = every_s, clock
        self._logged_at: dict[str, float] = {}
        self._count: Counter[str] = Counter()

    def add(self, error: StoreError) -> None:
        """Logs the failure, or counts it for the next line of the same cause."""
        now, cause = self._clock(), error.cause
        self._count[cause] += 1
        if now - self._logged_at.get(cause, -self._every_s) < self._every_s:
            return
        times = self._count.pop(cause)
        repeated = f" ({times} times since the last message)" if cause in self._logged_at else ""
        self._logged_at[cause] = now
        _log.error("answer store: %s%s", cause, repeated)


def is_damage(error: sqlite3.Error) -> bool:
    """Returns whether the error comes from the file's content, not from disk, memory or locking."""
    return (_code(error) & 0xFF) not in _ENVIRONMENT


def store_error(path: Path, error: sqlite3.Error | OSError) -> StoreError:
    """Returns the error as a `StoreError` that says what to do."""
    if path.is_dir():
        return StoreError(f"the answer store {path} is a folder: set `store` to a file")
    if not path.parent.is_dir():
        return StoreError(
            f"the answer store {path} cannot be created, because {path.parent} is not a folder: create the"
            " folder, or set `store` to another file"
        )
    if isinstance(error, OSError):
        cause = f"{error.strerror or error}"
        return StoreError(f"the answer store {path} cannot be used: {cause}", cause)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    cause = f"{error} ({name})"
    if (_code(error) & 0xFF) in _BUSY:
        return StoreError(
            f"the answer store {path} is locked by another process: {cause}: end that process, or set `store`"
            " to another file",
            cause,
        )
    return StoreError(f"the answer store {path} cannot be used: {cause}", cause)


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR))

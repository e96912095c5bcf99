"""What goes wrong with a store: in words for who starts it, as a cause for the log of a running service."""

import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)

_SQLITE_PERM, _SQLITE_AUTH = 3, 23
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_OF_THE_MACHINE = _BUSY | {
    _SQLITE_PERM,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    _SQLITE_AUTH,
}
"""SQLite's result codes that tell of disk, memory or other processes, and not of what is in the file."""


class StoreError(Exception):
    """The answer store cannot be used; the message says which file and what to do.

    `cause` says what is wrong in a few words, with no path and nothing that was asked in it.
    """

    def __init__(self, message: str, cause: str = "it cannot be used") -> None:
        super().__init__(message)
        self.cause = cause


DAMAGED_ANSWER = "a stored answer is damaged and is asked for again"


class FailureLog:
    """Logs failures of the store, one line for each cause a minute, however often it fails."""

    def __init__(self, *, every_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s, self._clock = every_s, clock
        self._said_at: dict[str, float] = {}
        self._since: Counter[str] = Counter()

    def add(self, error: StoreError) -> None:
        """Logs the failure, or counts it for the cause's next line."""
        now, cause = self._clock(), error.cause
        self._since[cause] += 1
        if now - self._said_at.get(cause, -self._every_s) < self._every_s:
            return
        times = self._since.pop(cause)
        since = f" ({times} times since this was said last)" if cause in self._said_at else ""
        self._said_at[cause] = now
        _log.error("the answer store: %s%s", cause, since)


def tells_of_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite cannot make sense of the file, rather than not get at it."""
    return (_code(error) & 0xFF) not in _OF_THE_MACHINE


def store_error(path: Path, error: sqlite3.Error | OSError) -> StoreError:
    """The error in words, with what to do."""
    if path.is_dir():
        return StoreError(f"{path} is a folder; name a file with --store")
    if not path.parent.is_dir():
        return StoreError(
            f"{path.parent} is no folder, so {path.name} cannot be made in it; name another file with --store"
        )
    if isinstance(error, OSError):
        cause = f"{error.strerror or error}"
        return StoreError(f"the answer store {path} cannot be used: {cause}", cause)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    cause = f"{error} ({name})"
    if (_code(error) & 0xFF) in _BUSY:
        return StoreError(
            f"the answer store {path} is locked by another process: {cause}; end that process, or name"
            " another file with --store",
            cause,
        )
    return StoreError(f"the answer store {path} cannot be used: {cause}", cause)


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR))

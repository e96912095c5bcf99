"""Questions without an answer, counted by reason for the log: a line a minute, however many there are."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from contextvars import Context

from teacher_api.schemas import ErrorBody

_log = logging.getLogger(__name__)

EVERY_S = 60.0
_OVERLOAD = (429, 503)
"""Told by the figures and by who is overloaded or replaced, and asked again by clients."""
_MOST = 5


class FailureLog:
    """Logs the first failures at once, and what comes after them together, a minute later."""

    def __init__(self, *, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._counts: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, errors: Iterable[ErrorBody]) -> None:
        """Counts errors; to be called in the service's event loop."""
        self._counts.update(error.kind for error in errors if error.status not in _OVERLOAD)
        if self._timer is None:
            self._write()

    def close(self) -> None:
        """Logs what was counted and not logged yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell()

    def _write(self) -> None:
        self._timer = None
        if self._counts:
            # A context of its own: these are the failures of many requests, and of no request's id
            context = Context()
            context.run(self._tell)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._every_s, self._write, context=context)

    def _tell(self) -> None:
        if not self._counts:
            return
        kinds = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        told = [f"{count} x {kind}" for kind, count in kinds[:_MOST]]
        others = sum(count for _, count in kinds[_MOST:])
        if others:
            told.append(f"{others} x other reasons")
        total = sum(self._counts.values())
        _log.warning("questions without an answer: %d: %s", total, "; ".join(told))
        self._counts.clear()

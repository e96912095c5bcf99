"""A log of failed questions: a line a minute with the counts of the reasons, however many questions fail."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from contextvars import Context

from teacher_api.failures import in_words
from teacher_api.schemas import ErrorBody

_log = logging.getLogger(__name__)

EVERY_S = 60.0
_OVERLOAD = (429, 503)
"""Not logged: the metrics count these, and clients ask again."""


class QuestionFailureLog:
    """Logs the first failures at once, and those of the following minute together at its end."""

    def __init__(self, *, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._counts: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, errors: Iterable[ErrorBody]) -> None:
        """Counts errors. Call it in the service's event loop."""
        self._counts.update(error.kind for error in errors if error.status not in _OVERLOAD)
        if self._timer is None:
            self._write()

    def close(self) -> None:
        """Logs the failures that are counted and not logged yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._log_counts()

    def _write(self) -> None:
        self._timer = None
        if self._counts:
            # In a new context: the line is about many requests and must not bear the id of one
            context = Context()
            context.run(self._log_counts)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._every_s, self._write, context=context)

    def _log_counts(self) -> None:
        if not self._counts:
            return
        _log.warning("questions without an answer: %d: %s", self._counts.total(), in_words(self._counts))
        self._counts.clear()

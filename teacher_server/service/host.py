"""The host of the teacher: leases it to requests, and exchanges it only when no lease is held."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from teacher_api.schemas import HostState
from teacher_server.answers.store import AnswerStore
from teacher_server.engines.base import EngineUnresponsive
from teacher_server.service.metrics import Metrics
from teacher_server.settings import Settings
from teacher_server.teachers.base import Teacher, name_of

_T = TypeVar("_T")

_ANSWERING: tuple[HostState, ...] = ("ready", "checking")
_REPLACED = ": its engine is being replaced"
_WHY: dict[HostState, str] = {
    "ready": _REPLACED,
    "starting": "",
    "gone": "",
    "replacing": _REPLACED,
    "waiting": ": its server does not answer",
}


class NotReady(Exception):
    """No teacher can answer now; the message says why."""


class Host:
    """Owns the teacher that answers. A teacher stays open while a lease on it is held.

    Attributes:
        teacher: The teacher that answers now; during a swap, the one that answered last.
        settings: The settings that chose the teacher.
        state: What the host is doing.
        loss: Why the teacher no longer answers, until its replacement begins.
        failure: Why no teacher will answer any more: it could not start, or it is gone.
        unresponsive: Whether an engine in this process may keep the process from ending.
    """

    def __init__(
        self,
        teacher: Teacher,
        settings: Settings,
        store: AnswerStore | None,
        metrics: Metrics,
        *,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            teacher: The first teacher, not started yet.
            store: The answer store, where each teacher is registered before its first answer.
            on_end: Called when no teacher will answer any more.

        Raises:
            StoreError: The store cannot be written.
        """
        self.teacher, self.settings = teacher, settings
        self.state: HostState = "starting"
        self.loss: str | None = None
        self.failure: str | None = None
        self.unresponsive = False
        self._store, self._metrics, self._on_end = store, metrics, on_end
        self._leases = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._work: asyncio.Task[Any] | None = None
        self.register(teacher)
        metrics.serving(teacher)

    @property
    def ready(self) -> bool:
        """Whether the teacher answers questions now."""
        return self.state in _ANSWERING and self.loss is None

    @contextmanager
    def lease(self) -> Iterator[Teacher]:
        """Returns the teacher, which stays until the lease ends.

        Raises:
            NotReady: No teacher can answer now.
        """
        if not self.ready:
            why = _WHY.get(self.state, ": its checkpoint is being exchanged")
            raise NotReady(f"the teacher is not ready{why}")
        self._leases += 1
        self._unused.clear()
        try:
            yield self.teacher
        finally:
            self._leases -= 1
            if self._leases == 0:
                self._unused.set()

    async def unused(self) -> None:
        """Waits until no lease is held."""
        await self._unused.wait()

    def register(self, teacher: Teacher) -> None:
        """Registers a teacher in the store.

        Raises:
            StoreError: The store cannot be written.
        """
        if self._store is not None:
            self._store.register(teacher.identity, teacher.description, name_of(teacher))

    def serve(self, teacher: Teacher, settings: Settings) -> None:
        """Answers with a started and registered teacher from now on."""
        self.teacher, self.settings, self.state, self.loss = teacher, settings, "ready", None
        self._metrics.serving(teacher)

    def start(self) -> None:
        """Starts the teacher in the background. If that fails, the service ends."""
        self.begin(self._start())

    def begin(self, work: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        """Starts a task that changes the teacher; only `close` cancels it."""
        self._work = task = asyncio.create_task(work)
        return task

    def lose(self, teacher: Teacher, why: str) -> None:
        """Notes that a teacher no longer answers; the watchdog replaces it."""
        if teacher is self.teacher:
            self.loss = why

    def end(self, why: str, error: Exception | None = None) -> None:
        """Ends the service, since no teacher will answer any more; `error` is the cause."""
        self.state, self.failure = "gone", why
        self.unresponsive = isinstance(error, EngineUnresponsive)
        self._on_end()

    async def close(self) -> None:
        """Cancels the running task and closes the teacher."""
        self.state = "gone"
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])
        try:
            await self.teacher.close()
        except EngineUnresponsive as error:
            self.failure, self.unresponsive = self.failure or f"does not end: {error}", True

    async def _start(self) -> None:
        try:
            await self.teacher.start()
        except Exception as error:
            self.end(f"could not start: {error}")
        else:
            self.state = "ready"

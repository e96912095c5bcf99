"""Who answers now: one teacher at a time, lent to whoever asks, and exchanged only when nobody is asking."""

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
    "waiting": ": the server that it asks does not answer",
}


class NotReady(Exception):
    """There is no teacher to ask now; the message says why."""


class Host:
    """Owns the teacher that answers. Who asks it holds a lease on it, and it stays while there is one.

    Attributes:
        teacher: who answers now; during a swap, who answered last.
        settings: those that it was chosen by.
        state: what goes on.
        loss: why the teacher answers no more, though nobody has begun to replace it.
        failure: why there will be no teacher any more: it could not start, or is gone.
        hangs: whether its engine is still in this process and may keep it from ending.
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
            teacher: not started yet.
            store: has to know a teacher before it keeps its answers.
            on_end: called when there will be no teacher any more.

        Raises:
            StoreError: the store cannot be written.
        """
        self.teacher, self.settings = teacher, settings
        self.state: HostState = "starting"
        self.loss: str | None = None
        self.failure: str | None = None
        self.hangs = False
        self._store, self._metrics, self._on_end = store, metrics, on_end
        self._leases = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._work: asyncio.Task[Any] | None = None
        self.introduce(teacher)
        metrics.serving(teacher)

    @property
    def ready(self) -> bool:
        """Whether questions are answered."""
        return self.state in _ANSWERING and self.loss is None

    @contextmanager
    def lease(self) -> Iterator[Teacher]:
        """The teacher, for as long as this is held.

        Raises:
            NotReady: there is none to ask now.
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
        """Waits until the last lease has ended."""
        await self._unused.wait()

    def introduce(self, teacher: Teacher) -> None:
        """Makes a teacher known to the store.

        Raises:
            StoreError: it cannot be written.
        """
        if self._store is not None:
            self._store.register(teacher.identity, teacher.description, name_of(teacher))

    def serve(self, teacher: Teacher, settings: Settings) -> None:
        """Lets a started teacher that the store knows answer from now on."""
        self.teacher, self.settings, self.state, self.loss = teacher, settings, "ready", None
        self._metrics.serving(teacher)

    def start(self) -> None:
        """Has the teacher start while the service lives already; if it cannot, that is the end."""
        self.begin(self._start())

    def begin(self, work: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        """Starts what changes who answers; `close` breaks it off, and nobody else."""
        self._work = task = asyncio.create_task(work)
        return task

    def lose(self, teacher: Teacher, why: str) -> None:
        """Notes that a teacher answers no more; the watchdog sees to it."""
        if teacher is self.teacher:
            self.loss = why

    def end(self, why: str, error: Exception | None = None) -> None:
        """There will be no teacher any more; `error` is what brought that about."""
        self.state, self.failure = "gone", why
        self.hangs = isinstance(error, EngineUnresponsive)
        self._on_end()

    async def close(self) -> None:
        """Breaks off what is under way and closes the teacher."""
        self.state = "gone"
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])
        try:
            await self.teacher.close()
        except EngineUnresponsive as error:
            self.failure, self.hangs = self.failure or f"does not end: {error}", True

    async def _start(self) -> None:
        try:
            await self.teacher.start()
        except Exception as error:
            self.end(f"could not start: {error}")
        else:
            self.state = "ready"

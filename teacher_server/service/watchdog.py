"""Watches whether the teacher's model answers, and replaces an engine that is dead or stuck."""

import asyncio
import logging
import time
from collections import deque
from typing import Literal

from teacher_server.engines.base import EngineError
from teacher_server.service.host import Host
from teacher_server.service.metrics import Metrics
from teacher_server.settings import Settings
from teacher_server.teachers.base import ModelTeacher, TeacherGone
from teacher_server.teachers.registry import same_teacher

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
_AGAIN_S = 1.0
_START_S = 900.0
"""For a new engine to load and answer: one that hangs as it starts is not waited for for ever."""
_COUNTED_S = 3600.0

Why = Literal["dead", "stuck"]


class _TooOften(Exception):
    """An engine was replaced as often as it may be."""


class Watchdog:
    """Watches a host's prompted teacher while it is ready; who starts or exchanges it watches for himself.

    Its engine is dead when it says so, and stuck when it is asked and answers nothing for `stall_s`. Where
    nothing has been answered for `watch_s`, nor perhaps been asked, it is asked a question by this. Time is
    counted by looks: while this whole machine stands still, nobody is to blame.

    A model on another server is not replaced: there the host waits until it answers again.
    """

    def __init__(self, host: Host, metrics: Metrics) -> None:
        self._host, self._metrics = host, metrics
        self._replaced: deque[float] = deque()
        self._probe: asyncio.Task[None] | None = None
        self._said = ""
        """The last failure in the log: it is not written down once a second while it stays the same."""
        self._watched: ModelTeacher | None = None
        self._answered, self._quiet_s, self._silent_s = 0, 0.0, 0.0
        metrics.silent.set_function(lambda: self._silent_s)

    async def run(self) -> None:
        """Looks, until it is cancelled."""
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                self.look()
        finally:
            self._watch(None)

    def look(self) -> None:
        """Looks once, and sees to what it finds."""
        teacher = self._host.teacher.model
        if self._host.state != "ready" or teacher is None:
            self._watch(None)
            return
        if teacher is not self._watched:
            self._watch(teacher)
        if self._host.loss is not None:
            self._on_failure(teacher, "dead", self._host.loss)
            return
        activity, settings = teacher.activity, self._host.settings
        if activity.answered != self._answered:
            self._answered, self._quiet_s, self._silent_s = activity.answered, 0.0, 0.0
            return
        probing = self._probe is not None and not self._probe.done()
        self._quiet_s += LOOK_EVERY_S
        self._silent_s = self._silent_s + LOOK_EVERY_S if activity.asked or probing else 0.0
        if self._silent_s > settings.stall_s:
            reason = f"asked, it has answered nothing for {settings.stall_s:g} s"
            self._on_failure(teacher, "stuck", reason)
        elif self._quiet_s >= settings.watch_s and not probing:
            self._probe = asyncio.create_task(self._ask(teacher))

    def _watch(self, teacher: ModelTeacher | None) -> None:
        """Begins to watch a teacher; without one, ends it."""
        self._watched = teacher
        self._answered = teacher.activity.answered if teacher else 0
        self._quiet_s, self._silent_s = 0.0, 0.0
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    async def _ask(self, teacher: ModelTeacher) -> None:
        """Has a question answered, however often the engine fails on it."""
        try:
            while not await self._answers(teacher):
                await asyncio.sleep(_AGAIN_S)
        except TeacherGone as error:
            self._host.lose(teacher, str(error))

    async def _answers(self, teacher: ModelTeacher) -> bool:
        try:
            await teacher.try_out(list(teacher.tasks)[:1])
        except EngineError as error:
            if str(error) != self._said:
                _log.warning("asked a question by the watchdog, %s", error)
            self._said = str(error)
            return False
        self._said = ""
        return True

    def _on_failure(self, teacher: ModelTeacher, why: Why, reason: str) -> None:
        self._watch(None)
        host = self._host
        if teacher.local:
            _log.warning("the engine is %s: %s", why, reason)
            host.state = "replacing"
            host.begin(self._replace(teacher, why, reason))
        elif why == "dead":
            host.end(f"is gone: {reason}")
        else:
            _log.warning("the server is waited for: %s", reason)
            host.state = "waiting"
            host.begin(self._wait(teacher))

    async def _replace(self, old: ModelTeacher, why: Why, reason: str) -> None:
        host, settings, began = self._host, self._host.settings, time.monotonic()
        try:
            self._count(began, settings)
            await old.close()
            new = await asyncio.to_thread(same_teacher, settings, old.identity)
            try:
                await self._start(new, settings)
            except BaseException:
                await new.close()
                raise
            await host.unused()
        except Exception as error:
            self._metrics.replacements.labels(why, "failed").inc()
            host.end(f"is gone: its engine is {why}: {reason}; {error}", error)
            return
        host.serve(new, settings)
        self._metrics.replacements.labels(why, "replaced").inc()
        _log.warning("the engine was replaced in %.1f s: %s", time.monotonic() - began, new.identity)

    def _count(self, now: float, settings: Settings) -> None:
        """
        Raises:
            _TooOften: this would be one too many.
        """
        while self._replaced and now - self._replaced[0] > _COUNTED_S:
            self._replaced.popleft()
        if len(self._replaced) >= settings.replacements:
            times = f"{settings.replacements} times within an hour"
            raise _TooOften(f"it has been replaced {times}, as often as --replacements allows")
        self._replaced.append(now)

    async def _start(self, new: ModelTeacher, settings: Settings) -> None:
        try:
            async with asyncio.timeout(_START_S):
                await new.start()
        except TimeoutError as error:
            raise EngineError(f"a new engine has not answered within {_START_S:g} s") from error
        await asyncio.to_thread(same_teacher, settings, new.identity)

    async def _wait(self, teacher: ModelTeacher) -> None:
        await self._ask(teacher)
        self._host.state = "ready"
        _log.warning("the server of %s answers again", teacher.identity)

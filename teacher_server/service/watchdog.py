"""Watches whether the teacher's model answers, and replaces a dead or unresponsive engine."""

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

CHECK_EVERY_S = 1.0
_AGAIN_S = 1.0
_START_S = 900.0
"""The limit for a new engine to load and answer, in case it hangs as it starts."""
_COUNTED_S = 3600.0

Why = Literal["dead", "stuck"]
_WORD: dict[Why, str] = {"dead": "dead", "stuck": "unresponsive"}


class _TooOften(Exception):
    """The engine has been replaced as often as the settings allow."""


class Watchdog:
    """Watches a host's teacher over a model while it is ready. Start-up and swaps run their own health
    checks.

    The engine is dead when it reports so. It is unresponsive when it has questions and answers none for
    `stall_s`. After `watch_s` without an answer, the watchdog asks a question of its own. Time is counted in
    checks rather than by the clock, so that a suspended machine does not count as an unresponsive engine.

    A model on another server is not replaced: the host waits until the server answers again.
    """

    def __init__(self, host: Host, metrics: Metrics) -> None:
        self._host, self._metrics = host, metrics
        self._replaced: deque[float] = deque()
        self._probe: asyncio.Task[None] | None = None
        self._logged = ""
        """The last failure in the log, so that the same failure is not logged once a second."""
        self._watched: ModelTeacher | None = None
        self._answered, self._quiet_s, self._silent_s = 0, 0.0, 0.0
        metrics.silent.set_function(lambda: self._silent_s)

    async def run(self) -> None:
        """Checks the engine once a second, until this is cancelled."""
        try:
            while True:
                await asyncio.sleep(CHECK_EVERY_S)
                self.check()
        finally:
            self._watch(None)

    def check(self) -> None:
        """Checks the engine once, and acts if it is dead or unresponsive."""
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
        self._quiet_s += CHECK_EVERY_S
        self._silent_s = self._silent_s + CHECK_EVERY_S if activity.asked or probing else 0.0
        if self._silent_s > settings.stall_s:
            reason = f"it has had questions and has answered none for {settings.stall_s:g} s"
            self._on_failure(teacher, "stuck", reason)
        elif self._quiet_s >= settings.watch_s and not probing:
            self._probe = asyncio.create_task(self._ask(teacher))

    def _watch(self, teacher: ModelTeacher | None) -> None:
        """Begins to watch a teacher; None: stops watching."""
        self._watched = teacher
        self._answered = teacher.activity.answered if teacher else 0
        self._quiet_s, self._silent_s = 0.0, 0.0
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    async def _ask(self, teacher: ModelTeacher) -> None:
        """Asks a question again and again until the model answers."""
        try:
            while not await self._answers(teacher):
                await asyncio.sleep(_AGAIN_S)
        except TeacherGone as error:
            self._host.lose(teacher, str(error))

    async def _answers(self, teacher: ModelTeacher) -> bool:
        try:
            await teacher.try_out(list(teacher.tasks)[:1])
        except EngineError as error:
            if str(error) != self._logged:
                _log.warning("the watchdog asked a question: %s", error)
            self._logged = str(error)
            return False
        self._logged = ""
        return True

    def _on_failure(self, teacher: ModelTeacher, why: Why, reason: str) -> None:
        self._watch(None)
        host = self._host
        if teacher.local:
            _log.warning("the engine is %s and is being replaced: %s", _WORD[why], reason)
            host.state = "replacing"
            host.begin(self._replace(teacher, why, reason))
        elif why == "dead":
            host.end(f"is gone: {reason}")
        else:
            _log.warning("waiting for the server of the model: %s", reason)
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
            host.end(f"is gone: its engine is {_WORD[why]}: {reason}; {error}", error)
            return
        host.serve(new, settings)
        self._metrics.replacements.labels(why, "replaced").inc()
        _log.warning("the engine was replaced in %.1f s: %s", time.monotonic() - began, new.identity)

    def _count(self, now: float, settings: Settings) -> None:
        """Counts a replacement.

        Raises:
            _TooOften: The settings allow no further replacement within this hour.
        """
        while self._replaced and now - self._replaced[0] > _COUNTED_S:
            self._replaced.popleft()
        if len(self._replaced) >= settings.replacements:
            times = f"{settings.replacements} times within an hour"
            raise _TooOften(f"it has been replaced {times}, as often as `replacements` allows")
        self._replaced.append(now)

    async def _start(self, new: ModelTeacher, settings: Settings) -> None:
        try:
            async with asyncio.timeout(_START_S):
                await new.start()
        except TimeoutError as error:
            raise EngineError(f"the new engine has not answered within {_START_S:g} s") from error
        await asyncio.to_thread(same_teacher, settings, new.identity)

    async def _wait(self, teacher: ModelTeacher) -> None:
        await self._ask(teacher)
        self._host.state = "ready"
        _log.warning("the server of %s answers again", teacher.identity)

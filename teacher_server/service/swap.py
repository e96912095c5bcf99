"""Exchanges the checkpoint of a running teacher: check, drain, load, try; and back again if it is no good."""

import asyncio
import logging
import time
from typing import NoReturn

from teacher_api.schemas import ErrorBody, HostState, Swap, Swapped
from teacher_server.answers.errors import StoreError
from teacher_server.checkpoints.checkpoint import BadCheckpoint
from teacher_server.engines.base import EngineUnresponsive
from teacher_server.service.host import Host
from teacher_server.service.metrics import Metrics
from teacher_server.settings import Settings
from teacher_server.teachers.base import ModelTeacher
from teacher_server.teachers.registry import CannotTeach, choose_teacher, prompts_of, same_teacher
from teacher_server.teachers.vision_check import check_vision

_log = logging.getLogger(__name__)


class CannotSwap(Exception):
    """A swap that did not come about: `error` is what its caller is told."""

    def __init__(self, status: int, reason: str, field: str | None = None) -> None:
        super().__init__(reason)
        retry_after = 1.0 if status == 503 else None
        self.error = ErrorBody(status=status, field=field, reason=reason, retry_after=retry_after)


class Swapper:
    """Exchanges the checkpoint of a host's teacher, one swap at a time."""

    def __init__(self, host: Host, metrics: Metrics) -> None:
        self._host, self._metrics = host, metrics

    async def swap(self, wanted: Swap) -> Swapped:
        """Has another checkpoint answer from now on. Once begun it goes on to its end, whoever waits for it.

        Raises:
            CannotSwap: why not. By its status: 409, 422, 503: nothing was touched; 502: the checkpoint that
                answered before was loaded again, and answers; 500: that failed as well, and the service ends.
        """
        try:
            return await self._begin(wanted)
        except CannotSwap as refusal:
            outcome = {502: "went_back", 500: "lost"}.get(refusal.error.status, "refused")
            self._metrics.swaps.labels(outcome).inc()
            raise

    async def _begin(self, wanted: Swap) -> Swapped:
        host = self._host
        if (teacher := host.teacher.model) is None:
            raise CannotSwap(409, f"a {host.teacher.kind} teacher has no checkpoint that could be swapped")
        if not teacher.local:
            raise CannotSwap(409, "this teacher asks another server's model: exchange it there")
        if host.state in ("starting", "replacing", "gone"):
            raise CannotSwap(503, "the teacher is not ready: swap when it is")
        if host.state != "ready":
            raise CannotSwap(409, f"another swap is going on ({host.state}): wait for its end")
        host.state = "checking"
        work = host.begin(self._swap(teacher, wanted))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:  # by the server, when its time to stop is over
            raise CannotSwap(503, "the service is stopping") from None

    async def _swap(self, old: ModelTeacher, wanted: Swap) -> Swapped:
        host, steps = self._host, _Steps(self._host)
        before = host.settings
        try:
            # What the present checkpoint chose for itself stays
            kept = {"model": wanted.model, "prompts": prompts_of(before)}
            after = before.model_copy(update=kept)
            new, again = await asyncio.to_thread(_checked, wanted, old, before, after)
            host.introduce(new)
        except StoreError as error:
            raise CannotSwap(503, str(error)) from error
        except BadCheckpoint as error:
            raise CannotSwap(409, f"{before.model}, which answers now, cannot be read: {error}") from error
        finally:
            if host.state == "checking":
                host.state = "ready"
        if new.identity == old.identity and before.model and wanted.model == before.model.absolute():
            self._metrics.swaps.labels("unchanged").inc()
            return Swapped(old=old.identity, new=new.identity, how="served already", seconds=steps.end())

        if host.failure is None:
            steps.begin("draining")
            await host.unused()
        if host.failure is not None:
            raise CannotSwap(503, f"the teacher {host.failure}")
        try:
            steps.begin("loading")
            in_place = await new.replace(old, in_place=wanted.in_place)
            await asyncio.to_thread(same_teacher, after, new.identity)
            steps.begin("trying")
            sight = await check_vision(new, allow_unreadable=wanted.allow_unreadable)
        except EngineUnresponsive as error:
            raise self._lost(f"{before.model} cannot be closed: {error}", error) from error
        except Exception as error:
            await self._go_back(new, again, before, f"{wanted.model} cannot be served: {error}")
        except BaseException:
            await new.close()
            raise
        host.serve(new, after)
        self._metrics.swaps.labels("swapped").inc()
        return Swapped(
            old=old.identity,
            new=new.identity,
            how="in place" if in_place else "new engine",
            seconds=steps.end(),
            sight=sight,
        )

    async def _go_back(self, new: ModelTeacher, again: ModelTeacher, before: Settings, why: str) -> NoReturn:
        """Has the checkpoint that answered before answer once more, in an engine of its own.

        Raises:
            CannotSwap: in any case; it says why, and what became of it.
        """
        _log.warning("%s", why)
        self._host.state = "going back"
        try:
            await new.close()
            await again.start()
            await asyncio.to_thread(same_teacher, before, again.identity)
        except Exception as error:
            lost = f"{why}; and {before.model}, served before, cannot be loaded: {error}"
            raise self._lost(lost, error) from error
        self._host.serve(again, before)
        raise CannotSwap(502, f"{why}; {again.identity}, as before, answers again")

    def _lost(self, why: str, error: Exception) -> CannotSwap:
        """What to raise when there is no teacher any more."""
        self._host.end(f"is gone: {why}", error)
        return CannotSwap(500, f"the teacher {self._host.failure}")


class _Steps:
    """What a swap does, one step after the other, and the seconds that each takes."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._seconds: dict[str, float] = {}
        self._now: HostState = "checking"
        self._since = time.perf_counter()

    def begin(self, step: HostState) -> None:
        """Ends the step that goes on; the next one begins."""
        self.end()
        self._host.state = self._now = step

    def end(self) -> dict[str, float]:
        """Ends the step that goes on; the seconds of all."""
        now = time.perf_counter()
        self._seconds[self._now] = round(now - self._since, 3)
        self._since = now
        return self._seconds


def _checked(
    wanted: Swap, old: ModelTeacher, before: Settings, after: Settings
) -> tuple[ModelTeacher, ModelTeacher]:
    """The teacher that is asked for, and once more the one that answers now; neither is started.

    Raises:
        CannotSwap: there cannot be the one, or could not be the other.
    """
    try:
        new = choose_teacher(after, leaving=before).model
    except CannotTeach as error:
        raise CannotSwap(422, str(error), "model") from error
    assert new is not None
    digest = new.description["checkpoint"]["digest"]
    if wanted.digest not in (None, digest):
        reason = f"the checkpoint in {wanted.model} has the digest {digest}, and not {wanted.digest}"
        raise CannotSwap(422, reason, "digest")
    try:
        again = same_teacher(before, old.identity)
    except CannotTeach as error:
        told = str(error).removeprefix(f"{before.model}: ")
        reason = f"there would be no way back to {before.model}, which answers now: {told}"
        raise CannotSwap(409, f"{reason}; put it back, and take another folder for what is new") from error
    return new, again

"""Swaps the checkpoint of a running teacher: check, drain, load, try; and restore the old one on failure."""

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
    """A swap that failed; `error` is the response."""

    def __init__(self, status: int, reason: str, field: str | None = None) -> None:
        super().__init__(reason)
        retry_after = 1.0 if status == 503 else None
        self.error = ErrorBody(status=status, field=field, reason=reason, retry_after=retry_after)


class Swapper:
    """Swaps the checkpoint of a host's teacher, one swap at a time."""

    def __init__(self, host: Host, metrics: Metrics) -> None:
        self._host, self._metrics = host, metrics

    async def swap(self, wanted: Swap) -> Swapped:
        """Serves another checkpoint from now on. Cancelling this call does not cancel the swap.

        Raises:
            CannotSwap: The swap failed. Status 409, 422 or 503: nothing was changed. 502: the previous
                checkpoint was loaded again and answers. 500: the previous checkpoint could not be loaded, and
                the service ends.
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
            raise CannotSwap(409, f"a {host.teacher.kind} teacher has no checkpoint to swap")
        if not teacher.local:
            raise CannotSwap(409, "the model of this teacher runs on another server: swap it there")
        if host.state in ("starting", "replacing", "gone"):
            raise CannotSwap(503, "the teacher is not ready: swap when it is")
        if host.state != "ready":
            raise CannotSwap(409, f"another swap is running ({host.state}): wait until it ends")
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
            # The new checkpoint keeps the prompt set that the present one chose
            kept = {"model": wanted.model, "prompts": prompts_of(before)}
            after = before.model_copy(update=kept)
            new, again = await asyncio.to_thread(_checked, wanted, old, before, after)
            host.register(new)
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
        """Loads the previous checkpoint again, into a new engine.

        Raises:
            CannotSwap: Always; with the reason, and whether the previous checkpoint answers again.
        """
        _log.warning("%s", why)
        self._host.state = "going back"
        try:
            await new.close()
            await again.start()
            await asyncio.to_thread(same_teacher, before, again.identity)
        except Exception as error:
            lost = f"{why}; and the previous checkpoint, {before.model}, cannot be loaded: {error}"
            raise self._lost(lost, error) from error
        self._host.serve(again, before)
        raise CannotSwap(502, f"{why}; the previous teacher, {again.identity}, answers again")

    def _lost(self, why: str, error: Exception) -> CannotSwap:
        """Ends the service and returns the error to raise."""
        self._host.end(f"is gone: {why}", error)
        return CannotSwap(500, f"the teacher {self._host.failure}")


class _Steps:
    """The steps of a swap, and the seconds that each of them takes."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._seconds: dict[str, float] = {}
        self._now: HostState = "checking"
        self._since = time.perf_counter()

    def begin(self, step: HostState) -> None:
        """Ends the current step and begins the next one."""
        self.end()
        self._host.state = self._now = step

    def end(self) -> dict[str, float]:
        """Ends the current step and returns the seconds of all steps."""
        now = time.perf_counter()
        self._seconds[self._now] = round(now - self._since, 3)
        self._since = now
        return self._seconds


def _checked(
    wanted: Swap, old: ModelTeacher, before: Settings, after: Settings
) -> tuple[ModelTeacher, ModelTeacher]:
    """Returns the new teacher, and a teacher like the present one to go back to. Neither is started.

    Raises:
        CannotSwap: The new checkpoint cannot be served, or the present one could not be restored.
    """
    try:
        new = choose_teacher(after, leaving=before).model
    except CannotTeach as error:
        raise CannotSwap(422, str(error), "model") from error
    assert new is not None
    digest = new.description["checkpoint"]["digest"]
    if wanted.digest not in (None, digest):
        reason = f"the checkpoint in {wanted.model} has the digest {digest}, not {wanted.digest}"
        raise CannotSwap(422, reason, "digest")
    try:
        again = same_teacher(before, old.identity)
    except CannotTeach as error:
        reason = f"the checkpoint that answers now could not be restored if the swap failed: {error}"
        raise CannotSwap(
            409, f"{reason}; restore its files, and use another folder for the new ones"
        ) from error
    return new, again

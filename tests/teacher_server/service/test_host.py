"""The host leases a teacher to many requests at once, and closes it when no lease is held."""

import asyncio
from pathlib import Path

import pytest

from teacher_server.answers.rows import Key
from teacher_server.answers.sqlite import SqliteStore
from teacher_server.service.host import Host, NotReady
from teacher_server.service.metrics import Metrics
from teacher_server.settings import Settings
from teacher_server.teachers.planner import PlannerTeacher
from teacher_server.teachers.uniform import UniformTeacher

pytestmark = pytest.mark.unit


class _BrokenTeacher(PlannerTeacher):
    async def start(self) -> None:
        raise RuntimeError("no planner here")


async def _started(host: Host) -> Host:
    host.start()
    await asyncio.sleep(0.01)
    return host


def test_unused_waits_for_every_lease() -> None:
    async def test() -> None:
        host = await _started(Host(PlannerTeacher(), Settings(), None, Metrics()))
        await asyncio.wait_for(host.unused(), 60)
        with host.lease() as teacher:
            with host.lease() as again:
                assert again is teacher is host.teacher
            waiting = asyncio.create_task(host.unused())
            await asyncio.sleep(0.01)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 60)
        with pytest.raises(ZeroDivisionError), host.lease():
            _ = 1 / 0
        await asyncio.wait_for(host.unused(), 60)
        await host.close()

    asyncio.run(test())


def test_a_teacher_that_is_not_ready_cannot_be_leased() -> None:
    async def test() -> None:
        host = Host(PlannerTeacher(), Settings(), None, Metrics())
        with pytest.raises(NotReady, match=r"^the teacher is not ready$"), host.lease():
            pass
        await _started(host)
        host.state = "checking"
        with host.lease():
            pass
        for state in ("draining", "loading", "trying", "going back"):
            host.state = state
            with pytest.raises(NotReady, match="its checkpoint is being exchanged"), host.lease():
                pass
        await host.close()
        with pytest.raises(NotReady, match=r"^the teacher is not ready$"), host.lease():
            pass

    asyncio.run(test())


def test_a_teacher_that_cannot_start_ends_the_service() -> None:
    async def test() -> None:
        ended: list[str | None] = []
        host = Host(_BrokenTeacher(), Settings(), None, Metrics(), on_end=lambda: ended.append(host.failure))
        await _started(host)
        assert ended == ["could not start: no planner here"]
        assert host.state == "gone"
        await host.close()

    asyncio.run(test())


def test_another_teacher_serves_once_it_is_registered(tmp_path: Path) -> None:
    async def test() -> None:
        store, metrics = SqliteStore(tmp_path / "answers.sqlite3"), Metrics()
        host = await _started(Host(PlannerTeacher(), Settings(), store, metrics))
        old, new = host.teacher, UniformTeacher()
        host.register(new)
        host.serve(new, Settings(teacher="uniform"))
        with host.lease() as teacher:
            assert teacher is new
        for each in (old, new):
            key = Key(each.identity, b"picture", "", "lava_gap", ("left",))
            await store.put(key, "{}")
            assert list(store.get_many([key])) == [key]
        served = {"identity": new.identity, "kind": "uniform"}
        assert metrics.registry.get_sample_value("teacher_info", served) == 1
        await host.close()
        await store.close()

    asyncio.run(test())


def test_closing_cancels_the_running_task() -> None:
    async def test() -> None:
        host = await _started(Host(PlannerTeacher(), Settings(), None, Metrics()))
        work = host.begin(asyncio.sleep(600))
        await asyncio.wait_for(host.close(), 60)
        assert work.cancelled()

    asyncio.run(test())

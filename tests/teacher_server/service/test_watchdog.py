"""Dead and unresponsive engines and their replacement, with a model under the test's control."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from teacher_api.schemas import HostState
from teacher_server.engines.base import CannotLoad, EngineDead, EngineError, EngineUnresponsive
from teacher_server.service.host import Host, NotReady
from teacher_server.service.metrics import Metrics
from teacher_server.service.watchdog import Watchdog
from teacher_server.settings import Settings
from teacher_server.teachers.base import TeacherGone
from teacher_server.teachers.planner import PlannerTeacher
from teacher_server.teachers.prompted import PromptedTeacher
from teacher_server.teachers.registry import CannotTeach
from tests.teacher_server.service.watched import ToldModel, WatchedHouse, until
from tests.waiting import LONG_S

pytestmark = pytest.mark.unit


Test = Callable[[WatchedHouse], Coroutine[Any, Any, None]]
Run = Callable[..., None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """run(test, *models, **settings): runs a test with a house of its own."""

    def run_with(test: Test, *models: ToldModel, **changes: Any) -> None:
        async def whole() -> None:
            house = WatchedHouse(monkeypatch, *(models or [ToldModel()]), **changes)
            await asyncio.wait_for(test(house), LONG_S)
            await house.host.close()

        asyncio.run(whole())

    return run_with


def test_an_engine_that_answers_nothing_for_stall_s_is_unresponsive(run: Run) -> None:
    async def test(house: WatchedHouse) -> None:
        async with house.question() as asking:
            await house.check(10)
            assert (house.host.state, house.silent_s) == ("ready", 10)
            await house.check()
            assert house.host.state == "replacing"
            with pytest.raises(NotReady, match="its engine is being replaced"), house.host.lease():
                pass
            with pytest.raises(TeacherGone):
                await asking
            await house.until_ready()
        assert house.model.closed
        with house.host.lease() as teacher:
            assert teacher is not house.teacher
            assert teacher.identity == house.teacher.identity
        assert (house.count("stuck", "replaced"), house.count("dead", "replaced")) == (1, 0)
        assert house.ended == []
        await house.check(3)  # the new one has its own time
        assert (house.host.state, house.silent_s) == ("ready", 0)

    run(test, watch_s=1000)


def test_one_answer_within_stall_s_is_enough(run: Run) -> None:
    async def test(house: WatchedHouse) -> None:
        async with house.question():
            for _ in range(3):
                await house.check(10)
                async with house.question() as other:
                    house.model.goes.set()
                    await until(other.done)
                    house.model.goes.clear()
                await house.check()
                assert house.silent_s == 0
        assert house.host.state == "ready"

    run(test, watch_s=1000)


def test_the_watchdog_asks_an_idle_engine(run: Run) -> None:
    async def test(house: WatchedHouse) -> None:
        house.model.goes.set()
        for times in (1, 2, 3):
            answered = house.teacher.activity.answered
            await house.check(3)
            assert (house.model.asked, house.silent_s) == (times - 1, 0)
            await house.check()
            await until(lambda answered=answered: house.teacher.activity.answered > answered)
            await house.check()  # sees the answer
            assert house.model.asked == times
        house.model.goes.clear()
        await house.check(4)
        await house.until_asked(4)
        await house.check(10)
        assert (house.host.state, house.model.asked) == ("ready", 4)
        await house.check()
        assert house.host.state == "replacing"
        await house.until_ready()
        assert house.count("stuck", "replaced") == 1

    run(test)


def test_cancelled_questions_count_neither_way(run: Run) -> None:
    async def test(house: WatchedHouse) -> None:
        for checks in range(4 + 10):
            async with house.question():
                pass
            await house.check()
            assert (house.host.state, house.silent_s) == ("ready", max(0, checks - 3))
        await house.check()  # it has had the watchdog's own for ten
        assert house.host.state == "replacing"
        await house.until_ready()

    run(test)


def test_errors_are_not_answers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_server.service.watchdog._AGAIN_S", 0.001)

    async def test(house: WatchedHouse) -> None:
        await house.check(4)
        await until(lambda: house.model.asked > 3)
        await house.check(10)
        assert (house.host.state, house.teacher.activity.answered) == ("ready", 0)
        await house.check()
        assert house.host.state == "replacing"
        await house.until_ready()
        assert house.count("stuck", "replaced") == 1

    run(test, ToldModel(fault=EngineError("a kernel broke")))


def test_a_dead_engine_is_replaced_at_the_next_check(run: Run) -> None:
    async def test(house: WatchedHouse) -> None:
        house.host.lose(house.teacher, "its process is gone")
        assert not house.host.ready
        with pytest.raises(NotReady, match="its engine is being replaced"), house.host.lease():
            pass
        await house.check()
        await house.until_ready()
        house.host.lose(house.teacher, "told late, of the one before")
        await house.check()
        assert house.host.ready
        assert (house.count("dead", "replaced"), house.ended) == (1, [])

    run(test)


def test_the_watchdogs_own_question_finds_a_dead_engine(run: Run) -> None:
    async def test(house: WatchedHouse) -> None:
        await house.check(4)
        await until(lambda: house.host.loss)
        await house.check()
        assert house.host.state == "replacing"
        await house.until_ready()
        assert house.count("dead", "replaced") == 1

    run(test, ToldModel(fault=EngineDead("its process is gone")))


def test_after_too_many_replacements_within_an_hour_the_service_ends(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("teacher_server.service.watchdog.time", SimpleNamespace(monotonic=lambda: now[0]))

    async def test(house: WatchedHouse) -> None:
        async def die_at(minute: int) -> None:
            now[0] = 60.0 * minute
            house.host.lose(house.host.teacher, "its process is gone")
            await house.check()
            await until(lambda: house.host.state != "replacing")

        for minute in (0, 59, 61):
            await die_at(minute)
            assert house.host.ready
        await die_at(100)
        assert house.host.state == "gone"
        assert house.ended == [
            "is gone: its engine is dead: its process is gone; it has been replaced 2 times within an hour,"
            " as often as `replacements` allows"
        ]
        assert (house.count("dead", "replaced"), house.count("dead", "failed")) == (3, 1)
        assert not house.host.unresponsive

    run(test)


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (ToldModel(), ToldModel(refusal=CannotLoad("no memory")), "no memory"),
        (ToldModel(), ToldModel(fault=EngineError("a kernel broke")), "a kernel broke"),
        (
            ToldModel(refusal=EngineUnresponsive("it does not come back")),
            ToldModel(),
            "it does not come back",
        ),
    ],
)
def test_the_service_ends_if_the_engine_cannot_be_replaced(
    run: Run, first: ToldModel, second: ToldModel, why: str
) -> None:
    async def test(house: WatchedHouse) -> None:
        house.host.lose(house.teacher, "its process is gone")
        await house.check()
        await until(lambda: house.ended)
        (failure,) = house.ended
        assert failure is not None
        assert "its process is gone" in failure
        assert why in failure
        assert house.host.unresponsive == (first.refusal is not None)
        assert house.count("dead", "failed") == 1
        assert second.closed == (first.refusal is None)

    run(test, first, second)


def test_changed_files_are_not_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(house: WatchedHouse) -> None:
        def changed(settings: Settings, identity: str) -> PromptedTeacher:
            raise CannotTeach("its files have changed")

        monkeypatch.setattr("teacher_server.service.watchdog.same_teacher", changed)
        house.host.lose(house.teacher, "its process is gone")
        await house.check()
        await until(lambda: house.ended)
        assert "its files have changed" in str(house.ended)

    run(test)


@pytest.mark.parametrize(
    "state", ["starting", "checking", "draining", "loading", "trying", "going back", "gone"]
)
def test_start_up_and_swaps_are_not_watched(run: Run, state: HostState) -> None:
    async def test(house: WatchedHouse) -> None:
        async with house.question():
            await house.check(6)
            house.host.state = state
            house.host.lose(house.teacher, "its process is gone")
            await house.check(30)
            assert (house.host.state, house.silent_s) == (state, 0)
        if state == "checking":  # a swap that was refused
            house.host.state = "ready"
            await house.check()
            await house.until_ready()
            assert house.count("dead", "replaced") == 1

    run(test)


def test_another_server_is_waited_for_and_not_replaced(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_server.service.watchdog._AGAIN_S", 0.001)

    async def test(house: WatchedHouse) -> None:
        await house.check(4 + 10)
        assert house.host.state == "ready"
        await house.check()
        assert house.host.state == "waiting"
        with pytest.raises(NotReady, match="its server does not answer"), house.host.lease():
            pass
        house.model.fault = None
        house.model.goes.set()
        await house.until_ready()
        with house.host.lease() as teacher:
            assert teacher is house.teacher
        assert not house.model.closed
        house.host.lose(house.teacher, "the server is another one by now")
        await house.check()
        assert house.ended == ["is gone: the server is another one by now"]

    run(test, ToldModel(fault=EngineError("nothing answers there")), engine="openai")


def test_stopping_during_a_replacement_closes_the_new_engine(run: Run) -> None:
    async def test(house: WatchedHouse) -> None:
        new = house.others[0]
        new.goes.clear()
        house.host.lose(house.teacher, "its process is gone")
        await house.check()
        await until(lambda: new.asked)
        await house.host.close()
        assert new.closed

    run(test)


def test_teachers_without_a_model_are_not_watched() -> None:
    async def test() -> None:
        metrics = Metrics()
        host = Host(PlannerTeacher(), Settings(stall_s=1, watch_s=1), None, metrics)
        host.serve(host.teacher, host.settings)
        watchdog = Watchdog(host, metrics)
        for _ in range(30):
            watchdog.check()
        assert host.ready
        await host.close()

    asyncio.run(test())

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
from tests.teacher_server.service.watched import ScriptedModel, WatchedHost, until
from tests.waiting import LONG_S

pytestmark = pytest.mark.unit


Test = Callable[[WatchedHost], Coroutine[Any, Any, None]]
Run = Callable[..., None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """run(test, *models, **settings): runs a test with a watched host of its own."""

    def run_with(test: Test, *models: ScriptedModel, **changes: Any) -> None:
        async def whole() -> None:
            watched = WatchedHost(monkeypatch, *(models or [ScriptedModel()]), **changes)
            await asyncio.wait_for(test(watched), LONG_S)
            await watched.host.close()

        asyncio.run(whole())

    return run_with


def test_an_engine_that_answers_nothing_for_stall_s_is_unresponsive(run: Run) -> None:
    async def test(watched: WatchedHost) -> None:
        async with watched.question() as asking:
            await watched.check(10)
            assert (watched.host.state, watched.silent_s) == ("ready", 10)
            await watched.check()
            assert watched.host.state == "replacing"
            with pytest.raises(NotReady, match="its engine is being replaced"), watched.host.lease():
                pass
            with pytest.raises(TeacherGone):
                await asking
            await watched.until_ready()
        assert watched.model.closed
        with watched.host.lease() as teacher:
            assert teacher is not watched.teacher
            assert teacher.identity == watched.teacher.identity
        assert (watched.count("stuck", "replaced"), watched.count("dead", "replaced")) == (1, 0)
        assert watched.ended == []
        await watched.check(3)  # the new one has its own time
        assert (watched.host.state, watched.silent_s) == ("ready", 0)

    run(test, watch_s=1000)


def test_one_answer_within_stall_s_is_enough(run: Run) -> None:
    async def test(watched: WatchedHost) -> None:
        async with watched.question():
            for _ in range(3):
                await watched.check(10)
                async with watched.question() as other:
                    watched.model.goes.set()
                    await until(other.done)
                    watched.model.goes.clear()
                await watched.check()
                assert watched.silent_s == 0
        assert watched.host.state == "ready"

    run(test, watch_s=1000)


def test_the_watchdog_asks_an_idle_engine(run: Run) -> None:
    async def test(watched: WatchedHost) -> None:
        watched.model.goes.set()
        for times in (1, 2, 3):
            answered = watched.teacher.activity.answered
            await watched.check(3)
            assert (watched.model.asked, watched.silent_s) == (times - 1, 0)
            await watched.check()
            await until(lambda answered=answered: watched.teacher.activity.answered > answered)
            await watched.check()  # sees the answer
            assert watched.model.asked == times
        watched.model.goes.clear()
        await watched.check(4)
        await watched.until_asked(4)
        await watched.check(10)
        assert (watched.host.state, watched.model.asked) == ("ready", 4)
        await watched.check()
        assert watched.host.state == "replacing"
        await watched.until_ready()
        assert watched.count("stuck", "replaced") == 1

    run(test)


def test_cancelled_questions_count_neither_way(run: Run) -> None:
    async def test(watched: WatchedHost) -> None:
        for checks in range(4 + 10):
            async with watched.question():
                pass
            await watched.check()
            assert (watched.host.state, watched.silent_s) == ("ready", max(0, checks - 3))
        await watched.check()  # it has had the watchdog's own for ten
        assert watched.host.state == "replacing"
        await watched.until_ready()

    run(test)


def test_errors_are_not_answers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_server.service.watchdog._AGAIN_S", 0.001)

    async def test(watched: WatchedHost) -> None:
        await watched.check(4)
        await until(lambda: watched.model.asked > 3)
        await watched.check(10)
        assert (watched.host.state, watched.teacher.activity.answered) == ("ready", 0)
        await watched.check()
        assert watched.host.state == "replacing"
        await watched.until_ready()
        assert watched.count("stuck", "replaced") == 1

    run(test, ScriptedModel(fault=EngineError("a kernel broke")))


def test_a_dead_engine_is_replaced_at_the_next_check(run: Run) -> None:
    async def test(watched: WatchedHost) -> None:
        watched.host.lose(watched.teacher, "its process is gone")
        assert not watched.host.ready
        with pytest.raises(NotReady, match="its engine is being replaced"), watched.host.lease():
            pass
        await watched.check()
        await watched.until_ready()
        watched.host.lose(watched.teacher, "told late, of the one before")
        await watched.check()
        assert watched.host.ready
        assert (watched.count("dead", "replaced"), watched.ended) == (1, [])

    run(test)


def test_the_watchdogs_own_question_finds_a_dead_engine(run: Run) -> None:
    async def test(watched: WatchedHost) -> None:
        await watched.check(4)
        await until(lambda: watched.host.loss)
        await watched.check()
        assert watched.host.state == "replacing"
        await watched.until_ready()
        assert watched.count("dead", "replaced") == 1

    run(test, ScriptedModel(fault=EngineDead("its process is gone")))


def test_after_too_many_replacements_within_an_hour_the_service_ends(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("teacher_server.service.watchdog.time", SimpleNamespace(monotonic=lambda: now[0]))

    async def test(watched: WatchedHost) -> None:
        async def die_at(minute: int) -> None:
            now[0] = 60.0 * minute
            watched.host.lose(watched.host.teacher, "its process is gone")
            await watched.check()
            await until(lambda: watched.host.state != "replacing")

        for minute in (0, 59, 61):
            await die_at(minute)
            assert watched.host.ready
        await die_at(100)
        assert watched.host.state == "gone"
        assert watched.ended == [
            "is gone: its engine is dead: its process is gone; it has been replaced 2 times within an hour,"
            " as often as `replacements` allows"
        ]
        assert (watched.count("dead", "replaced"), watched.count("dead", "failed")) == (3, 1)
        assert not watched.host.unresponsive

    run(test)


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (ScriptedModel(), ScriptedModel(refusal=CannotLoad("no memory")), "no memory"),
        (ScriptedModel(), ScriptedModel(fault=EngineError("a kernel broke")), "a kernel broke"),
        (
            ScriptedModel(refusal=EngineUnresponsive("it does not come back")),
            ScriptedModel(),
            "it does not come back",
        ),
    ],
)
def test_the_service_ends_if_the_engine_cannot_be_replaced(
    run: Run, first: ScriptedModel, second: ScriptedModel, why: str
) -> None:
    async def test(watched: WatchedHost) -> None:
        watched.host.lose(watched.teacher, "its process is gone")
        await watched.check()
        await until(lambda: watched.ended)
        (failure,) = watched.ended
        assert failure is not None
        assert "its process is gone" in failure
        assert why in failure
        assert watched.host.unresponsive == (first.refusal is not None)
        assert watched.count("dead", "failed") == 1
        assert second.closed == (first.refusal is None)

    run(test, first, second)


def test_changed_files_are_not_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(watched: WatchedHost) -> None:
        def changed(settings: Settings, identity: str) -> PromptedTeacher:
            raise CannotTeach("its files have changed")

        monkeypatch.setattr("teacher_server.service.watchdog.same_teacher", changed)
        watched.host.lose(watched.teacher, "its process is gone")
        await watched.check()
        await until(lambda: watched.ended)
        assert "its files have changed" in str(watched.ended)

    run(test)


@pytest.mark.parametrize(
    "state", ["starting", "checking", "draining", "loading", "trying", "going back", "gone"]
)
def test_start_up_and_swaps_are_not_watched(run: Run, state: HostState) -> None:
    async def test(watched: WatchedHost) -> None:
        async with watched.question():
            await watched.check(6)
            watched.host.state = state
            watched.host.lose(watched.teacher, "its process is gone")
            await watched.check(30)
            assert (watched.host.state, watched.silent_s) == (state, 0)
        if state == "checking":  # a swap that was refused
            watched.host.state = "ready"
            await watched.check()
            await watched.until_ready()
            assert watched.count("dead", "replaced") == 1

    run(test)


def test_another_server_is_waited_for_and_not_replaced(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_server.service.watchdog._AGAIN_S", 0.001)

    async def test(watched: WatchedHost) -> None:
        await watched.check(4 + 10)
        assert watched.host.state == "ready"
        await watched.check()
        assert watched.host.state == "waiting"
        with pytest.raises(NotReady, match="its server does not answer"), watched.host.lease():
            pass
        watched.model.fault = None
        watched.model.goes.set()
        await watched.until_ready()
        with watched.host.lease() as teacher:
            assert teacher is watched.teacher
        assert not watched.model.closed
        watched.host.lose(watched.teacher, "the server is another one by now")
        await watched.check()
        assert watched.ended == ["is gone: the server is another one by now"]

    run(test, ScriptedModel(fault=EngineError("nothing answers there")), engine="openai")


def test_stopping_during_a_replacement_closes_the_new_engine(run: Run) -> None:
    async def test(watched: WatchedHost) -> None:
        new = watched.others[0]
        new.goes.clear()
        watched.host.lose(watched.teacher, "its process is gone")
        await watched.check()
        await until(lambda: new.asked)
        await watched.host.close()
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

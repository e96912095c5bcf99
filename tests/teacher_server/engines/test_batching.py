"""Batches without a model: grouping, order, and failing requests."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from teacher_server.engines.base import Decoding, EngineDead, EngineError, EngineUnresponsive, Prompt
from teacher_server.engines.batching import Batches, Request, Take

pytestmark = pytest.mark.unit


def _score(number: int) -> Request:
    return Request(Prompt((number,), ()))


def _generate(number: int) -> Request:
    return Request(Prompt((number,), ()), Decoding(1, {}))


class _Echo:
    """Answers each request with its number and records the batches; each batch waits until `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, requests: list[Request], take: Take) -> None:
        self.batches.append([request.prompt.token_ids[0] for request in requests])
        assert self.go.wait(20)
        for request in requests:
            request.settle(request.prompt.token_ids[0])


async def _asked(batches: Batches, requests: list[Request]) -> list[asyncio.Task[Any]]:
    """Returns tasks that wait for each request, after the first one runs alone."""
    tasks = [asyncio.create_task(batches.answer(requests[0]))]
    await asyncio.sleep(0.05)
    tasks += [asyncio.create_task(batches.answer(request)) for request in requests[1:]]
    await asyncio.sleep(0.05)
    return tasks


def test_what_waits_is_batched_by_kind_in_the_order_of_arrival() -> None:
    async def scenario() -> None:
        echo = _Echo()
        batches = Batches(echo, size=3)
        requests = [_score(0), _generate(1), _score(2), *(_generate(n) for n in range(3, 7)), _score(7)]
        tasks = await _asked(batches, requests)
        echo.go.set()
        assert await asyncio.gather(*tasks) == list(range(8))
        assert echo.batches == [[0], [1, 3, 4], [2, 7], [5, 6]]
        await batches.close()

    asyncio.run(scenario())


def test_cancelled_while_waiting_is_never_run() -> None:
    async def scenario() -> None:
        echo = _Echo()
        batches = Batches(echo, size=8)
        requests = [_score(n) for n in range(4)]
        tasks = await _asked(batches, requests)
        for task in (tasks[0], tasks[2]):
            task.cancel()
        await asyncio.sleep(0.05)
        assert [request.settled for request in requests] == [True, False, True, False]
        echo.go.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, int] * 2
        assert echo.batches == [[0], [1, 3]]
        await batches.close()

    asyncio.run(scenario())


def _raising(error: Exception) -> Callable[[list[Request]], None]:
    def run(requests: list[Request]) -> None:
        requests[0].settle("done")
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (EngineError("no room"), "^no room$"),
        (ValueError("17"), "^the engine failed: 17$"),
        (KeyError(), "^the engine failed: KeyError$"),
    ],
)
def test_a_failed_batch_fails_those_that_it_left(error: Exception, message: str) -> None:
    async def scenario() -> None:
        gate = threading.Event()
        fail = _raising(error)

        def run(requests: list[Request], take: Take) -> None:
            assert gate.wait(20)
            fail(requests)

        batches = Batches(run, size=8)
        tasks = await _asked(batches, [_score(n) for n in range(3)])
        gate.set()
        assert await tasks[0] == await tasks[1] == "done"
        with pytest.raises(EngineError, match=message):
            await tasks[2]
        await batches.close()

    asyncio.run(scenario())


def test_a_request_that_is_left_unanswered_gets_an_error() -> None:
    async def scenario() -> None:
        batches = Batches(lambda requests, take: None, size=8)
        with pytest.raises(EngineError, match="no answer"):
            await batches.answer(_score(0))
        await batches.close()

    asyncio.run(scenario())


def test_closing_answers_everything_and_takes_no_more() -> None:
    async def scenario() -> None:
        echo = _Echo()
        batches = Batches(echo, size=8)
        tasks = await _asked(batches, [_score(n) for n in range(3)])
        closing = asyncio.create_task(batches.close())
        for task in tasks:
            with pytest.raises(EngineDead):
                await task
        with pytest.raises(EngineDead):
            await batches.answer(_score(9))
        assert not closing.done()
        echo.go.set()
        await closing
        assert echo.batches == [[0]]

    asyncio.run(scenario())


def test_what_does_not_come_back_is_told_when_it_is_closed() -> None:
    async def scenario() -> None:
        echo = _Echo()
        batches = Batches(echo, size=8, end_s=0.1)
        (task,) = await _asked(batches, [_score(0)])
        with pytest.raises(EngineUnresponsive, match=r"within 0\.1 s"):
            await batches.close()
        with pytest.raises(EngineDead):
            await task
        echo.go.set()

    asyncio.run(scenario())


def test_a_running_batch_takes_what_waits_and_answers_for_it() -> None:
    taken: list[list[int]] = []
    gate = threading.Event()

    def run(requests: list[Request], take: Take) -> None:
        assert gate.wait(20)
        requests[0].settle("first")
        for _ in range(3):
            taken.append([request.prompt.token_ids[0] for request in take()])
        raise EngineError("no room")

    async def scenario() -> None:
        batches = Batches(run, size=1)
        tasks = await _asked(batches, [_score(0), _generate(1), _score(2), _score(3)])
        tasks[1].cancel()
        await asyncio.sleep(0.05)
        gate.set()
        assert await tasks[0] == "first"
        for task in tasks[2:]:
            with pytest.raises(EngineError, match="no room"):
                await task
        assert taken == [[2], [3], []]
        await batches.close()

    asyncio.run(scenario())


def test_batches_of_several_threads_run_at_the_same_time() -> None:
    async def scenario() -> None:
        together = threading.Barrier(3)

        def run(requests: list[Request], take: Take) -> None:
            together.wait(20)
            requests[0].settle("done")

        batches = Batches(run, size=1, threads=3)
        assert await asyncio.gather(*(batches.answer(_score(n)) for n in range(3))) == ["done"] * 3
        await batches.close()

    asyncio.run(scenario())

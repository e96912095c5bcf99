"""Ten times more questions than the teacher can answer: it answers at capacity and refuses the others."""

import asyncio
import json
import time
from collections.abc import Iterator

import pytest

from tests.chaos.bodies import Bodies
from tests.chaos.load import (
    SECONDS,
    Clients,
    answered,
    assert_answered_or_refused,
    http_session,
    percentiles,
    rate,
    refused,
    statuses,
)
from tests.conftest import TeacherProcess, started_teachers

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(SECONDS + 600)]

_CONCURRENCY, _DELAY_MS, _PENDING = 5, 50, 20
_CAPACITY = _CONCURRENCY * 1000 / _DELAY_MS
"""The teacher's capacity by its flags, in questions per second."""
_SECONDS = max(10, SECONDS / 10)


@pytest.fixture(scope="module")
def busy_teacher(tmp_path_factory: pytest.TempPathFactory, bodies: Bodies) -> Iterator[TeacherProcess]:
    """A teacher with a known capacity and a short queue."""
    with started_teachers(tmp_path_factory) as start:
        teacher = start(
            *("--delay-ms", str(_DELAY_MS), "--concurrency", str(_CONCURRENCY)),
            *("--max-pending", str(_PENDING)),
            store="none",
        )
        asyncio.run(_warm_up(teacher, bodies))
        yield teacher


async def _warm_up(teacher: TeacherProcess, bodies: Bodies) -> None:
    """Has the planner draw every tile once, which takes seconds."""
    async with http_session() as http:
        clients = Clients(http, teacher.url)
        for _ in range(20):
            await asyncio.gather(*(clients.ask(bodies.body()) for _ in range(_CONCURRENCY)))


def test_ten_times_the_capacity(busy_teacher: TeacherProcess, bodies: Bodies) -> None:
    async def measure() -> tuple[Clients, Clients]:
        async with http_session() as http:
            closed, opened = Clients(http, busy_teacher.url), Clients(http, busy_teacher.url)
            until = time.perf_counter() + _SECONDS
            await asyncio.gather(*(closed.closed_loop(bodies.body, until) for _ in range(2 * _CONCURRENCY)))
            await opened.open_loop(bodies.body, 10 * _CAPACITY, _SECONDS)
        return closed, opened

    closed, opened = (clients.replies for clients in asyncio.run(measure()))
    capacity, goodput = rate(closed), rate(opened)
    begins = [reply.at for reply in opened]
    offered = len(begins) / (max(begins) - min(begins))
    print(
        f"\noverload: capacity {capacity:.1f} answers/s in a closed loop (by its flags: {_CAPACITY:g});"
        f" {offered:.0f} questions/s offered for {_SECONDS:g} s"
        f"\noverload: goodput {goodput:.1f} answers/s, {goodput / capacity:.1%} of the capacity;"
        f" {statuses(opened)}"
        f"\noverload: answers {percentiles(answered(opened))}"
        f"\noverload: refusals {percentiles(refused(opened))}, as their clients see it"
    )
    assert_answered_or_refused(closed + opened)
    assert refused(opened)
    assert goodput >= 0.9 * capacity


def test_a_greedy_client_leaves_the_others_their_share(busy_teacher: TeacherProcess, bodies: Bodies) -> None:
    greedy_at_once, modest = 4, 8

    def batch() -> bytes:
        return json.dumps([bodies.question() for _ in range(200)]).encode()

    async def measure() -> tuple[Clients, list[Clients], list[Clients]]:
        async with http_session() as http:
            greedy = Clients(http, busy_teacher.url)
            alone = [Clients(http, busy_teacher.url) for _ in range(modest)]
            beside = [Clients(http, busy_teacher.url) for _ in range(modest)]
            await asyncio.gather(*_modest(alone, bodies))
            until = time.perf_counter() + _SECONDS

            async def ask_greedily() -> None:
                while time.perf_counter() < until:
                    reply = await greedy.ask(batch(), "greedy", "/policy/batch")
                    if reply.status != 200:
                        await asyncio.sleep(0.01)

            await asyncio.gather(*(ask_greedily() for _ in range(greedy_at_once)), *_modest(beside, bodies))
        return greedy, alone, beside

    greedy, alone, beside = asyncio.run(measure())
    print(
        f"\nfairness: greedy, {greedy_at_once} batches of 200 at once: {statuses(greedy.replies)},"
        f" {rate(greedy.replies):.1f} answers/s"
    )
    for name, clients in (("alone", alone), ("beside it", beside)):
        rates = [len(answered(client.replies)) / _SECONDS for client in clients]
        together = [reply for client in clients for reply in client.replies]
        print(
            f"fairness: {modest} modest clients {name}: {min(rates):.1f} to {max(rates):.1f} answers/s each,"
            f" {statuses(together)}; answers {percentiles(answered(together))}"
        )
    fair = _CAPACITY / (modest + 1)
    assert_answered_or_refused([reply for client in beside for reply in client.replies])
    # Each asks one question at a time, which is less than its share
    assert all(len(answered(client.replies)) / _SECONDS > fair / 2 for client in beside)


def _modest(clients: list[Clients], bodies: Bodies) -> list[asyncio.Future[None]]:
    until = time.perf_counter() + _SECONDS
    return [
        asyncio.ensure_future(client.closed_loop(bodies.body, until, f"modest-{number}"))
        for number, client in enumerate(clients)
    ]

"""500 clients at once for minutes: no failures, bounded latency, stable memory."""

import asyncio
import time

import psutil
import pytest

from tests.chaos.bodies import Bodies
from tests.chaos.load import (
    SECONDS,
    Clients,
    answered,
    assert_answered_or_refused,
    http_session,
    p99,
    percentiles,
    rate,
    statuses,
)
from tests.conftest import StartTeacher
from tests.waiting import metric

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(SECONDS + 600)]

_CLIENTS = 500
_UNEVEN = 3
"""How many times slower than the average the slowest answers may be, on a shared machine."""


def test_five_hundred_clients_at_once(teacher_process: StartTeacher, bodies: Bodies) -> None:
    teacher = teacher_process()
    process = psutil.Process(teacher.process.pid)
    mib: list[float] = []

    async def load() -> Clients:
        async with http_session() as http:
            clients = Clients(http, teacher.url)
            until = time.perf_counter() + SECONDS
            asking = asyncio.gather(*(clients.closed_loop(bodies.body, until) for _ in range(_CLIENTS)))
            while not asking.done():
                mib.append(process.memory_info().rss / 2**20)
                await asyncio.wait({asking}, timeout=SECONDS / 100)
            await asking
        return clients

    replies = asyncio.run(load()).replies
    good = answered(replies)
    # Requests queue: the last one waits for as long as all of them take
    bound = _UNEVEN * _CLIENTS / rate(replies)
    stored = metric(teacher, "teacher_questions_total", way="stored")
    start, middle, end = mib[0], mib[len(mib) // 2], mib[-1]
    print(
        f"\nload: {_CLIENTS} clients for {SECONDS:g} s: {len(replies)} replies {statuses(replies)},"
        f" {rate(replies):.0f} answers/s, {stored:.0f} from the store"
        f"\nload: answers {percentiles(good)}; bound of p99: {_UNEVEN} * {_CLIENTS} / rate ="
        f" {bound * 1000:.0f} ms"
        f"\nload: teacher's memory {start:.0f} MiB at the start, {middle:.0f} in the middle, {end:.0f} at the"
        f" end, {max(mib):.0f} at most"
    )
    assert_answered_or_refused(replies)
    assert len(good) > len(replies) / 2
    assert p99(good) < bound
    assert end < 1.1 * middle + 30

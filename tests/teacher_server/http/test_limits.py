"""Quotas and turns of clients, and requests that are refused before their bodies are read."""

import asyncio
import random
from itertools import count

import httpx
import pytest

from teacher_server.service.quotas import FairSemaphore, Quota
from tests.conftest import AskAbout, StartTeacher
from tests.waiting import LONG_S, metric, wait_for

_JSON = {"Content-Type": "application/json"}


@pytest.mark.unit
@pytest.mark.parametrize("clients", [1, 2, 3, 9])
def test_greedy_clients_hold_equal_parts_and_leave_as_much_for_the_next(clients: int) -> None:
    quota = Quota(1000, "questions")
    for _ in range(1000):  # each takes one at a time, while it may
        for client in map(str, range(clients)):
            quota.take(client, min(1, quota.available(client)))
    part = 1000 / (clients + 1)
    for client in map(str, range(clients)):
        assert quota.refusal(client).status == 429
        assert f"you have {round(part)} questions" in quota.refusal(client).reason or clients == 2
    assert abs(quota.taken - clients * part) <= clients
    assert quota.available("newcomer") >= part // 2


@pytest.mark.unit
def test_what_is_taken_at_once_is_what_could_be_taken_one_by_one() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        quota, alike = Quota(50, ""), Quota(50, "")
        for client in rng.choices("abc", k=6):
            amount = quota.available(client)
            quota.take(client, amount)
            one_by_one = next(n for n in count() if not alike.available(client) or alike.take(client, 1))
            assert amount == one_by_one
        assert 0 <= quota.taken <= 50


@pytest.mark.unit
def test_the_last_unit_can_be_taken_and_all_comes_back() -> None:
    quota = Quota(1, "questions")
    assert quota.available("a") == 1
    quota.take("a", 1)
    assert (quota.available("a"), quota.available("b")) == (0, 0)
    assert quota.refusal("b").status == 503
    quota.give_back("a", 1)
    assert (quota.taken, quota.available("b")) == (0, 1)


@pytest.mark.unit
def test_no_place_is_lost_by_cancelling() -> None:
    """Hundreds of clients come and go at random moments: never too many at once, and none is lost."""

    async def test(seed: int) -> None:
        rng, semaphore, inside = random.Random(seed), FairSemaphore(3), 0

        async def visit(client: str) -> None:
            nonlocal inside
            async with semaphore.place(client):
                inside += 1
                try:
                    assert inside <= 3
                    await asyncio.sleep(rng.choice((0, 0, 0.001)))
                finally:
                    inside -= 1

        visits = [asyncio.create_task(visit(rng.choice("abcd"))) for _ in range(200)]
        for visitor in rng.sample(visits, 100):
            await asyncio.sleep(0)
            visitor.cancel()
        done = await asyncio.gather(*visits, return_exceptions=True)
        assert not [error for error in done if isinstance(error, AssertionError)]
        async with asyncio.timeout(LONG_S):
            async with semaphore.place("x"), semaphore.place("y"), semaphore.place("z"):
                pass

    for seed in range(20):
        asyncio.run(test(seed))


@pytest.mark.integration
def test_bodies_above_the_quota_are_refused_unread(
    teacher_process: StartTeacher, ask_about: AskAbout
) -> None:
    teacher = teacher_process("--max-pending-mib", "1", "--delay-ms", "600000", "--concurrency", "1")
    question = ask_about("MiniGrid-LavaGapS5-v0")

    def post(size: int, client: str) -> httpx.Response:
        headers = _JSON | {"X-Client": client}
        return httpx.post(f"{teacher.url}/policy", content=b" " * size, headers=headers, timeout=LONG_S)

    refused = post(600 * 1024, "a")  # one client gets half
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert "of 1048576 at most" in refused.json()["error"]["reason"]
    assert post(500 * 1024, "a").status_code == 422

    untold = (b" " * 4096 for _ in range(200))
    refused = httpx.post(f"{teacher.url}/policy", content=untold, headers=_JSON, timeout=LONG_S)
    assert refused.status_code == 429
    assert "bytes here, which is your share" in refused.json()["error"]["reason"]

    async def hold_and_ask() -> None:
        async with httpx.AsyncClient(timeout=LONG_S) as http:
            padded = question.model_dump_json().encode() + b" " * (400 * 1024)
            url, headers = f"{teacher.url}/policy", _JSON | {"X-Client": "a"}
            held = asyncio.create_task(http.post(url, content=padded, headers=headers))
            await asyncio.to_thread(wait_for, lambda: metric(teacher, "teacher_in_flight") == 1, "a question")
            assert (await asyncio.to_thread(post, 200 * 1024, "a")).status_code == 429
            assert (await asyncio.to_thread(post, 200 * 1024, "b")).status_code == 422
            held.cancel()

    asyncio.run(hold_and_ask())
    wait_for(lambda: post(500 * 1024, "a").status_code == 422, "the bytes of a client that disconnected")
    assert metric(teacher, "teacher_requests_total", status="429") == 2


@pytest.mark.integration
def test_a_full_service_refuses_before_it_reads(teacher_process: StartTeacher, ask_about: AskAbout) -> None:
    teacher = teacher_process("--max-pending", "1", "--delay-ms", "600000")
    question = ask_about("MiniGrid-LavaGapS5-v0").model_dump()

    async def hold_and_ask() -> None:
        async with httpx.AsyncClient(base_url=teacher.url, timeout=LONG_S) as http:
            held = asyncio.create_task(http.post("/policy", json=question))
            await asyncio.to_thread(wait_for, lambda: metric(teacher, "teacher_in_flight") == 1, "a question")
            for client, status in ((None, 429), ("b", 503)):
                headers = _JSON | ({"X-Client": client} if client else {})
                refused = await http.post("/policy", content=b"not even JSON", headers=headers)
                assert refused.status_code == status
                assert refused.headers["Retry-After"] == "1"
            held.cancel()

    asyncio.run(hold_and_ask())

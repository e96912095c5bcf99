"""Load on a teacher: closed loops, whose clients wait for answers, and open loops, whose clients do not."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np

SECONDS = float(os.environ.get("CHAOS_SECONDS", "300"))
"""Duration of the load; set the environment variable for a shorter run."""

OVERLOAD = (429, 503)
_NO_REPLY = 0


@dataclass(frozen=True)
class Reply:
    """A client's view of a request: status (0: the connection broke), duration in seconds, start.

    `answers` is the number of answers in a batch's reply, and at most 1 for a single question.
    """

    status: int
    seconds: float
    at: float
    retry_after: str | None
    answers: int


class Clients:
    """Clients of one teacher in one process, with persistent connections."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http, self._url = http, url
        self.replies: list[Reply] = []

    async def ask(self, body: bytes, name: str = "", path: str = "/policy") -> Reply:
        """Sends a request and records its reply."""
        headers = {"Content-Type": "application/json"} | ({"X-Client": name} if name else {})
        at = time.perf_counter()
        status, retry_after, answers = _NO_REPLY, None, 0
        try:
            async with self._http.post(self._url + path, data=body, headers=headers) as response:
                content = await response.read()
                answers = (
                    content.count(b'"status":200') if path.endswith("/batch") else response.status == 200
                )
                status, retry_after = response.status, response.headers.get("Retry-After")
        except aiohttp.ClientError:
            pass
        reply = Reply(status, time.perf_counter() - at, at, retry_after, int(answers))
        self.replies.append(reply)
        return reply

    async def closed_loop(self, body: Callable[[], bytes], until: float, name: str = "") -> None:
        """Runs a client that asks again after its answer, or after the reply's Retry-After."""
        while time.perf_counter() < until:
            reply = await self.ask(body(), name)
            if reply.status != 200:
                await asyncio.sleep(float(reply.retry_after or 0.1))

    async def open_loop(self, body: Callable[[], bytes], per_s: float, seconds: float) -> None:
        """Sends `per_s` questions a second, whatever their replies; none is repeated."""
        began, asking = time.perf_counter(), []
        for number in range(round(per_s * seconds)):
            await asyncio.sleep(max(0, began + number / per_s - time.perf_counter()))
            asking.append(asyncio.create_task(self.ask(body())))
        await asyncio.gather(*asking)


def http_session() -> aiohttp.ClientSession:
    """Returns a session without a limit on connections."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600)
    )


def rate(replies: Sequence[Reply]) -> float:
    """Returns the answers per second from the first question to the last one."""
    first, last = min(reply.at for reply in replies), max(reply.at for reply in replies)
    return sum(reply.answers for reply in replies if reply.at + reply.seconds <= last) / (last - first)


def percentiles(replies: Sequence[Reply]) -> str:
    """Returns p50, p99 and maximum of the durations as text."""
    if not replies:
        return "none"
    waits_B = np.array([reply.seconds for reply in replies]) * 1000
    p50, p99 = np.percentile(waits_B, [50, 99])
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, maximum {waits_B.max():.1f} ms"


def p99(replies: Sequence[Reply]) -> float:
    """Returns the 99th percentile of the durations, in seconds."""
    return float(np.percentile([reply.seconds for reply in replies], 99))


def statuses(replies: Sequence[Reply]) -> Mapping[int, int]:
    """Returns the number of replies by status."""
    return dict(sorted(Counter(reply.status for reply in replies).items()))


def answered(replies: Sequence[Reply]) -> list[Reply]:
    """Returns the replies with an answer."""
    return [reply for reply in replies if reply.status == 200]


def refused(replies: Sequence[Reply]) -> list[Reply]:
    """Returns the replies of a service that was too busy."""
    return [reply for reply in replies if reply.status in OVERLOAD]


def assert_answered_or_refused(replies: Sequence[Reply]) -> None:
    """Asserts that each reply is an answer, or a refusal with a Retry-After."""
    others = [r for r in replies if r.status != 200 and not (r.status in OVERLOAD and r.retry_after)]
    assert not others, statuses(others)

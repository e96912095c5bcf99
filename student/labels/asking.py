"""Questions on their way: threads draw, post and wait, so that the student does not have to."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread

from teacher_api.schemas import Answer, ErrorBody

TOGETHER = 8
"""Questions in one request, at most. One that leaves alone costs little beside the teacher's time for it."""
_QUICK_S = 0.01
"""A teacher that takes less for a question, as one whose answers are stored, is quick."""
_TOGETHER_IF_QUICK = 64
"""With a quick teacher a request's own cost counts: it waits for so many questions, or the rollout's end."""
THREADS = 32
"""Requests under way at once: with few new states in a step, a request holds few questions."""
_TO_END_S = 0.5

Outcome = Answer | ErrorBody


@dataclass(frozen=True)
class Reply:
    """What came of one request: an outcome for each of its questions, or the error that it met."""

    rows: list[int]
    outcomes: list[Outcome] | Exception


class Asker:
    """Asks in threads of its own, started when they are first needed.

    Its methods are the student's, for one thread. Only `wait` waits; it can be broken off by an exception
    out of a signal handler, and no reply is lost.
    """

    def __init__(self, ask: Callable[[Sequence[int]], list[Outcome]]) -> None:
        """Args:
        ask: puts the questions with these numbers to the teacher; called in the threads.
        """
        self._ask = ask
        self._unsent: deque[int] = deque()
        self._calls: SimpleQueue[bool] = SimpleQueue()
        """True: there is something unsent. Never fewer calls than requests to be made; False: end."""
        self._replies: deque[Reply] = deque()
        self._news: SimpleQueue[None] = SimpleQueue()
        """Not fewer than there are replies; whoever finds none behind one waits for the next."""
        self._quick = False
        self._held = 0
        """Unsent, and no thread was called for them."""
        self._threads: list[Thread] = []
        self.under_way = 0
        """Questions sent whose replies were not taken yet."""

    def send(self, rows: Sequence[int]) -> None:
        """Asks these questions, in this order, as soon as a thread is free; a quick teacher at `flush`."""
        self._unsent.extend(rows)
        self.under_way += len(rows)
        self._held += len(rows)
        if not self._quick or self._held >= _TOGETHER_IF_QUICK:
            self.flush()

    def flush(self) -> None:
        """Lets go what is held back to go together."""
        held, self._held = self._held, 0
        for _ in range(0, held, TOGETHER):
            self._calls.put(True)
            if len(self._threads) < THREADS:
                # A daemon: a process that ends does not wait for a teacher that does not answer
                self._threads.append(Thread(target=self._work, name="asker", daemon=True))
                self._threads[-1].start()

    def replies(self) -> Iterator[Reply]:
        """Those that have come and were not taken yet."""
        while self._replies:
            reply = self._replies.popleft()
            self.under_way -= len(reply.rows)
            yield reply

    def wait(self, timeout_s: float) -> None:
        """Returns when there may be another reply, or after so many seconds."""
        with suppress(Empty):
            self._news.get(timeout=timeout_s)

    def close(self) -> None:
        """Sends nothing more and ends the threads; one whose request is not answered ends with it."""
        self._unsent.clear()
        for _ in self._threads:
            self._calls.put(False)
        end = time.monotonic() + _TO_END_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self) -> None:
        while self._calls.get():
            rows = self._next()
            if rows:
                outcomes: list[Outcome] | Exception
                began = time.monotonic()
                try:
                    outcomes = self._ask(rows)
                    self._quick = time.monotonic() - began < _QUICK_S * len(rows)
                except Exception as error:
                    outcomes = error
                self._replies.append(Reply(rows, outcomes))
                self._news.put(None)

    def _next(self) -> list[int]:
        """What is to be asked in one request; nothing if an earlier one took it along."""
        rows: list[int] = []
        most = _TOGETHER_IF_QUICK if self._quick else TOGETHER
        with suppress(IndexError):
            while len(rows) < most:
                rows.append(self._unsent.popleft())
        return rows

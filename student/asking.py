"""Questions on their way: threads draw, post and wait, so that the student does not have to."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread

from teacher_server.schemas import Answer, ErrorBody

TOGETHER = 8
"""Questions in one request, at most. One that leaves alone costs little: its state was just seen."""
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
        self._threads: list[Thread] = []
        self.under_way = 0
        """Questions sent whose replies were not taken yet."""

    def send(self, rows: Sequence[int]) -> None:
        """Asks these questions, in this order, as soon as a thread is free."""
        self._unsent.extend(rows)
        self.under_way += len(rows)
        for _ in range(0, len(rows), TOGETHER):
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

    def wait(self) -> None:
        """Returns when there may be another reply."""
        self._news.get()

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
                try:
                    outcomes = self._ask(rows)
                except Exception as error:
                    outcomes = error
                self._replies.append(Reply(rows, outcomes))
                self._news.put(None)

    def _next(self) -> list[int]:
        """What is to be asked in one request; nothing if an earlier one took it along."""
        rows: list[int] = []
        with suppress(IndexError):
            while len(rows) < TOGETHER:
                rows.append(self._unsent.popleft())
        return rows

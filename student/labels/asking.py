"""Requests in the background: threads draw pictures and wait for the teacher while the student acts."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread

from teacher_api.schemas import Answer, ErrorBody

TOGETHER = 8
"""Most questions in one request. A request's own cost is small beside the teacher's time for a question."""
_QUICK_S = 0.01
"""A teacher that takes less than this for a question is quick, for example one whose answers are stored."""
_TOGETHER_IF_QUICK = 64
"""With a quick teacher a request's own cost counts, so a request waits for this many questions or for
`flush`."""
THREADS = 32
"""Most requests in flight: where a step meets few new states, each request holds few questions."""
_JOIN_S = 0.5

Outcome = Answer | ErrorBody


@dataclass(frozen=True)
class Reply:
    """The result of one request: an outcome for each question, or the error that the request met."""

    rows: list[int]
    outcomes: list[Outcome] | Exception


class Asker:
    """Sends questions from its own threads, which it starts when they are first needed.

    All methods are called by one thread. Only `wait` blocks; a signal handler may end it by an exception, and
    no reply is lost.
    """

    def __init__(self, ask: Callable[[Sequence[int]], list[Outcome]]) -> None:
        """Args:
        ask: puts the questions with these row numbers to the teacher; called in the threads.
        """
        self._ask = ask
        self._unsent: deque[int] = deque()
        self._calls: SimpleQueue[bool] = SimpleQueue()
        """True: questions may be unsent; False: the thread ends. Calls may outnumber requests."""
        self._replies: deque[Reply] = deque()
        self._wake_ups: SimpleQueue[None] = SimpleQueue()
        """Wake-ups may outnumber replies; wait again if there is none."""
        self._quick = False
        self._held = 0
        """Unsent questions that no thread was called for."""
        self._threads: list[Thread] = []
        self.in_flight = 0
        """Questions whose replies were not taken yet."""

    def send(self, rows: Sequence[int]) -> None:
        """Asks these questions in this order as soon as a thread is free; with a quick teacher at `flush`."""
        self._unsent.extend(rows)
        self.in_flight += len(rows)
        self._held += len(rows)
        if not self._quick or self._held >= _TOGETHER_IF_QUICK:
            self.flush()

    def flush(self) -> None:
        """Sends the questions that are held back for a larger request."""
        held, self._held = self._held, 0
        for _ in range(0, held, TOGETHER):
            self._calls.put(True)
            if len(self._threads) < THREADS:
                # Daemon: the process must not wait at its end for a teacher that does not answer
                self._threads.append(Thread(target=self._work, name="asker", daemon=True))
                self._threads[-1].start()

    def replies(self) -> Iterator[Reply]:
        """Yields the replies that have arrived and were not taken yet."""
        while self._replies:
            reply = self._replies.popleft()
            self.in_flight -= len(reply.rows)
            yield reply

    def wait(self, timeout_s: float) -> None:
        """Returns when another reply may have arrived, or after `timeout_s` seconds."""
        with suppress(Empty):
            self._wake_ups.get(timeout=timeout_s)

    def close(self) -> None:
        """Sends nothing more and ends the threads; a thread whose request is unanswered ends with it."""
        self._unsent.clear()
        for _ in self._threads:
            self._calls.put(False)
        end = time.monotonic() + _JOIN_S
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
                self._wake_ups.put(None)

    def _next(self) -> list[int]:
        """Returns the questions of the next request; none if an earlier request took them all."""
        rows: list[int] = []
        most = _TOGETHER_IF_QUICK if self._quick else TOGETHER
        with suppress(IndexError):
            while len(rows) < most:
                rows.append(self._unsent.popleft())
        return rows

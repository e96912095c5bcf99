"""Gathers requests of many tasks into batches that one thread of its own runs, one after the other."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from teacher_server.engines.base import Decoding, EngineDead, EngineError, EngineHangs, Prompt
from teacher_server.engines.exceptions import words_of

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Request:
    """Asks to go on with the prompt as `decoding` says or, without it, for the scores of `token_ids`."""

    prompt: Prompt
    decoding: Decoding | None = None
    token_ids: tuple[int, ...] = ()
    _answer: Future[Any] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[bool, bool]:
        """What requests of one batch have in common: the work that is to be done, and what is done of it."""
        return self.decoding is None, self.prompt.kept is None

    @property
    def settled(self) -> bool:
        """Whether it was answered or cancelled."""
        return self._answer.done()

    def settle(self, outcome: Any) -> None:
        """Answers, with an exception or a result, unless it was answered or cancelled before."""
        try:
            if isinstance(outcome, Exception):
                self._answer.set_exception(outcome)
            else:
                self._answer.set_result(outcome)
        except InvalidStateError:
            pass

    async def answer(self) -> Any:
        """Waits for the answer; whoever stops waiting cancels the request."""
        return await asyncio.wrap_future(self._answer)


class Batches:
    """Runs what waits in batches of requests to generate and of requests to score, in the order of arrival.

    Args:
        run: settles each request of a batch; of those that it leaves it may raise the reason.
        size: requests in a batch, at most.
        end_s: how long the thread may take to end: a batch looks at each token whether it is wanted still.
    """

    def __init__(self, run: Callable[[list[Request]], None], size: int, end_s: float = 20.0) -> None:
        self._run = run
        self._size = size
        self._end_s = end_s
        self._changed = threading.Condition()
        # The following are touched under the condition's lock only
        self._open = True
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._thread = threading.Thread(target=self._work, daemon=True, name="engine")
        self._thread.start()

    async def answer(self, request: Request) -> Any:
        """The answer to a request. Cancelling this cancels the request.

        Raises:
            EngineError: why it failed; EngineDead: it was closed.
        """
        with self._changed:
            if not self._open:
                raise EngineDead("the engine is closed")
            self._waiting.append(request)
            self._changed.notify_all()
        return await request.answer()

    async def close(self) -> None:
        """Ends the thread; what is not answered yet gets EngineDead.

        Raises:
            EngineHangs: it does not come back from what it runs.
        """
        with self._changed:
            self._open = False
            left = [*self._running, *self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for request in left:
            request.settle(EngineDead("the engine was closed before it answered"))
        await asyncio.to_thread(self._thread.join, self._end_s)
        if self._thread.is_alive():
            raise EngineHangs(f"the engine does not come back from what it computes within {self._end_s:g} s")

    def _work(self) -> None:
        while batch := self._next():
            try:
                self._run(batch)
                outcome = EngineError("the engine gave no answer")
            except EngineError as error:
                outcome = error
            except Exception as error:
                _log.exception("a batch failed")
                # Without the trace, which would keep alive what the failed batch had in memory
                outcome = EngineError(f"the engine failed: {words_of(error)}")
            for request in batch:
                request.settle(outcome)
            # Nothing of the last batch is held while there is nothing to do
            del batch, request, outcome

    def _next(self) -> list[Request]:
        """The longest waiting request and others of its kind; nothing once this is closed."""
        with self._changed:
            self._running = []
            while self._open and not self._running:
                self._changed.wait_for(lambda: self._waiting or not self._open)
                left = deque[Request]()
                for request in self._waiting:
                    if request.settled:
                        continue
                    alike = not self._running or request.kind == self._running[0].kind
                    if alike and len(self._running) < self._size:
                        self._running.append(request)
                    else:
                        left.append(request)
                self._waiting = left
            return self._running

"""Gathers concurrent requests into batches and runs them in threads of their own."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from teacher_server.engines.base import Decoding, EngineDead, EngineError, EngineUnresponsive, Prompt
from teacher_server.engines.exceptions import words_of

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Request:
    """A request to continue the prompt with `decoding` or, without it, to score `token_ids`."""

    prompt: Prompt
    decoding: Decoding | None = None
    token_ids: tuple[int, ...] = ()
    _answer: Future[Any] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[bool, bool]:
        """Requests of one batch share it: whether they score or generate, and whether a prefix is cached."""
        return self.decoding is None, self.prompt.cached is None

    def expanded(self, image_token_id: int, longest: int) -> list[int]:
        """Returns the prompt's token ids with one image token for each visual token.

        Args:
            longest: most tokens of a prompt and what follows it.

        Raises:
            EngineError: the prompt does not fit its pictures, or is empty or too long.
        """
        token_ids, pictures = self.prompt.token_ids, self.prompt.pictures
        places = token_ids.count(image_token_id)
        if places != len(pictures):
            raise EngineError(f"{len(pictures)} pictures for {places} image tokens")
        sizes = iter([picture.tokens for picture in pictures])
        copies = [next(sizes) if token == image_token_id else 1 for token in token_ids]
        ids = [i for i, n in zip(token_ids, copies, strict=True) for _ in range(n)]
        further = self.decoding.max_tokens if self.decoding else 1
        if not ids or len(ids) + further > longest:
            lengths = f"the prompt has {len(ids)} tokens and up to {further} may follow"
            raise EngineError(f"{lengths}: `max_model_len` is {longest}")
        return ids

    @property
    def settled(self) -> bool:
        """Whether the request was answered or cancelled."""
        return self._answer.done()

    def settle(self, outcome: Any) -> None:
        """Answers with a result or an exception, unless the request was answered or cancelled before."""
        try:
            if isinstance(outcome, Exception):
                self._answer.set_exception(outcome)
            else:
                self._answer.set_result(outcome)
        except InvalidStateError:
            pass

    async def answer(self) -> Any:
        """Waits for the answer; cancelling the wait cancels the request."""
        return await asyncio.wrap_future(self._answer)


Take = Callable[[], list[Request]]
"""Takes the oldest waiting request, if there is one, into a running batch."""


class Batches:
    """Runs waiting requests in order of arrival, in batches that either generate or score.

    Args:
        run: settles each request of a batch; it may raise the reason for the ones that it leaves open. It
            may take more requests, of either kind, while it runs.
        size: most requests in a batch at its start.
        threads: batches that run at the same time.
        end_s: how long a thread may take to end: at each token a batch checks which requests are open.
    """

    def __init__(
        self,
        run: Callable[[list[Request], Take], None],
        size: int,
        *,
        threads: int = 1,
        end_s: float = 20.0,
    ) -> None:
        self._run = run
        self._size = size
        self._end_s = end_s
        self._changed = threading.Condition()
        # The following need the condition's lock
        self._open = True
        self._waiting: deque[Request] = deque()
        self._running: list[list[Request]] = []
        self._threads = [
            threading.Thread(target=self._work, daemon=True, name=f"engine-{i}") for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def answer(self, request: Request) -> Any:
        """Returns the answer to a request. Cancelling this call cancels the request.

        Raises:
            EngineError: the request failed; EngineDead: the engine was closed.
        """
        with self._changed:
            if not self._open:
                raise EngineDead("the engine is closed")
            self._waiting.append(request)
            self._changed.notify()
        return await request.answer()

    async def close(self) -> None:
        """Ends the threads; pending requests get EngineDead.

        Raises:
            EngineUnresponsive: a running batch does not end.
        """
        with self._changed:
            self._open = False
            left = [*(request for batch in self._running for request in batch), *self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for request in left:
            request.settle(EngineDead("the engine was closed before it answered"))
        await asyncio.to_thread(self._join)
        if any(thread.is_alive() for thread in self._threads):
            raise EngineUnresponsive(f"the engine's batch has not ended within {self._end_s:g} s")

    def _join(self) -> None:
        end = time.monotonic() + self._end_s
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))

    def _work(self) -> None:
        while batch := self._next():
            try:
                self._run(list(batch), partial(self._take, batch))
                outcome = EngineError("the engine gave no answer")
            except EngineError as error:
                outcome = error
            except Exception as error:
                _log.exception("a batch failed")
                # Without the traceback, which would keep the failed batch's tensors alive
                outcome = EngineError(f"the engine failed: {words_of(error)}")
            with self._changed:
                self._running.remove(batch)
            for request in batch:
                request.settle(outcome)
            # While idle, hold nothing of the last batch
            del batch, request, outcome

    def _next(self) -> list[Request]:
        """Waits for and returns the oldest request and others of its kind; an empty list once closed."""
        with self._changed:
            batch: list[Request] = []
            while self._open and not batch:
                self._changed.wait_for(lambda: self._waiting or not self._open)
                left = deque[Request]()
                for request in self._waiting:
                    if request.settled:
                        continue
                    alike = not batch or request.kind == batch[0].kind
                    if alike and len(batch) < self._size:
                        batch.append(request)
                    else:
                        left.append(request)
                self._waiting = left
            if batch:
                self._running.append(batch)
            return batch

    def _take(self, batch: list[Request]) -> list[Request]:
        """Moves the oldest open request into a running batch, which drops what it has settled."""
        with self._changed:
            while self._waiting:
                request = self._waiting.popleft()
                if not request.settled:
                    batch[:] = [each for each in batch if not each.settled] + [request]
                    return [request]
            return []

"""How clients share what is bounded: quotas of questions and bytes, and turns at the teacher."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from teacher_api.schemas import ErrorBody

_RETRY_AFTER_S = 1.0


class Quota:
    """An amount that clients share: a client may take more while it holds less than what is free.

    A single client gets half of the amount, two clients a third each, n clients an (n + 1)-th each, so that
    the next client finds some of it free (Choudhury and Hahne's dynamic threshold, IEEE/ACM Transactions on
    Networking 6(2), 1998).

    Args:
        size: The whole amount, in whole units.
        unit: The name of the units, for refusals.

    Attributes:
        taken: The amount that all clients hold.
    """

    def __init__(self, size: int, unit: str) -> None:
        self._size, self._unit = size, unit
        self._held: dict[str, int] = {}
        self.taken = 0

    def available(self, client: str) -> int:
        """Returns the amount that a client may take now."""
        free = self._size - self.taken
        return max(0, (free - self._held.get(client, 0) + 1) // 2)

    def take(self, client: str, amount: int) -> None:
        """Takes an available amount."""
        self.taken += amount
        self._held[client] = self._held.get(client, 0) + amount

    def give_back(self, client: str, amount: int) -> None:
        """Gives back a taken amount."""
        self.taken -= amount
        self._held[client] -= amount
        if self._held[client] == 0:
            del self._held[client]  # keeps nothing of clients that are gone

    def refusal(self, client: str) -> ErrorBody:
        """Returns the error for a client that may take no more: 429 if it holds a part, else 503."""
        if held := self._held.get(client, 0):
            status, reason = 429, f"you have {held} {self._unit} here, which is your share of {self._size}"
        else:
            status, reason = 503, f"{self.taken} {self._unit} are here already, of {self._size} at most"
        return ErrorBody(status=status, reason=f"{reason}; ask again later", retry_after=_RETRY_AFTER_S)


class FairSemaphore:
    """A semaphore that serves clients in turn, so that a client's many requests delay only its own."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """Waits for a free place and holds it."""
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait(client)
        try:
            yield
        finally:
            self._release()

    async def _wait(self, client: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()  # the place was given just before the cancellation
            raise

    def _release(self) -> None:
        while self._waiting:
            client, queue = self._waiting.popitem(last=False)
            turn = queue.popleft()
            if queue:
                self._waiting[client] = queue  # behind the other clients
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

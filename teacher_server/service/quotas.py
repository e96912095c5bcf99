"""Shares of what is bounded, among clients: how much each may take, and whose turn it is."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from teacher_api.schemas import ErrorBody

_RETRY_AFTER_S = 1.0


class Share:
    """An amount that clients share: each may take as long as it holds less than what is free for all.

    So one client alone gets half of it, two a third each, n an (n + 1)-th each, and whoever comes next finds
    room (Choudhury and Hahne's dynamic threshold, IEEE/ACM Transactions on Networking 6(2), 1998).

    Args:
        size: the amount in all, in whole units.
        unit: what it is, for the words of a refusal.
    """

    def __init__(self, size: int, unit: str) -> None:
        self._size, self._unit = size, unit
        self._held: dict[str, int] = {}
        self.taken = 0

    def room(self, client: str) -> int:
        """How much a client may take now."""
        free = self._size - self.taken
        return max(0, (free - self._held.get(client, 0) + 1) // 2)

    def take(self, client: str, amount: int) -> None:
        """Takes an amount that there is room for."""
        self.taken += amount
        self._held[client] = self._held.get(client, 0) + amount

    def give(self, client: str, amount: int) -> None:
        """Gives back what was taken."""
        self.taken -= amount
        self._held[client] -= amount
        if self._held[client] == 0:
            del self._held[client]  # so that clients that are gone leave nothing behind

    def refusal(self, client: str) -> ErrorBody:
        """Why there is no room for a client: it has its share (429), or all is taken (503)."""
        if held := self._held.get(client, 0):
            status, reason = 429, f"you have {held} {self._unit} here, which is your share of {self._size}"
        else:
            status, reason = 503, f"{self.taken} {self._unit} are here already, of {self._size} at most"
        return ErrorBody(status=status, reason=f"{reason}; ask again later", retry_after=_RETRY_AFTER_S)


class Places:
    """Places at the teacher, given to waiting clients in turn: who asks much waits for itself."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """Waits for a place, and holds it."""
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait(client)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, client: str) -> None:
        given = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(given)
        try:
            await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                self._pass_on()  # it was given in the moment in which it was no longer wanted
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            client, queue = self._waiting.popitem(last=False)
            given = queue.popleft()
            if queue:
                self._waiting[client] = queue  # behind the others
            if not given.done():
                given.set_result(None)
                return
        self._free += 1

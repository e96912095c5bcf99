"""The processes that an engine has started: ends them, and removes their shared memory."""

import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from teacher_server.engines.base import EngineUnresponsive

_END_S = 30.0
"""How long a killed process may take to end: a driver may hold it for a while."""


class Processes:
    """Some processes and all that they have started so far. Only Linux reports them.

    They are held by handles (pidfd), so a process number that the system reuses does no harm.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._handles: dict[int, int] = {}
        self._segments: set[str] = set()
        for number in _trees(numbers):
            with suppress(OSError):  # it has ended
                self._handles[number] = os.pidfd_open(number)
                self._segments.update(_segments(number))

    def end(self) -> None:
        """Kills the processes that are left, stopped ones included, and removes their shared memory.

        Call it once.

        Raises:
            EngineUnresponsive: a process does not end.
        """
        for handle in self._handles.values():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        try:
            self._wait()
        finally:
            for handle in self._handles.values():
                os.close(handle)
            self._handles.clear()
        for name in self._segments:
            with suppress(FileNotFoundError):
                # Unlinking by name alone would leave it in the list of multiprocessing's resource tracker
                segment = SharedMemory(name)
                segment.close()
                segment.unlink()

    def _wait(self) -> None:
        left = {handle: number for number, handle in self._handles.items()}
        ending = select.poll()
        for handle in left:
            ending.register(handle, select.POLLIN)
        deadline = time.monotonic() + _END_S
        while left:
            ended = ending.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ended:
                numbers = ", ".join(map(str, left.values()))
                raise EngineUnresponsive(
                    f"the engine's processes were killed and have not ended within {_END_S:g} s: {numbers}"
                )
            for handle, _ in ended:
                ending.unregister(handle)
                del left[handle]


def _trees(numbers: Iterable[int]) -> Iterator[int]:
    for number in numbers:
        yield number
        for children in Path(f"/proc/{number}/task").glob("*/children"):
            with suppress(OSError):
                yield from _trees(map(int, children.read_text(encoding="utf-8").split()))


def _segments(number: int) -> set[str]:
    """Returns the names of the shared memory that Python's `SharedMemory` made and the process maps."""
    lines = Path(f"/proc/{number}/maps").read_text(encoding="utf-8").splitlines()
    places = (line.split(maxsplit=5)[5] for line in lines if "/dev/shm/psm_" in line)
    return {place.removeprefix("/dev/shm/") for place in places if not place.endswith(" (deleted)")}

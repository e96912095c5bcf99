"""SIGINT and SIGTERM that stop a run only between two steps of its work."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """A signal stopped the run."""


class Interrupts:
    """Notes signals; `check` and `allowed` turn them into `Interrupted`."""

    def __init__(self) -> None:
        self._allowed = self._signalled = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handles SIGINT and SIGTERM within a `with` block."""

        def on_signal(number: int, frame: FrameType | None) -> None:
            self._signalled = True
            if self._allowed:
                raise Interrupted

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Lets a signal end a `with` block at any point, for example while the block waits.

        Raises:
            Interrupted: a signal came, now or before.
        """
        self._allowed = True
        try:
            self.check()
            yield
        finally:
            self._allowed = False

    @property
    def signalled(self) -> bool:
        """Whether a signal came."""
        return self._signalled

    def check(self) -> None:
        """Raises `Interrupted` if a signal came."""
        if self._signalled:
            raise Interrupted

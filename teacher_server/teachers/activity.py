"""Whether a model that is asked answers: counted where it is asked, looked at by the watchdog."""

from collections.abc import Iterator
from contextlib import contextmanager

from teacher_server.teachers.base import UnreadableAnswer


class Progress:
    """Counts questions.

    Attributes:
        asked: those that the model has now.
        answered: those that it has answered so far, readably or not.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.answered = 0

    @contextmanager
    def asking(self) -> Iterator[None]:
        """While a question is asked: one that is given up, or that the engine failed on, is not answered."""
        self.asked += 1
        try:
            yield
        except UnreadableAnswer as unreadable:
            self.answered += unreadable.fault != "engine"
            raise
        else:
            self.answered += 1
        finally:
            self.asked -= 1

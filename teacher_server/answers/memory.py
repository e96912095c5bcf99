"""Answers in memory, so that a remote store is asked about each once."""

from collections import OrderedDict

from teacher_server.answers.rows import Key


class Memory:
    """The answers that were used last, up to a size in bytes of their texts."""

    def __init__(self, max_bytes: float) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._answers: OrderedDict[Key, str] = OrderedDict()

    def get(self, key: Key) -> str | None:
        """Returns an answer, or None."""
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
        return answer

    def put(self, key: Key, answer: str) -> None:
        """Keeps an answer; forgets those that were not used for longest."""
        self._bytes -= len(self._answers.pop(key, ""))
        self._answers[key] = answer
        self._bytes += len(answer)
        while self._bytes > self._max_bytes:
            _, forgotten = self._answers.popitem(last=False)
            self._bytes -= len(forgotten)

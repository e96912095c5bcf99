"""The interface of an answer store, as the service uses it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from teacher_server.answers.rows import Key


class AnswerStore(ABC):
    """Keeps every answer, so that a teacher answers each question once.

    Several processes may share a store.
    """

    @abstractmethod
    def register(self, identity: str, description: dict[str, Any], name: str | None = None) -> None:
        """Stores a teacher's description, before its first answer is put.

        Args:
            name: the checkpoint's name for people, not part of the identity; replaces an earlier name.

        Raises:
            StoreError: the store cannot be written.
        """

    @abstractmethod
    def get_many(self, keys: Iterable[Key]) -> dict[Key, str | None]:
        """Returns those answers (JSON) that can be had without waiting; None for a damaged one.

        Raises:
            StoreError: the store cannot be read.
        """

    async def claim(self, key: Key) -> str | None:
        """Returns the answer to a question, or None if this process is to ask the teacher.

        With None, other processes that share the store wait for the answer, until it is put, the question is
        given up, or this process ends.

        Raises:
            StoreError: the store cannot be used; the question is not claimed.
        """
        return None

    def give_up(self, key: Key) -> None:
        """Lets other processes ask a claimed question that gets no answer here."""
        return

    @abstractmethod
    async def put(self, key: Key, answer: str, picture: bytes | None = None) -> None:
        """Stores an answer (JSON), unless the key has a sound one; returns when the answer is stored.

        When it returns, the answer survives the end of the process.

        Args:
            picture: the question's picture file.

        Raises:
            StoreError: the store cannot be written.
        """

    @abstractmethod
    async def keep(self, pictures: Mapping[bytes, bytes]) -> None:
        """Stores picture files, by their SHA-256, of stored answers; returns when they are stored.

        Raises:
            StoreError: the store cannot be read or written.
        """

    @abstractmethod
    async def close(self) -> None:
        """Finishes the pending writes and closes the store."""

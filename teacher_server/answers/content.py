"""What a store holds, for the commands that show, carry and delete answers; and its SQLite form."""

import hashlib
import math
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher_server.answers import layout
from teacher_server.answers.errors import store_error
from teacher_server.answers.layout import UNLESS_SOUND
from teacher_server.answers.lock import beside
from teacher_server.answers.opening import damage_in, open_existing, open_store
from teacher_server.answers.reading import answers_of, known_teachers, names_of
from teacher_server.answers.rows import Row
from teacher_server.answers.size import Deleted, bytes_in_use, delete, evict, shrink

StoreRow = Row | tuple[str, str] | tuple[str, str, float] | tuple[bytes, bytes]
"""A row of the store: an answer; identity and description; identity, name and time; digest and picture."""
TABLES = {(2, str): "teachers", (8, str): "answers", (3, str): "names", (2, bytes): "pictures"}
"""The table of a row by its length and the type of its first value."""


@dataclass(frozen=True)
class ImportReport:
    """How many answers were new and how many already stored; `differ` of these in their probabilities."""

    new: int
    known: int
    differ: int


class StoreContent(ABC):
    """The content of a store, which teachers may use meanwhile.

    Attributes:
        version: of the store's tables.
        name: the store's, for people, without secrets.
    """

    version: int

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def teachers(self) -> dict[str, dict[str, Any] | None]:
        """Returns each identity, in order, with its description; None if it does not match the identity."""

    @abstractmethod
    def names(self) -> dict[str, str]:
        """Returns the checkpoint's name of each identity when it was last served."""

    @abstractmethod
    def answers(
        self, identity: str, *, task: str | None = None, newest_first: bool = False
    ) -> Iterator[Row | None]:
        """Yields a teacher's answers, None for a damaged one.

        Args:
            task: only answers about this task.
            newest_first: else they come in the order of their keys.
        """

    @abstractmethod
    def picture(self, digest: bytes) -> bytes | None:
        """Returns the stored picture file with this SHA-256."""

    @abstractmethod
    def merge(self, rows: Iterable[StoreRow]) -> ImportReport:
        """Adds rows in one transaction; an answer already stored stays, unless it is damaged."""

    @abstractmethod
    def count(self, identity: str | None = None, before: float = math.inf) -> int:
        """Returns the number of answers given up to `before`, of one teacher or of all."""

    @abstractmethod
    def delete(self, identity: str, before: float = math.inf) -> Iterator[int]:
        """Deletes a teacher's answers given up to `before`, a few at a time; yields how many each time."""

    @abstractmethod
    def evict(self, max_bytes: float) -> Deleted | None:
        """Deletes a few of the oldest answers if more than `max_bytes` are in use; returns None if not."""

    @abstractmethod
    def shrink(self) -> None:
        """Returns free space to the disk."""

    @property
    @abstractmethod
    def in_use(self) -> int:
        """Bytes in use."""

    @property
    @abstractmethod
    def on_disk(self) -> int:
        """Bytes on the disk."""

    @abstractmethod
    def damage(self) -> str | None:
        """Checks the whole store; returns the first problem, or None."""


class SqliteContent(StoreContent):
    """The content of an SQLite file. Methods raise sqlite3.Error if the file cannot be read or written."""

    version = layout.VERSION

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        super().__init__(str(path))
        self._connection, self._path = connection, path

    def teachers(self) -> dict[str, dict[str, Any] | None]:
        """Returns each identity with its description."""
        return known_teachers(self._connection)

    def names(self) -> dict[str, str]:
        """Returns the checkpoints' names; older stores have none."""
        return names_of(self._connection)

    def answers(
        self, identity: str, *, task: str | None = None, newest_first: bool = False
    ) -> Iterator[Row | None]:
        """Yields a teacher's answers."""
        return answers_of(self._connection, identity, task=task, newest_first=newest_first)

    def picture(self, digest: bytes) -> bytes | None:
        """Returns a stored picture, if it is whole."""
        row = self._connection.execute("SELECT file FROM pictures WHERE digest = ?", (digest,)).fetchone()
        return None if row is None or hashlib.sha256(row[0]).digest() != digest else bytes(row[0])

    def merge(self, rows: Iterable[StoreRow]) -> ImportReport:
        """Adds rows; all rows are read before the store is locked for writing."""
        connection = self._connection
        for table in TABLES.values():
            connection.execute(
                f"CREATE TEMP TABLE IF NOT EXISTS new_{table} AS SELECT * FROM {table} WHERE false"
            )
        with connection:
            connection.execute("BEGIN")
            for table in TABLES.values():
                connection.execute(f"DELETE FROM new_{table}")
            for row in rows:
                values = ", ".join("?" * len(row))
                connection.execute(f"INSERT INTO new_{TABLES[len(row), type(row[0])]} VALUES ({values})", row)
            for table in ("teachers", "names", "pictures"):
                connection.execute(f"INSERT OR IGNORE INTO {table} SELECT * FROM new_{table}")
            (differ,) = connection.execute(
                """SELECT count(*) FROM new_answers AS new
                JOIN answers AS old USING (identity, picture, mission, task, actions)
                WHERE CASE WHEN sound(new.identity, new.picture, new.mission, new.task, new.actions,
                                      CAST(old.answer AS BLOB), old.checksum)
                    THEN json_extract(new.answer, '$.probabilities')
                         IS NOT json_extract(old.answer, '$.probabilities') END"""
            ).fetchone()
            (total,) = connection.execute("SELECT count(*) FROM new_answers").fetchone()
            put = connection.execute(
                f"INSERT INTO answers SELECT * FROM new_answers WHERE true {UNLESS_SOUND}"
            )
            return ImportReport(put.rowcount, total - put.rowcount, differ)

    def count(self, identity: str | None = None, before: float = math.inf) -> int:
        """Returns the number of answers."""
        query = "SELECT count(*) FROM answers WHERE identity = coalesce(?, identity) AND created <= ?"
        return int(self._connection.execute(query, (identity, before)).fetchone()[0])

    def delete(self, identity: str, before: float = math.inf) -> Iterator[int]:
        """Deletes answers."""
        return delete(self._connection, identity, before)

    def evict(self, max_bytes: float) -> Deleted | None:
        """Deletes a few of the oldest answers."""
        return evict(self._connection, max_bytes)

    def shrink(self) -> None:
        """Returns free pages to the disk."""
        shrink(self._connection)

    @property
    def in_use(self) -> int:
        """The size of the pages in use."""
        return bytes_in_use(self._connection)

    @property
    def on_disk(self) -> int:
        """The size of the file and its -wal."""
        size = 0
        for file in (self._path, beside(self._path, "-wal")):
            with suppress(FileNotFoundError):
                size += file.stat().st_size
        return size

    def damage(self) -> str | None:
        """Checks all pages."""
        return damage_in(self._connection)

    def forget_unused_pictures(self) -> None:
        """Deletes the pictures that no answer is about."""
        self._connection.execute("DELETE FROM pictures WHERE digest NOT IN (SELECT picture FROM answers)")


@contextmanager
def sqlite_content(path: Path, lock_timeout_s: float, *, make: bool = False) -> Iterator[SqliteContent]:
    """Yields the content of a file; with `make`, creates the store if there is none.

    Raises:
        StoreError: the store cannot be used.
    """
    lock, connection = open_store(path, lock_timeout_s) if make else open_existing(path, lock_timeout_s)
    try:
        with closing(connection):
            yield SqliteContent(connection, path)
    except sqlite3.Error as error:
        raise store_error(path, error) from error
    finally:
        lock.release()

"""The store of a service in an SQLite file: immediate look-ups, writes in a thread, a size limit."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from teacher_server.answers.errors import is_damage, store_error
from teacher_server.answers.layout import UNLESS_SOUND, connect
from teacher_server.answers.opening import open_store
from teacher_server.answers.rows import Key, Row, as_stored, checksum, row_of
from teacher_server.answers.size import bytes_in_use, evict
from teacher_server.answers.store import AnswerStore

_T = TypeVar("_T")
_Write = tuple[str, Sequence[tuple[Any, ...]]]
"""A statement and the rows to run it for."""

_LOOK_UP = """SELECT CAST(answer AS BLOB), checksum FROM answers
    WHERE identity = ? AND picture = ? AND mission = ? AND task = ? AND actions = ?"""
_PUT = f"INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?) {UNLESS_SOUND}"
_REGISTER = """INSERT INTO teachers VALUES (?, ?)
    ON CONFLICT DO UPDATE SET description = excluded.description WHERE description <> excluded.description"""
_NAME = """INSERT INTO names VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET name = excluded.name, served = excluded.served"""
_KEEP = """INSERT OR IGNORE INTO pictures SELECT ?1, ?2 WHERE EXISTS (
    SELECT 1 FROM answers WHERE identity IN (SELECT identity FROM teachers) AND picture = ?1)"""
_IS_KEPT = "SELECT 1 FROM pictures WHERE digest = ?"
_READ_LOCK_TIMEOUT_S = 0.2
"""In WAL mode a reader waits only for a process that replays the -wal or vacuums the file."""


@dataclass(eq=False)
class _Group:
    """Answers and pictures for one transaction, and the task that writes them."""

    rows: list[Row] = field(default_factory=list)
    pictures: dict[bytes, bytes] = field(default_factory=dict)
    written: asyncio.Task[None] | None = None


class SqliteStore(AnswerStore):
    """Answers in an SQLite file (WAL mode), which several processes may share.

    When `put` returns, the answer survives the end of the process. Look-ups run in the calling thread and do
    not wait for writers; writes run in a separate thread and may wait for other processes. When the pages in
    use exceed `max_mib`, the oldest answers are deleted, a few at a time between writes: first those of other
    teachers, then those of the teacher that answered last.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_mib: float = 4096.0,
        on_evicted: Callable[[int], object] = lambda _: None,
        lock_timeout_s: float = 5.0,
    ) -> None:
        """Opens or creates the file; sets a damaged one aside (see `open_store`).

        Args:
            on_evicted: called in the writing thread with the number of deleted answers.

        Raises:
            StoreError: the file cannot be opened or created, or is not an answer store of a known version.
        """
        self.path = path
        self._max_bytes, self._on_evicted = max_mib * 2**20, on_evicted
        self._lock, self._writer = open_store(path, lock_timeout_s)
        try:
            self._reader = connect(path, _READ_LOCK_TIMEOUT_S)
            self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            self._writer.close()
            self._lock.release()
            raise store_error(path, error) from error
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._turn = asyncio.Lock()
        self._group = _Group()
        self._evicting: asyncio.Task[None] | None = None

    def register(self, identity: str, description: dict[str, Any], name: str | None = None) -> None:
        """Stores a teacher's description, in the writing thread."""
        writes: list[_Write] = [(_REGISTER, [(identity, as_stored(description))])]
        if name is not None:
            writes.append((_NAME, [(identity, name, time.time())]))
        # In the writing thread, so that the statements are in no other transaction
        self._thread.submit(self._write, writes).result()

    def get_many(self, keys: Iterable[Key]) -> dict[Key, str | None]:
        """Returns the stored answers, read in one transaction."""
        try:
            self._reader.execute("BEGIN")
            try:
                rows = {key: self._look_up(key.columns) for key in keys}
            finally:
                self._reader.rollback()  # a commit fails after a damaged page was read
        except sqlite3.Error as error:
            raise store_error(self.path, error) from error
        return {key: row[0] for key, row in rows.items() if row is not None}

    async def put(self, key: Key, answer: str, picture: bytes | None = None) -> None:
        """Stores an answer, and a picture until the last answer about it is deleted."""
        self._group.rows.append(row_of(key, answer, time.time()))
        if picture is not None:
            self._group.pictures[key.picture] = picture
        await self._written()

    async def keep(self, pictures: Mapping[bytes, bytes]) -> None:
        """Stores picture files of stored answers."""
        try:
            new = {
                digest: file
                for digest, file in pictures.items()
                if self._reader.execute(_IS_KEPT, (digest,)).fetchone() is None
            }
        except sqlite3.Error as error:
            raise store_error(self.path, error) from error
        if new:
            self._group.pictures |= new
            await self._written()

    async def _written(self) -> None:
        """Returns when the current group is in the file."""
        group = self._group
        if group.written is None:
            group.written = asyncio.create_task(self._write_in_turn(group))
        await asyncio.shield(group.written)

    async def close(self) -> None:
        """Finishes the pending writes and closes the file."""
        if self._group.written is not None:
            await asyncio.wait([self._group.written])
        if self._evicting is not None:
            self._evicting.cancel()
        async with self._turn:
            self._thread.shutdown()
        self._reader.close()
        self._writer.close()
        self._lock.release()

    def _look_up(self, columns: tuple[str | bytes, ...]) -> tuple[str | None] | None:
        """Returns (answer,) for a key's columns, (None,) if the answer is damaged, None if there is none."""
        try:
            row = self._reader.execute(_LOOK_UP, columns).fetchone()
        except sqlite3.DatabaseError as error:
            if is_damage(error):  # in the pages of this answer
                return (None,)
            raise
        if row is None:
            return None
        answer, stored = row
        return (answer.decode() if checksum(*columns, answer) == stored else None,)

    async def _write_in_turn(self, group: _Group) -> None:
        # Answers that arrive while a group is being written form the next group: one commit for many answers
        async with self._turn:
            self._group = _Group()
            over = await self._in_thread(lambda: self._write_group(group))
        if over and (self._evicting is None or self._evicting.done()):
            answering = {identity for identity, *_ in group.rows}
            self._evicting = asyncio.create_task(self._evict_in_turn(answering))

    async def _evict_in_turn(self, answering: set[str]) -> None:
        more = True
        while more:
            async with self._turn:  # waiting writes run in between
                more = await self._in_thread(lambda: self._evict(answering))

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _write_group(self, group: _Group) -> bool:
        """Writes a group; returns whether the file now exceeds its size limit."""
        self._write([(_PUT, group.rows), (_KEEP, list(group.pictures.items()))])
        return bytes_in_use(self._writer) > self._max_bytes

    def _evict(self, answering: set[str]) -> bool:
        """Deletes a few answers; returns whether more may have to be deleted."""
        try:
            deleted = evict(self._writer, self._max_bytes, spared=answering)
        except sqlite3.Error:  # the next write reports the error and tries again
            return False
        if deleted is None:
            return False
        self._on_evicted(deleted.number)
        return True

    def _write(self, writes: Sequence[_Write]) -> None:
        try:
            with self._writer:  # commits, or rolls back
                self._writer.execute("BEGIN IMMEDIATE")
                for statement, rows in writes:
                    self._writer.executemany(statement, rows)
        except sqlite3.Error as error:
            raise store_error(self.path, error) from error

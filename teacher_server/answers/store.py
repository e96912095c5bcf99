"""The store of a running service: look-ups at once, writes in a thread of their own, within a size."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from teacher_server.answers.errors import store_error, tells_of_damage
from teacher_server.answers.layout import UNLESS_SOUND, connect
from teacher_server.answers.opening import open_store
from teacher_server.answers.rows import Key, Row, as_stored, checksum, row_of
from teacher_server.answers.size import bytes_in_use, evict

_T = TypeVar("_T")
_Write = tuple[str, Sequence[tuple[Any, ...]]]
"""A statement, and the rows that it is run for."""

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
"""Readers wait for nobody in WAL mode, but for a process that recovers or rebuilds the file."""


@dataclass(eq=False)
class _Group:
    """Answers and pictures that one transaction writes, and the task that does."""

    rows: list[Row] = field(default_factory=list)
    pictures: dict[bytes, bytes] = field(default_factory=dict)
    written: asyncio.Task[None] | None = None


class AnswerStore:
    """Answers in an SQLite file (WAL), which several processes may share.

    An answer that `put` returned from outlives the process. Look-ups never wait for writers, so they
    run where they are called; writes run in a thread of their own and may wait for other processes.
    When the file's pages in use are more than `max_mib`, the oldest answers go, of teachers that did not
    answer last before those of the one that did, a few at a time between writes.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_mib: float = 4096.0,
        on_evicted: Callable[[int], object] = lambda _: None,
        lock_timeout_s: float = 5.0,
    ) -> None:
        """Opens the file, or makes it, or saves what is sound in a damaged one; see `open_store`.

        Args:
            on_evicted: told how many answers went, in the thread of the writes.

        Raises:
            StoreError: it cannot be opened or made, or is not an answer store of a version known here.
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
        """Makes a teacher known, before its first answer is put.

        Args:
            name: by which people know it; no part of the identity, and the last one counts.

        Raises:
            StoreError: it could not be written.
        """
        writes: list[_Write] = [(_REGISTER, [(identity, as_stored(description))])]
        if name is not None:
            writes.append((_NAME, [(identity, name, time.time())]))
        # In the writes' thread, so that it is in no other transaction
        self._thread.submit(self._write, writes).result()

    def get_many(self, keys: Iterable[Key]) -> dict[Key, str | None]:
        """The answers, as JSON, of those keys that have one; None for one that is damaged. One transaction.

        Raises:
            StoreError: it could not be read.
        """
        try:
            self._reader.execute("BEGIN")
            try:
                rows = {key: self._look_up(key.columns) for key in keys}
            finally:
                self._reader.rollback()  # a commit fails once damage was met
        except sqlite3.Error as error:
            raise store_error(self.path, error) from error
        return {key: row[0] for key, row in rows.items() if row is not None}

    async def put(self, key: Key, answer: str, picture: bytes | None = None) -> None:
        """Stores an answer (JSON); a key that has a sound one keeps it. Returns when it is in the file.

        Args:
            picture: the file that was asked about, to be kept as long as an answer about it.

        Raises:
            StoreError: it could not be written.
        """
        self._group.rows.append(row_of(key, answer, time.time()))
        if picture is not None:
            self._group.pictures[key.picture] = picture
        await self._written()

    async def keep(self, pictures: Mapping[bytes, bytes]) -> None:
        """Keeps files by their SHA-256 that stored answers are about; returns when they are in the file.

        Raises:
            StoreError: they could not be read or written.
        """
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
        """Returns when the group at hand is in the file."""
        group = self._group
        if group.written is None:
            group.written = asyncio.create_task(self._write_in_turn(group))
        await asyncio.shield(group.written)

    async def close(self) -> None:
        """Finishes what is being written and closes the file."""
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
        """The answer of a key's columns in a row, if it has one; None in the row if it is damaged."""
        try:
            row = self._reader.execute(_LOOK_UP, columns).fetchone()
        except sqlite3.DatabaseError as error:
            if tells_of_damage(error):  # of the pages that this one is in
                return (None,)
            raise
        if row is None:
            return None
        answer, kept = row
        return (answer.decode() if checksum(*columns, answer) == kept else None,)

    async def _write_in_turn(self, group: _Group) -> None:
        # The answers that come while another group is written make one group: one commit for many
        async with self._turn:
            self._group = _Group()
            over = await self._in_thread(lambda: self._write_group(group))
        if over and (self._evicting is None or self._evicting.done()):
            answering = {identity for identity, *_ in group.rows}
            self._evicting = asyncio.create_task(self._evict_in_turn(answering))

    async def _evict_in_turn(self, answering: set[str]) -> None:
        more = True
        while more:
            async with self._turn:  # writes that wait have their turn in between
                more = await self._in_thread(lambda: self._evict(answering))

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _write_group(self, group: _Group) -> bool:
        """Writes it; returns whether the file is over its size now."""
        self._write([(_PUT, group.rows), (_KEEP, list(group.pictures.items()))])
        return bytes_in_use(self._writer) > self._max_bytes

    def _evict(self, answering: set[str]) -> bool:
        """Makes some room; returns whether there may be more to do."""
        try:
            gone = evict(self._writer, self._max_bytes, spared=answering)
        except sqlite3.Error:  # the next write tells of it, and begins anew
            return False
        if gone is None:
            return False
        self._on_evicted(gone.number)
        return True

    def _write(self, writes: Sequence[_Write]) -> None:
        try:
            with self._writer:  # commits, or rolls back
                self._writer.execute("BEGIN IMMEDIATE")
                for statement, rows in writes:
                    self._writer.executemany(statement, rows)
        except sqlite3.Error as error:
            raise store_error(self.path, error) from error

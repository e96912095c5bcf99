"""The answer store: each question is asked once, ever, whichever process asked it."""

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_APPLICATION_ID = 0x6C766C6D  # "lvlm" in ASCII
_SCHEMA_VERSION = 1
_TABLES = (
    """CREATE TABLE teachers (
        identity    TEXT PRIMARY KEY,
        description TEXT NOT NULL       -- JSON: everything in the identity
    ) STRICT""",
    """CREATE TABLE answers (
        identity TEXT NOT NULL REFERENCES teachers (identity),
        picture  BLOB NOT NULL,         -- SHA-256 of the picture's file
        mission  TEXT NOT NULL,
        task     TEXT NOT NULL,
        actions  TEXT NOT NULL,         -- in the order asked, with commas in between
        answer   TEXT NOT NULL,         -- JSON, as it was first given
        created  REAL NOT NULL,         -- seconds since 1970
        PRIMARY KEY (identity, picture, mission, task, actions)
    ) STRICT""",
)
_LOOK_UP = """SELECT answer FROM answers
    WHERE identity = ? AND picture = ? AND mission = ? AND task = ? AND actions = ?"""
_PUT = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)"
_READ_LOCK_TIMEOUT_S = 0.2
"""Readers wait for nobody in WAL mode, but for a process that recovers or rebuilds the file."""


class StoreError(Exception):
    """The answer store cannot be used; the message says which file and what to do."""


@dataclass(frozen=True)
class Key:
    """What an answer depends on, and nothing else."""

    identity: str
    picture: bytes
    mission: str
    task: str
    actions: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, bytes, str, str, str]:
        """The primary key's columns, in order."""
        return self.identity, self.picture, self.mission, self.task, ",".join(self.actions)


_Row = tuple[str | bytes | float, ...]


@dataclass(eq=False)
class _Group:
    """Answers that one transaction writes, and the task that does."""

    rows: list[_Row] = field(default_factory=list)
    written: asyncio.Task[None] | None = None


class AnswerStore:
    """Answers in an SQLite file (WAL), which several processes may share.

    An answer that `put` returned from outlives the process. Look-ups never wait for writers, so they
    run where they are called; writes run in a thread of their own and may wait for other processes.
    """

    def __init__(self, path: Path, *, lock_timeout_s: float = 5.0) -> None:
        """Opens the file, or makes it.

        Raises:
            StoreError: it cannot be opened or made, or is not an answer store of this version.
        """
        self.path = path
        try:
            self._writer = _connect(path, lock_timeout_s)
            _prepare(self._writer, path)
            self._reader = _connect(path, _READ_LOCK_TIMEOUT_S)
            self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            raise StoreError(_why_not(path, error)) from error
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._turn = asyncio.Lock()
        self._group = _Group()

    def register(self, identity: str, description: dict[str, Any]) -> None:
        """Makes a teacher known, before its first answer is put.

        Raises:
            StoreError: it could not be written.
        """
        row = (identity, json.dumps(description, sort_keys=True))
        try:
            self._writer.execute("INSERT OR IGNORE INTO teachers VALUES (?, ?)", row)
        except sqlite3.Error as error:
            raise StoreError(_why_not(self.path, error)) from error

    def get_many(self, keys: Iterable[Key]) -> dict[Key, str]:
        """The answers, as JSON, of those keys that have one; all looked up in one transaction.

        Raises:
            StoreError: it could not be read.
        """
        try:
            with self._reader:
                self._reader.execute("BEGIN")
                rows = {key: self._reader.execute(_LOOK_UP, key.columns).fetchone() for key in keys}
        except sqlite3.Error as error:
            raise StoreError(_why_not(self.path, error)) from error
        return {key: row[0] for key, row in rows.items() if row is not None}

    async def put(self, key: Key, answer: str) -> None:
        """Stores an answer (JSON); a key that has one keeps it. Returns when it is in the file.

        Raises:
            StoreError: it could not be written.
        """
        group = self._group
        group.rows.append((*key.columns, answer, time.time()))
        if group.written is None:
            group.written = asyncio.create_task(self._write_in_turn(group))
        await asyncio.shield(group.written)

    async def close(self) -> None:
        """Finishes what is being written and closes the file."""
        if self._group.written is not None:
            await asyncio.wait([self._group.written])
        async with self._turn:
            self._thread.shutdown()
        self._reader.close()
        self._writer.close()

    async def _write_in_turn(self, group: _Group) -> None:
        # The answers that come while another group is written make one group: one commit for many
        async with self._turn:
            self._group = _Group()
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._write, group.rows)

    def _write(self, rows: list[_Row]) -> None:
        try:
            with self._writer:  # commits, or rolls back
                self._writer.execute("BEGIN IMMEDIATE")
                self._writer.executemany(_PUT, rows)
        except sqlite3.Error as error:
            raise StoreError(_why_not(self.path, error)) from error


def _connect(path: Path, lock_timeout_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path.absolute().as_uri() + "?mode=rwc",
        uri=True,
        timeout=lock_timeout_s,
        isolation_level=None,
        check_same_thread=False,  # the writer is opened here and used in its thread
    )
    # With WAL, NORMAL loses nothing when a process is killed; only a power cut can take the last answers
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Makes the tables in a new file; refuses a file that is something else."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")  # two processes may start on a new file at once
        application = _number(connection, "PRAGMA application_id")
        version = _number(connection, "PRAGMA user_version")
        if application == 0 and _number(connection, "SELECT count(*) FROM sqlite_schema") == 0:
            for table in _TABLES:
                connection.execute(table)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        elif application != _APPLICATION_ID:
            raise StoreError(f"{path} is a database of another program; name another file with --store")
        elif version != _SCHEMA_VERSION:
            raise StoreError(
                f"{path} is an answer store of version {version}, and this program reads version"
                f" {_SCHEMA_VERSION}; name another file with --store"
            )
    connection.execute("PRAGMA journal_mode = WAL")


def _number(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])


def _why_not(path: Path, error: sqlite3.Error) -> str:
    """The error in words, with what to do."""
    if path.is_dir():
        return f"{path} is a folder; name a file with --store"
    if not path.parent.is_dir():
        return (
            f"{path.parent} is no folder, so {path.name} cannot be made in it; name another file with --store"
        )
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if name == "SQLITE_NOTADB":
        return f"{path} is not a database; name another file with --store, or move this one away"
    return f"the answer store {path} cannot be used: {error} ({name})"

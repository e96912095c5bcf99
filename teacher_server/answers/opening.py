"""Opens a store: new, sound, of an older version, or damaged, which is set aside for a new one."""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from teacher_server.answers.errors import StoreError, is_damage, store_error
from teacher_server.answers.layout import (
    APPLICATION_ID,
    LAST_VERSION,
    VERSION,
    connect,
    number,
    prepare,
    version_of,
)
from teacher_server.answers.lock import StoreLock, beside

_log = logging.getLogger(__name__)

_MAGIC = b"SQLite format 3\0"
_WAL_MAGIC = frozenset({0x377F0682, 0x377F0683})
_PREFIX = "*** in database main ***"


class _Damaged(Exception):
    """The file is a store and is damaged; the message says where."""


def open_store(path: Path, lock_timeout_s: float) -> tuple[StoreLock, sqlite3.Connection]:
    """Opens a store for writing and creates it if there is none; returns the lock beside it as well.

    **What counts as a store.** A file with SQLite's magic and our application id, or one with the lock file
    beside it that a store gets when it is first opened. Any other file is refused and left untouched: a text,
    a database of another program. So is a sound database of another program, or of a newer version, in a
    store's place. An empty file is a new store, unless it has a -wal.

    **What counts as damage.** Every start checks all pages (`quick_check`), the header, the tables and the
    -wal. A damaged store is renamed to NAME.damaged-TIME, with its -wal, and a new, empty store takes its
    place; a warning says how to recover the answers. Single damaged answers in sound pages are found by their
    checksums when they are looked up.

    **Several processes.** A process that uses a store holds a shared lock on STORE-lock; setting the store
    aside takes the exclusive lock. A store that another process has open is therefore never set aside.

    Raises:
        StoreError: the file is not a store, is locked, or cannot be read or written; or it is damaged and
            another process has it open.
    """
    with _lock_of(path) as lock:
        return lock, _opened(path, lock, lock_timeout_s)


def open_existing(path: Path, lock_timeout_s: float) -> tuple[StoreLock, sqlite3.Connection]:
    """Opens an existing store; creates nothing and sets nothing aside.

    Raises:
        StoreError: there is no store, or it cannot be used.
    """
    if not path.is_file() or not path.stat().st_size:
        raise StoreError(f"there is no answer store {path}: set `store` to an existing one")
    with _lock_of(path) as lock:
        lock.share()
        try:
            with closing(connect(path, lock_timeout_s, "ro")) as connection:
                _check_version(connection, path)
            connection = connect(path, lock_timeout_s, "rw")
            prepare(connection)
        except (_Damaged, sqlite3.Error) as error:
            if isinstance(error, sqlite3.Error) and not is_damage(error):
                raise
            raise StoreError(
                f"{path} is not an answer store, or is damaged ({error}): `teacher answers recover` adds the"
                " answers of a damaged store to another one"
            ) from error
        lock.mark()
        return lock, connection


def damage_in(connection: sqlite3.Connection) -> str | None:
    """Checks all pages; returns the first problem in SQLite's words, or None.

    Raises:
        sqlite3.Error: the check itself failed, because of damage or a lock.
    """
    found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    return None if found == "ok" else " ".join(found.removeprefix(_PREFIX).split())


@contextmanager
def _lock_of(path: Path) -> Iterator[StoreLock]:
    """Yields the lock beside a store; releases it, and raises a `StoreError`, if the block fails."""
    try:
        lock = StoreLock(path)
        try:
            yield lock
        except BaseException:
            lock.release()
            raise
    except (sqlite3.Error, OSError) as error:
        raise store_error(path, error) from error


def _opened(path: Path, lock: StoreLock, lock_timeout_s: float) -> sqlite3.Connection:
    message = ""
    for _ in range(3):  # to wait for another process, to set a damaged file aside, to open
        alone = lock.take()
        if not alone:
            lock.share()
        try:
            if alone:
                _check_files(path, marked=lock.marked)
            connection = _connected(path, lock_timeout_s)
        except _Damaged as damage:
            message = f"the answer store {path} is damaged ({damage})"
            if alone:
                _set_aside(path, damage)
            else:
                message += " and another process has it open: end that process and start again"
        else:
            lock.mark()
            lock.share()
            return connection
    raise StoreError(message)


def _check_files(path: Path, *, marked: bool) -> None:
    """Checks the files' first bytes. Needs the exclusive lock: closing the file would release SQLite's locks.

    Raises:
        _Damaged: the file is a store and no longer a database.
        StoreError: the file is not a store.
    """
    head = _head(path)
    wal = _head(beside(path, "-wal"))
    if not head and not (marked and wal):
        return
    if not marked:
        if not head.startswith(_MAGIC):
            raise StoreError(f"{path} is not a database: set `store` to another file, or move this one away")
        if int.from_bytes(head[68:72]) != APPLICATION_ID:
            raise _of_another_program(path)
    if not head:
        raise _Damaged("the file is empty and its -wal is not")
    if not head.startswith(_MAGIC) or head[18:20] not in (b"\1\1", b"\2\2"):
        raise _Damaged("its header is damaged")
    if wal and not _is_wal(wal):
        raise _Damaged("its -wal is damaged")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(100)
    except FileNotFoundError:
        return b""


def _is_wal(head: bytes) -> bool:
    """Checks a -wal's header: its magic, and the checksum over its first 24 bytes."""
    words = [int.from_bytes(head[at : at + 4]) for at in range(0, 32, 4)]
    if len(head) < 32 or words[0] not in _WAL_MAGIC:
        return False
    order = "big" if words[0] & 1 else "little"
    one = two = 0
    for at in range(0, 24, 8):
        one = (one + int.from_bytes(head[at : at + 4], order) + two) & 0xFFFFFFFF  # type: ignore[arg-type]
        two = (two + int.from_bytes(head[at + 4 : at + 8], order) + one) & 0xFFFFFFFF  # type: ignore[arg-type]
    return [one, two] == words[6:]


def _connected(path: Path, lock_timeout_s: float) -> sqlite3.Connection:
    """Returns a connection to a checked store of this version.

    Raises:
        _Damaged: the file is a store and damaged.
        StoreError: the file is not a store of a known version.
    """
    try:
        if path.exists() and path.stat().st_size:
            # A read-only check moves nothing from the -wal into the file, so that both can be set aside
            # unchanged. A -journal is left by a killed process that created the file, and has to be replayed
            unfinished = beside(path, "-journal").exists()
            with closing(connect(path, lock_timeout_s, "rw" if unfinished else "ro")) as connection:
                _check_version(connection, path)
                if problem := damage_in(connection):
                    raise _Damaged(problem)
        connection = connect(path, lock_timeout_s)
        try:
            prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection
    except sqlite3.Error as error:
        if is_damage(error):
            raise _Damaged(str(error)) from error
        raise


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    """
    Raises:
        _Damaged: the file is a store, and its header or its tables are damaged.
        StoreError: the file is not a store of a known version.
        sqlite3.Error: the file cannot be read.
    """
    application = number(connection, "PRAGMA application_id")
    version = number(connection, "PRAGMA user_version")
    tables = version_of(connection)
    if application == APPLICATION_ID and VERSION < version <= LAST_VERSION:
        raise StoreError(
            f"{path} is an answer store of version {version}; this program reads versions up to {VERSION}:"
            " set `store` to another file, or update this program"
        )
    if tables is None:
        if application != APPLICATION_ID and damage_in(connection) is None:
            raise _of_another_program(path)
        raise _Damaged("its tables are not those of an answer store")
    if (application, version) != (APPLICATION_ID if tables else 0, tables):
        raise _Damaged("its header is damaged")


def _of_another_program(path: Path) -> StoreError:
    return StoreError(f"{path} is a database of another program: set `store` to another file")


def _set_aside(path: Path, damage: _Damaged) -> None:
    """Renames a damaged store and SQLite's files beside it.

    Raises:
        OSError: a file cannot be renamed.
    """
    aside = _free_name(path)
    for suffix in ("-wal", "-shm", "-journal", ""):  # the store last: until then the next start sets it aside
        if beside(path, suffix).exists():
            beside(path, suffix).rename(beside(aside, suffix))
    _log.warning(
        "answer store %s is damaged (%s): it was renamed to %s, and a new, empty one was created; recover"
        " its answers with `teacher answers recover %s --store %s`",
        *(path, damage, aside, aside, path),
    )


def _free_name(path: Path) -> Path:
    name = f".damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    names = (beside(path, name + (f"-{again}" if again > 1 else "")) for again in count(1))
    return next(each for each in names if not each.exists() and not beside(each, "-wal").exists())

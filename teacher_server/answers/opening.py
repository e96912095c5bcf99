"""Opens a store for use: new, sound, of an older version, or damaged, which is set aside and salvaged."""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from teacher_server.answers.errors import StoreError, store_error, tells_of_damage
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
from teacher_server.answers.salvage import salvaged, table_of

_log = logging.getLogger(__name__)

_MAGIC = b"SQLite format 3\0"
_WAL_MAGIC = frozenset({0x377F0682, 0x377F0683})
_PREFIX = "*** in database main ***"
_SQLITES_OWN = ("-wal", "-shm", "-journal")


class _Damaged(Exception):
    """The file is a store, and something in it is not as it should be; the message says what."""


def open_store(path: Path, lock_timeout_s: float) -> tuple[StoreLock, sqlite3.Connection]:
    """A sound store that can be written, made if it is not there; and the lock that keeps it from repairs.

    **What is a store.** A file that bears SQLite's magic and our application id, or that has the lock file
    beside it which a store gets when it is first opened. Anything else is refused and left untouched: a text,
    a database of another program. So is a sound database of another program or of a newer version that stands
    where a store was. An empty file is a new store, unless there is a -wal that says it was more.

    **What is damage.** All pages are checked at every start (`quick_check`), and that header, tables and -wal
    are ours. A damaged store is renamed to NAME.damaged-TIME, its -wal beside it, a new file with all that is
    sound in it takes its place, and a warning says so. Killed on the way, the next start does it again.
    Single damaged answers in sound pages are found when they are looked up: each has a checksum.

    **Who does it.** Whoever uses a store holds a shared lock on STORE-lock, and who repairs it an exclusive
    one: a second process waits for the repair, and what another process has open is never set aside.

    Raises:
        StoreError: it is no store, is locked, or cannot be read or written; or it is damaged and another
            process has it open.
    """
    with _lock_of(path) as lock:
        return lock, _opened(path, lock, lock_timeout_s)


def open_existing(path: Path, lock_timeout_s: float) -> tuple[StoreLock, sqlite3.Connection]:
    """A store that is there already, for a command: nothing is made and nothing is set aside.

    Raises:
        StoreError: there is none, or it cannot be used.
    """
    if not path.is_file() or not path.stat().st_size:
        raise StoreError(f"there is no answer store {path}; name one with --store")
    with _lock_of(path) as lock:
        lock.share()
        try:
            with closing(connect(path, lock_timeout_s, "ro")) as connection:
                _known_version(connection, path)
            connection = connect(path, lock_timeout_s, "rw")
            prepare(connection)
        except (_Damaged, sqlite3.Error) as error:
            if isinstance(error, sqlite3.Error) and not tells_of_damage(error):
                raise
            raise StoreError(
                f"{path} is no answer store, or is damaged ({error}): if it is one, start the teacher with"
                " it, which sets it aside and saves what is sound"
            ) from error
        lock.mark()
        return lock, connection


def what_is_wrong(connection: sqlite3.Connection) -> str | None:
    """What a check of all pages finds, in SQLite's words; None if all is well.

    Raises:
        sqlite3.Error: the check itself fails, on damage or on a lock.
    """
    found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    return None if found == "ok" else " ".join(found.removeprefix(_PREFIX).split())


@contextmanager
def _lock_of(path: Path) -> Iterator[StoreLock]:
    """The lock beside a store, given back if what is done with it fails, which is told in words."""
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
    why = ""
    for _ in range(3):  # once to wait for another's repair, once to repair, once to open
        alone = lock.take()
        if not alone:
            lock.share()
        try:
            if alone:
                _examine_files(path, marked=lock.marked)
            connection = _connected(path, lock_timeout_s)
        except _Damaged as damage:
            why = f"the answer store {path} is damaged ({damage}) and "
            why += "cannot be repaired" if alone else "another process has it open: end it, and start again"
            if alone:
                _set_aside(path, damage)
        else:
            lock.mark()
            lock.share()
            return connection
    raise StoreError(why)


def _examine_files(path: Path, *, marked: bool) -> None:
    """What can be told from the bytes, with nobody else there: reading them would end SQLite's own locks.

    Raises:
        _Damaged: it is a store, and no database any more.
        StoreError: it is no store.
    """
    head = _head(path)
    wal = _head(beside(path, "-wal"))
    if not head and not (marked and wal):
        return
    if not marked:
        if not head.startswith(_MAGIC):
            raise StoreError(
                f"{path} is not a database; name another file with --store, or move this one away"
            )
        if int.from_bytes(head[68:72]) != APPLICATION_ID:
            raise _of_another_program(path)
    if not head.startswith(_MAGIC):
        raise _Damaged("it is no database any more" if head else "it is empty, and its -wal is not")
    if head[18:20] not in (b"\1\1", b"\2\2"):
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
    """Whether a -wal's header is one: its magic, and the checksum over its first 24 bytes."""
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
    """A connection to a store that was checked and brought up to this version.

    Raises:
        _Damaged: it is a store, and damaged.
        StoreError: it is no store of a version known here.
    """
    try:
        if path.exists() and path.stat().st_size:
            # Reading alone moves nothing from the -wal into the file, so that both can be set aside as they
            # were. Only where a new file was begun and not finished, its journal has to be played back first
            unfinished = beside(path, "-journal").exists()
            with closing(connect(path, lock_timeout_s, "rw" if unfinished else "ro")) as connection:
                _known_version(connection, path)
                if wrong := what_is_wrong(connection):
                    raise _Damaged(wrong)
        connection = connect(path, lock_timeout_s)
        try:
            prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection
    except sqlite3.Error as error:
        if tells_of_damage(error):
            raise _Damaged(str(error)) from error
        raise


def _known_version(connection: sqlite3.Connection, path: Path) -> None:
    """
    Raises:
        _Damaged: it is a store, and what says so is damaged.
        StoreError: it is no store of a version known here.
        sqlite3.Error: it cannot be read.
    """
    application = number(connection, "PRAGMA application_id")
    version = number(connection, "PRAGMA user_version")
    tables = version_of(connection)
    if application == APPLICATION_ID and VERSION < version <= LAST_VERSION:
        raise StoreError(
            f"{path} is an answer store of version {version}, and this program reads version {VERSION};"
            " name another file with --store"
        )
    if tables is None:
        if application != APPLICATION_ID and what_is_wrong(connection) is None:
            raise _of_another_program(path)
        raise _Damaged("its tables are not those of an answer store")
    if (application, version) != (APPLICATION_ID if tables else 0, tables):
        raise _Damaged("its header is damaged")


def _of_another_program(path: Path) -> StoreError:
    return StoreError(f"{path} is a database of another program; name another file with --store")


def _set_aside(path: Path, damage: _Damaged) -> None:
    """Puts a new store with all that is sound in place of a damaged one, which gets another name.

    Raises:
        StoreError: there is no room for what is sound; nothing was touched.
        OSError: it cannot be renamed.
    """
    part = beside(path, ".part")
    _remove(part)
    try:
        try:
            saved = _salvage(path, part)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"the answer store {path} is damaged ({damage}), and what is sound in it cannot be saved:"
                f" {error}; make room, or move the file away"
            ) from error
        aside = _free_name(path)
        # Linked first: whenever this is killed, there is a file with the answers under the store's name
        try:
            os.link(path, aside)
        except OSError:  # not every file system has links
            path.rename(aside)
        for suffix in _SQLITES_OWN:  # before the new file comes, which they would spoil
            with suppress(FileNotFoundError):
                beside(path, suffix).rename(beside(aside, suffix))
        part.replace(path)
    finally:
        _remove(part)
    _log.warning(
        "the answer store %s was damaged (%s): it was set aside as %s, and %s saved from it; what is missing"
        " is asked again, and the file set aside may be deleted",
        path,
        damage,
        aside,
        "1 answer was" if saved == 1 else f"{saved} answers were",
    )


def _salvage(path: Path, part: Path) -> int:
    """Makes a store of all that is sound in a damaged one; returns how many answers that are."""
    with closing(connect(part, 0)) as connection:
        prepare(connection)
        with connection:
            connection.execute("BEGIN")
            for row in salvaged(path):
                marks = ", ".join("?" * len(row))
                connection.execute(f"INSERT OR IGNORE INTO {table_of(row)} VALUES ({marks})", row)
            connection.execute("DELETE FROM pictures WHERE digest NOT IN (SELECT picture FROM answers)")
        return number(connection, "SELECT count(*) FROM answers")


def _free_name(path: Path) -> Path:
    name = f".damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    names = (beside(path, name + (f"-{again}" if again > 1 else "")) for again in count(1))
    return next(each for each in names if not each.exists() and not beside(each, "-wal").exists())


def _remove(store: Path) -> None:
    for suffix in ("", *_SQLITES_OWN):
        beside(store, suffix).unlink(missing_ok=True)

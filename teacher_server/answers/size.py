"""The store's size: bytes in use, deleting the oldest answers, returning free pages to the disk."""

import math
import sqlite3
from collections.abc import Collection, Iterator
from typing import NamedTuple

from teacher_server.answers.layout import number

_AT_ONCE = 256
"""Answers deleted, or pages moved, in one transaction, so that other users of the store wait briefly."""

_TEACHERS = """WITH RECURSIVE teacher (identity) AS (
        SELECT min(identity) FROM answers
        UNION ALL
        SELECT (SELECT min(identity) FROM answers WHERE identity > teacher.identity)
        FROM teacher WHERE teacher.identity IS NOT NULL
    )
    SELECT identity, (SELECT min(created) FROM answers WHERE answers.identity = teacher.identity) AS oldest
    FROM teacher WHERE identity IS NOT NULL ORDER BY oldest"""
_DELETE_OLDEST = """DELETE FROM answers WHERE rowid IN
    (SELECT rowid FROM answers WHERE identity = ? AND created <= ? ORDER BY created LIMIT ?)"""
_NEVER = math.inf


def bytes_in_use(connection: sqlite3.Connection) -> int:
    """Returns the size of the file's pages in use, in bytes.

    Raises:
        sqlite3.Error: the store cannot be read.
    """
    pages = number(connection, "PRAGMA page_count") - number(connection, "PRAGMA freelist_count")
    return pages * number(connection, "PRAGMA page_size")


def teachers_by_age(connection: sqlite3.Connection) -> list[tuple[str, float]]:
    """Returns each teacher that has answers with the time of its oldest, in seconds since 1970; oldest first.

    Raises:
        sqlite3.Error: the store cannot be read.
    """
    return connection.execute(_TEACHERS).fetchall()


class Deleted(NamedTuple):
    """How many answers of one teacher were deleted."""

    identity: str
    number: int


def evict(
    connection: sqlite3.Connection, max_bytes: float, *, spared: Collection[str] = ()
) -> Deleted | None:
    """Deletes a few of the oldest answers if more than `max_bytes` are in use; those of spared teachers last.

    Returns:
        What was deleted; None if no more has to be.

    Raises:
        sqlite3.Error: the transaction failed; nothing was deleted.
    """
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        teachers = [identity for identity, _ in teachers_by_age(connection)]
        if bytes_in_use(connection) <= max_bytes or not teachers:
            return None
        first = min(teachers, key=lambda identity: identity in spared)
        deleted = connection.execute(_DELETE_OLDEST, (first, _NEVER, _AT_ONCE)).rowcount
        return Deleted(first, deleted) if deleted else None


def delete(connection: sqlite3.Connection, identity: str, before: float = _NEVER) -> Iterator[int]:
    """Deletes a teacher's answers given up to `before`, a few at a time; yields how many each time.

    Raises:
        sqlite3.Error: a transaction failed; the answers yielded before are deleted.
    """
    while deleted := connection.execute(_DELETE_OLDEST, (identity, before, _AT_ONCE)).rowcount:
        yield deleted


def shrink(connection: sqlite3.Connection) -> None:
    """Returns free pages to the disk, a few at a time; other processes may use the store meanwhile.

    Raises:
        sqlite3.Error: the store cannot be written.
    """
    while number(connection, "PRAGMA freelist_count"):
        connection.execute(f"PRAGMA incremental_vacuum({_AT_ONCE})").fetchall()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

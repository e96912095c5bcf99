"""The room that answers take: how much is in use, which go first, and giving the disk back what is free."""

import math
import sqlite3
from collections.abc import Collection, Iterator
from typing import NamedTuple

from teacher_server.answers.layout import number

_AT_ONCE = 256
"""Answers deleted, or pages moved, in one transaction, so that nobody waits long for it."""

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
    """The file's pages that hold something, in bytes.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    pages = number(connection, "PRAGMA page_count") - number(connection, "PRAGMA freelist_count")
    return pages * number(connection, "PRAGMA page_size")


def teachers_by_age(connection: sqlite3.Connection) -> list[tuple[str, float]]:
    """Each teacher that has answers, and when the oldest was given, in seconds since 1970; the oldest first.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    return connection.execute(_TEACHERS).fetchall()


class Deleted(NamedTuple):
    """How many answers of one teacher went."""

    identity: str
    number: int


def evict(
    connection: sqlite3.Connection, max_bytes: float, *, spared: Collection[str] = ()
) -> Deleted | None:
    """If more is in use, deletes a few of the oldest answers, those of spared teachers last.

    Returns:
        What went; None when no more has to go.

    Raises:
        sqlite3.Error: it could not be done, and nothing is gone.
    """
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        teachers = [identity for identity, _ in teachers_by_age(connection)]
        if bytes_in_use(connection) <= max_bytes or not teachers:
            return None
        first = min(teachers, key=lambda identity: identity in spared)
        gone = connection.execute(_DELETE_OLDEST, (first, _NEVER, _AT_ONCE)).rowcount
        return Deleted(first, gone) if gone else None


def delete(connection: sqlite3.Connection, identity: str, before: float = _NEVER) -> Iterator[int]:
    """Deletes a teacher's answers given up to that time, a few at a time; yields how many each time.

    Raises:
        sqlite3.Error: it could not be done; what was told is gone.
    """
    while gone := connection.execute(_DELETE_OLDEST, (identity, before, _AT_ONCE)).rowcount:
        yield gone


def give_back(connection: sqlite3.Connection) -> None:
    """Returns free pages to the disk, a few at a time, while others may use the store.

    Raises:
        sqlite3.Error: it could not be done.
    """
    while number(connection, "PRAGMA freelist_count"):
        connection.execute(f"PRAGMA incremental_vacuum({_AT_ONCE})").fetchall()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

"""Reads a store's content teacher by teacher, while other processes use the store."""

import json
import sqlite3
from array import array
from collections.abc import Iterator
from typing import Any

from teacher_server.answers.errors import is_damage
from teacher_server.answers.rows import Row, is_sound, is_valid
from teacher_server.answers.size import teachers_by_age
from teacher_server.teachers.base import identity_of

_IN_ORDER = """SELECT rowid FROM answers WHERE identity = ?1 AND task = coalesce(?2, task)
    ORDER BY picture, mission, task, actions"""
_NEWEST_FIRST = """SELECT rowid FROM answers WHERE identity = ?1 AND task = coalesce(?2, task)
    ORDER BY created DESC"""
_ROW = """SELECT identity, picture, mission, task, actions, answer, created, checksum
    FROM answers WHERE rowid = ?"""


def known_teachers(connection: sqlite3.Connection) -> dict[str, dict[str, Any] | None]:
    """Returns each identity, in order, with its description; None if missing or not matching the identity.

    Raises:
        sqlite3.Error: the store cannot be read.
    """
    connection.text_factory = _replacing
    found = dict.fromkeys(sorted(identity for identity, _ in teachers_by_age(connection)))
    found |= dict(connection.execute("SELECT identity, description FROM teachers"))
    return {identity: description_of(identity, found[identity]) for identity in sorted(found)}


def names_of(connection: sqlite3.Connection) -> dict[str, str]:
    """Returns the checkpoint's name of each identity when it was last served; older stores have none.

    Raises:
        sqlite3.Error: the store cannot be read.
    """
    connection.text_factory = _replacing
    return dict(connection.execute("SELECT identity, name FROM names"))


def answers_of(
    connection: sqlite3.Connection, identity: str, *, task: str | None = None, newest_first: bool = False
) -> Iterator[Row | None]:
    """Yields a teacher's answers in the order of their keys, each read by itself; None for a damaged one.

    Args:
        task: only answers about this task.
        newest_first: yields the newest answer first instead.

    Raises:
        sqlite3.Error: the store cannot be read.
    """
    connection.text_factory = _replacing
    # Keeps the row numbers, 8 bytes each: an open cursor would let the -wal grow without bound
    query = _NEWEST_FIRST if newest_first else _IN_ORDER
    for number in array("q", (number for (number,) in connection.execute(query, (identity, task)))):
        try:
            row: Row | None = connection.execute(_ROW, (number,)).fetchone()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            yield None
            continue
        if row is not None:  # it may have been deleted since
            sound = row[0] == identity and is_sound(*row[:6], row[7]) and is_valid(row[0], row[4], row[5])
            yield row if sound else None


def description_of(identity: str, text: str | None) -> dict[str, Any] | None:
    """Returns the description in a stored text; None if it does not match the identity."""
    try:
        description = json.loads(text or "")
        return description if identity_of(description) == identity else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _replacing(text: bytes) -> str:
    # Text that is not UTF-8 is damaged; it is read all the same and fails its checksum
    return text.decode(errors="replace")

"""The SQLite file: connections, tables, layout versions, and the upgrade of older files."""

import sqlite3
from pathlib import Path
from typing import Literal

from teacher_server.answers.rows import checksum, is_sound, is_valid

APPLICATION_ID = 0x6C766C6D  # "lvlm" in ASCII
VERSION = 3
LAST_VERSION = 999
"""A file with a higher version number is damaged, not newer."""
PAGE_SIZE = 4096

_TEACHERS = """CREATE TABLE teachers (
        identity    TEXT PRIMARY KEY,
        description TEXT NOT NULL       -- JSON: everything in the identity
    ) STRICT"""
_ANSWERS_1 = """CREATE TABLE answers (
        identity TEXT NOT NULL REFERENCES teachers (identity),
        picture  BLOB NOT NULL,         -- SHA-256 of the picture's file
        mission  TEXT NOT NULL,
        task     TEXT NOT NULL,
        actions  TEXT NOT NULL,         -- in the order asked, with commas in between
        answer   TEXT NOT NULL,         -- JSON, as it was first given
        created  REAL NOT NULL,         -- seconds since 1970
        PRIMARY KEY (identity, picture, mission, task, actions)
    ) STRICT"""
_ANSWERS = """CREATE TABLE answers (
        identity TEXT NOT NULL,
        picture  BLOB NOT NULL,         -- SHA-256 of the picture's file
        mission  TEXT NOT NULL,
        task     TEXT NOT NULL,
        actions  TEXT NOT NULL,         -- in the order asked, with commas in between
        answer   TEXT NOT NULL,         -- JSON, as it was first given
        created  REAL NOT NULL,         -- seconds since 1970
        checksum BLOB NOT NULL,         -- of the key and the answer
        PRIMARY KEY (identity, picture, mission, task, actions)
    ) STRICT"""
_AGES = "CREATE INDEX ages ON answers (identity, created)"
_PICTURES = """CREATE TABLE pictures (
        digest BLOB PRIMARY KEY,        -- SHA-256 of the file
        file   BLOB NOT NULL            -- PNG or JPEG, as it came with a question
    ) STRICT"""
_LAST_ANSWER = """CREATE TRIGGER last_answer AFTER DELETE ON answers BEGIN
        DELETE FROM pictures WHERE digest = OLD.picture AND NOT EXISTS (
            SELECT 1 FROM answers WHERE identity IN (SELECT identity FROM teachers) AND picture = OLD.picture
        );
    END"""
"""Deletes a picture with the last answer about it, whichever statement deletes that answer."""
_NAMES = """CREATE TABLE names (
        identity TEXT PRIMARY KEY,
        name     TEXT NOT NULL,         -- of the checkpoint, as it was served last
        served   REAL NOT NULL          -- seconds since 1970
    ) STRICT"""
_SINCE_3 = (_PICTURES, _LAST_ANSWER, _NAMES)

LAYOUTS = {
    frozenset[str](): 0,
    frozenset({_TEACHERS, _ANSWERS_1}): 1,
    frozenset({_TEACHERS, _ANSWERS, _AGES}): 2,
    frozenset({_TEACHERS, _ANSWERS, _AGES, *_SINCE_3}): 3,
}
"""The layout version of a file by the SQL of its tables, indexes and triggers; 0 for an empty file."""

UNLESS_SOUND = """ON CONFLICT DO UPDATE
    SET answer = excluded.answer, created = excluded.created, checksum = excluded.checksum
    WHERE NOT sound(excluded.identity, excluded.picture, excluded.mission, excluded.task, excluded.actions,
                    CAST(answers.answer AS BLOB), answers.checksum)"""
"""Ends an INSERT INTO answers: a key keeps its stored answer, unless that answer is damaged."""

_INCREMENTAL = 2
_WAL_LIMIT_BYTES = 64 * 2**20


def connect(
    path: Path, lock_timeout_s: float, mode: Literal["rwc", "rw", "ro"] = "rwc"
) -> sqlite3.Connection:
    """Returns a connection without implicit transactions, usable from any thread.

    Raises:
        sqlite3.Error: the file cannot be opened or created.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=lock_timeout_s,
        isolation_level=None,
        check_same_thread=False,
    )
    # With WAL, NORMAL loses nothing when a process is killed; a power cut can lose the last answers
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
    connection.create_function("checksum", 6, checksum, deterministic=True)
    connection.create_function("sound", 7, is_sound, deterministic=True)
    connection.create_function("valid", 3, is_valid, deterministic=True)
    return connection


def version_of(connection: sqlite3.Connection) -> int | None:
    """Returns the layout version of the file's tables; None for tables of another program.

    Raises:
        sqlite3.Error: the file cannot be read.
    """
    sql = connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")
    return LAYOUTS.get(frozenset(text for (text,) in sql))


def prepare(connection: sqlite3.Connection) -> None:
    """Creates the tables of a new file or upgrades an older one, in one transaction.

    Raises:
        sqlite3.Error: the transaction failed; the file is unchanged.
    """
    connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
    connection.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
    with connection:
        connection.execute("BEGIN IMMEDIATE")  # two processes may open one file at once
        version = version_of(connection)
        if version != VERSION:
            if version == 0:
                connection.execute(_TEACHERS)
            if version == 1:
                connection.execute("ALTER TABLE answers RENAME TO answers_1")
            if version != 2:
                connection.execute(_ANSWERS)
                connection.execute(_AGES)
            if version == 1:
                # As BLOBs: a damaged text may not be UTF-8
                connection.execute(
                    """INSERT INTO answers SELECT *, checksum(
                        CAST(identity AS BLOB), picture, CAST(mission AS BLOB), CAST(task AS BLOB),
                        CAST(actions AS BLOB), CAST(answer AS BLOB))
                    FROM answers_1 WHERE
                        valid(CAST(identity AS BLOB), CAST(actions AS BLOB), CAST(answer AS BLOB))
                    ORDER BY rowid"""
                )
                connection.execute("DROP TABLE answers_1")
            for statement in _SINCE_3:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("PRAGMA journal_mode = WAL")
    if number(connection, "PRAGMA auto_vacuum") != _INCREMENTAL:  # a file created by version 1
        connection.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
        connection.execute("VACUUM")


def number(connection: sqlite3.Connection, query: str) -> int:
    """Returns the number in the query's only row."""
    return int(connection.execute(query).fetchone()[0])

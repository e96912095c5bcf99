"""Recovers the answers of a damaged store with SQLite's own program: `sqlite3 FILE .recover`.

The program prints SQL, which is not run: only the values of each INSERT are read, without access to tables.
Each row is checked: an answer by its checksum (one of version 1 has none and has to be valid for its key), a
description by its identity, a picture by its digest.
"""

import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

from teacher_api.command_line import CannotStart
from teacher_server.answers.content import SqliteContent, StoreRow
from teacher_server.answers.layout import PAGE_SIZE
from teacher_server.answers.lock import beside
from teacher_server.answers.rows import as_stored, checksum, is_sound, is_valid
from teacher_server.teachers.base import identity_of

_INSTALL = (
    "install the Debian package sqlite3 of Debian 13 or later (that of Debian 12 has no .recover),"
    " `brew install sqlite` on macOS, or the program from sqlite.org"
)
_INSERT = re.compile(rb"INSERT (?:OR IGNORE )?INTO '?(\w+)'?(\([^)]*\))? VALUES ?(\(.*\));\s*", re.DOTALL)
_FUNCTIONS = frozenset({"char", "replace"})
"""What .recover writes line breaks with."""
_LONGEST = 256 * 2**20
"""Bytes of an INSERT: twice the largest picture, and more."""
_BATCH = 256
"""Rows in one transaction, so that a teacher that uses the store waits briefly."""
_INDEX_FIELDS = frozenset({2, 3, 6})

Value = str | bytes | int | float | None


@dataclass
class RecoveryReport:
    """How many answers were new and how many already stored; the dropped rows by reason.

    `failure` is the error of the program sqlite3, if it stopped early.
    """

    new: int = 0
    known: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    failure: str | None = None


def recover(store: SqliteContent, file: Path, folder: Path, sqlite3_program: str) -> RecoveryReport:
    """Adds the whole answers of a damaged store to a sound one, a few at a time.

    Args:
        store: the sound one.
        file: the damaged store; its -wal is read too. Neither is changed.
        folder: gets a copy of the damaged store for the time of the call.
        sqlite3_program: the path of SQLite's program, from `program`.

    Raises:
        sqlite3.Error, OSError: the store cannot be written, or the damaged one not be read or copied.
    """
    report = RecoveryReport()
    command = [sqlite3_program, "-safe", "-batch", "-init", os.devnull]
    with _readable_copy(file, folder) as copy, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([*command, copy, ".recover"], stdout=subprocess.PIPE, stderr=errors)
        try:
            assert process.stdout is not None
            rows = _checked(process.stdout, report.dropped)
            while batch := list(islice(rows, _BATCH)):
                merged = store.merge(batch)
                report.new, report.known = report.new + merged.new, report.known + merged.known
            store.forget_unused_pictures()
            if process.wait():
                errors.seek(0)
                report.failure = " ".join(errors.read(1000).decode(errors="replace").split())
        finally:
            process.kill()
            process.communicate()
    return report


def program() -> str:
    """Returns the path of the program sqlite3.

    Raises:
        CannotStart: there is none, or it was built without .recover.
    """
    found = shutil.which("sqlite3")
    if found is None:
        raise CannotStart(f"recovering needs SQLite's program sqlite3, which is not installed: {_INSTALL}")
    probe = [found, "-batch", "-init", os.devnull, ":memory:", "SELECT count(*) FROM sqlite_dbpage"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        raise CannotStart(f"{found} was built without .recover: {_INSTALL}")
    return found


@contextmanager
def _readable_copy(file: Path, folder: Path) -> Iterator[Path]:
    """Yields a copy of a damaged store that SQLite opens, with an empty first page."""
    with tempfile.TemporaryDirectory(prefix="recover-", dir=folder) as name:
        copy = Path(name, "damaged")
        shutil.copyfile(file, copy)
        with suppress(FileNotFoundError):
            shutil.copyfile(beside(file, "-wal"), beside(copy, "-wal"))
        with copy.open("r+b") as opened:
            # Without a first page .recover reads each page by itself, whatever the header and the schema say;
            # with an empty file it would ignore the -wal
            opened.write(bytes(PAGE_SIZE))
        yield copy


def _checked(sql: IO[bytes], dropped: Counter[str]) -> Iterator[StoreRow]:
    """Yields the whole rows in .recover's output; counts the others."""
    with closing(sqlite3.connect(":memory:")) as scratch:
        scratch.set_authorizer(_authorize)
        scratch.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
        for statement in _inserts(sql):
            try:
                values = _values(scratch, statement)
            except (sqlite3.Error, ValueError, TypeError):
                dropped["unreadable values"] += 1
                continue
            row = _row(values)
            if isinstance(row, tuple):
                yield row
            elif row is not None:
                dropped[row] += 1


def _inserts(sql: IO[bytes]) -> Iterator[bytes]:
    """Yields the INSERT statements; the texts in one may have line breaks."""
    lines: list[bytes] = []
    size = quotes = 0
    while line := sql.readline(_LONGEST):
        if lines or line.startswith(b"INSERT "):
            lines.append(line)
            size, quotes = size + len(line), quotes + line.count(b"'")
            if quotes % 2 == 0 or size > _LONGEST:
                yield b"".join(lines)
                lines, size, quotes = [], 0, 0


def _authorize(action: int, _: str | None, name: str | None, *__: str | None) -> int:
    """Allows an expression of constants and nothing else."""
    allowed = action == sqlite3.SQLITE_SELECT or (action == sqlite3.SQLITE_FUNCTION and name in _FUNCTIONS)
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _values(scratch: sqlite3.Connection, statement: bytes) -> tuple[Value, ...]:
    """Returns the values of a table's row that an INSERT writes.

    Raises:
        sqlite3.Error, ValueError, TypeError: the statement is not one that .recover writes.
    """
    insert = _INSERT.fullmatch(statement)
    if insert is None:
        raise ValueError("not an INSERT of values")
    table, columns, expression = insert.groups()
    values: tuple[Value, ...] = scratch.execute(f"VALUES {expression.decode()}").fetchone()
    if table.startswith(b"lost_and_found"):  # root page, page, number of fields, rowid, the fields
        return values[4 : 4 + int(values[2] or 0)]
    return values[1:] if columns and b"_rowid_" in columns else values


def _row(values: tuple[Value, ...]) -> StoreRow | str | None:
    """Returns the row of the store with these values, why it is dropped, or None for an index's entry."""
    row: StoreRow
    match values:
        case (str(identity), str(description)):
            row, whole, wrong = (identity, description), _describes(description, identity), "description"
        case (bytes(digest), bytes(picture)):
            row, whole, wrong = (digest, picture), hashlib.sha256(picture).digest() == digest, "digest"
        case (str(identity), str(name), float(served)):
            return identity, name, served
        case (
            str(i),
            bytes(p),
            str(m),
            str(t),
            str(a),
            str(answer),
            float() | int() as created,
            bytes(stored),
        ):
            row = (i, p, m, t, a, answer, _time(created), stored)
            whole, wrong = is_sound(i, p, m, t, a, answer, stored), "checksum"
        case (str(i), bytes(p), str(m), str(t), str(a), str(answer), float() | int() as created):
            row = (i, p, m, t, a, answer, _time(created), checksum(i, p, m, t, a, answer))
            whole, wrong = is_valid(i, a, answer), "answer"
        case (*_, int()) if len(values) in _INDEX_FIELDS:
            return None
        case _:
            return "an unknown layout"
    return row if whole else f"a wrong {wrong}"


def _time(created: float) -> float:
    """Returns the time, or now for one that cannot be right: the time is not part of the checksum."""
    now = time.time()
    return float(created) if 0 <= created <= now else now


def _describes(description: str, identity: str) -> bool:
    try:
        read = json.loads(description)
        return identity_of(read) == identity and as_stored(read) == description
    except (ValueError, TypeError, KeyError, RecursionError):
        return False

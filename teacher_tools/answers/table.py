"""Answers as a table: CSV for a spreadsheet or pandas, and a page for the terminal."""

import codecs
import csv
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from teacher_api.command_line import CannotStart
from teacher_api.schemas import ACTIONS
from teacher_server.answers.reading import answers_of, names_of
from teacher_server.answers.rows import Row
from teacher_tools.answers.exchange import Exported

COLUMNS = (
    *("created", "teacher", "checkpoint", "task", "mission", "picture", "picture_file", "action"),
    *(f"p_{action}" for action in ACTIONS),
    *("label_mass", "analysis", "analysis_tokens", "action_tokens", "analysis_ms", "action_ms"),
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'", "＝", "＋", "－", "＠")
"""How a text begins that a spreadsheet would take for a formula, or that holds our mark already."""
_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg"}


def export_table(
    connection: sqlite3.Connection,
    out: BinaryIO,
    identities: Iterable[str],
    task: str | None = None,
    pictures: Path | None = None,
) -> Exported:
    """Writes answers as CSV in UTF-8, one a row, in the order of their keys; `COLUMNS` are its header.

    Args:
        identities: the teachers whose answers are written.
        task: about this one alone.
        pictures: a folder that gets the files of the pictures that were kept.

    Raises:
        sqlite3.Error, OSError: it cannot be read or written.
        CannotStart: a picture cannot be written.
    """
    done = Exported()
    names = names_of(connection)
    # No TextIOWrapper: it would close stdout when anything fails
    table = csv.DictWriter(codecs.getwriter("utf-8")(out, "replace"), COLUMNS)
    table.writeheader()
    for identity in identities:
        for row in answers_of(connection, identity, task=task):
            if row is None:
                done.left_out += 1
                continue
            cells = _cells(row, names.get(identity))
            if pictures is not None:
                cells["picture_file"] = _written(connection, row[1], pictures)
            table.writerow({name: _safe(value) for name, value in cells.items()})
            done.written += 1
    return done


def _cells(row: Row, name: str | None) -> dict[str, Any]:
    identity, picture, mission, task, _, answer, created, _ = row
    told = json.loads(answer)
    first, second = told["stages"]["analysis"], told["stages"]["action"] or {}
    return {
        "created": _moment(created, "milliseconds"),
        "teacher": identity,
        "checkpoint": name,
        "task": task,
        "mission": mission,
        "picture": picture.hex(),
        "action": told["action"],
        **{f"p_{action}": p for action, p in (told["probabilities"] or {}).items()},
        "label_mass": second.get("label_mass"),
        "analysis": told["analysis"],
        "analysis_tokens": first["tokens"],
        "action_tokens": second.get("tokens"),
        "analysis_ms": first["milliseconds"],
        "action_ms": second.get("milliseconds"),
    }


def _safe(value: Any) -> Any:
    """A text that no spreadsheet runs: with an apostrophe before what could be the start of a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _written(connection: sqlite3.Connection, digest: bytes, folder: Path) -> str | None:
    """Writes a picture that was kept into the folder; returns where."""
    row = connection.execute("SELECT file FROM pictures WHERE digest = ?", (digest,)).fetchone()
    if row is None or hashlib.sha256(row[0]).digest() != digest:
        return None
    ending = next((ending for start, ending in _ENDINGS.items() if row[0].startswith(start)), "")
    path = folder / f"{digest.hex()}{ending}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(row[0])
    except OSError as error:
        raise CannotStart(f"--pictures: {path} cannot be written: {error.strerror or error}") from error
    return str(path)


def newest(
    connection: sqlite3.Connection, identity: str, task: str | None, limit: int, width: int
) -> Iterator[str]:
    """Lines that show a teacher's newest answers in `width` columns; none where it has none.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    rows = answers_of(connection, identity, task=task, newest_first=True)
    found = [_line(row) if row else ("(damaged)", "", "", "", "") for row in islice(rows, limit)]
    if not found:
        return
    table = [("when (UTC)", "task", "action", "p", "mission"), *found]
    widths = [max(len(line[column]) for line in table) for column in range(4)]
    for line in table:
        fixed = "  ".join(cell.ljust(size) for cell, size in zip(line[:4], widths, strict=True))
        room = max(12, width - len(fixed) - 2)
        mission = line[4] if len(line[4]) <= room else f"{line[4][: room - 1]}…"
        yield f"{fixed}  {mission}".rstrip()


def _line(row: Row) -> tuple[str, str, str, str, str]:
    told = json.loads(row[5])
    probabilities = told["probabilities"] or {}
    p = probabilities.get(told["action"])
    return _moment(row[6], "seconds")[:19], row[3], told["action"] or "", f"{p or 0:.3f}", printable(row[2])


def printable(text: str) -> str:
    """The text in one line, with nothing in it that a terminal would obey."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _moment(seconds: float, precision: str) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision)
    except (ValueError, OverflowError, OSError):  # the time is no part of the checksum
        return ""

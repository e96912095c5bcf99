"""Answers as a table: CSV for spreadsheets and pandas, and lines for the terminal."""

import codecs
import csv
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from teacher_api.command_line import CannotStart
from teacher_api.schemas import ACTIONS
from teacher_server.answers.content import StoreContent
from teacher_server.answers.rows import Row
from teacher_tools.answers.exchange import ExportReport

COLUMNS = (
    *("created", "teacher", "checkpoint", "task", "mission", "picture", "picture_file", "action"),
    *(f"p_{action}" for action in ACTIONS),
    *("confidence", "label_mass", "analysis", "analysis_tokens", "action_tokens", "analysis_ms", "action_ms"),
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'", "＝", "＋", "－", "＠")
"""The starts of a text that a spreadsheet would run as a formula, and our mark against that."""
_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg"}


def export_table(
    store: StoreContent,
    out: BinaryIO,
    identities: Iterable[str],
    task: str | None = None,
    pictures: Path | None = None,
) -> ExportReport:
    """Writes answers as CSV in UTF-8, one per row, in the order of their keys, with `COLUMNS` as the header.

    Args:
        identities: the teachers whose answers are written.
        task: only answers about this task.
        pictures: a folder for the stored picture files.

    Raises:
        OSError, or an error of the store: it cannot be read, or the file not be written.
        CannotStart: a picture cannot be written.
    """
    report = ExportReport()
    names = store.names()
    # No TextIOWrapper: it would close stdout after an error
    table = csv.DictWriter(codecs.getwriter("utf-8")(out, "replace"), COLUMNS)
    table.writeheader()
    for identity in identities:
        for row in store.answers(identity, task=task):
            if row is None:
                report.left_out += 1
                continue
            cells = _cells(row, names.get(identity))
            if pictures is not None:
                cells["picture_file"] = _written(store, row[1], pictures)
            table.writerow({name: _safe(value) for name, value in cells.items()})
            report.written += 1
    return report


def _cells(row: Row, name: str | None) -> dict[str, Any]:
    identity, picture, mission, task, _, answer, created, _ = row
    given = json.loads(answer)
    first, second = given["stages"]["analysis"], given["stages"]["action"] or {}
    return {
        "created": _moment(created, "milliseconds"),
        "teacher": identity,
        "checkpoint": name,
        "task": task,
        "mission": mission,
        "picture": picture.hex(),
        "action": given["action"],
        **{f"p_{action}": p for action, p in (given["probabilities"] or {}).items()},
        "confidence": given.get("confidence"),
        "label_mass": second.get("label_mass"),
        "analysis": given["analysis"],
        "analysis_tokens": first["tokens"],
        "action_tokens": second.get("tokens"),
        "analysis_ms": first["milliseconds"],
        "action_ms": second.get("milliseconds"),
    }


def _safe(value: Any) -> Any:
    """Returns the value with an apostrophe before a text that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _written(store: StoreContent, digest: bytes, folder: Path) -> str | None:
    """Writes a stored picture into the folder; returns its path, or None if there is no such picture."""
    picture = store.picture(digest)
    if picture is None:
        return None
    ending = next((ending for start, ending in _ENDINGS.items() if picture.startswith(start)), "")
    path = folder / f"{digest.hex()}{ending}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(picture)
    except OSError as error:
        raise CannotStart(f"`pictures`: {path} cannot be written: {error.strerror or error}") from error
    return str(path)


def newest(store: StoreContent, identity: str, task: str | None, limit: int, width: int) -> Iterator[str]:
    """Yields lines that show a teacher's newest answers in `width` columns; nothing without answers.

    Raises:
        An error of the store: it cannot be read.
    """
    rows = store.answers(identity, task=task, newest_first=True)
    found = [_line(row) if row else ("(damaged)", "", "", "", "") for row in islice(rows, limit)]
    if not found:
        return
    table = [("when (UTC)", "task", "action", "p", "mission"), *found]
    widths = [max(len(line[column]) for line in table) for column in range(4)]
    for line in table:
        fixed = "  ".join(cell.ljust(size) for cell, size in zip(line[:4], widths, strict=True))
        space = max(12, width - len(fixed) - 2)
        mission = line[4] if len(line[4]) <= space else f"{line[4][: space - 1]}…"
        yield f"{fixed}  {mission}".rstrip()


def _line(row: Row) -> tuple[str, str, str, str, str]:
    given = json.loads(row[5])
    p = (given["probabilities"] or {}).get(given["action"])
    return _moment(row[6], "seconds")[:19], row[3], given["action"] or "", f"{p or 0:.3f}", printable(row[2])


def printable(text: str) -> str:
    """Returns the text in one line, without control characters."""
    return "".join(character if character.isprintable() else " " for character in text)


def _moment(seconds: float, precision: str) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision)
    except (ValueError, OverflowError, OSError):  # the time is not part of the checksum
        return ""

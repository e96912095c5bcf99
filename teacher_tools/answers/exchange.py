"""Answers in a file of JSON lines, to be kept or carried to another machine: written, checked, read."""

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from teacher_api.schemas import Answer, Question
from teacher_api.validation import in_words
from teacher_server.answers.layout import UNLESS_SOUND
from teacher_server.answers.reading import answers_of, known_teachers
from teacher_server.answers.rows import Key, Row, as_stored, is_valid, row_of
from teacher_server.teachers.base import identity_of

FORMAT, VERSION = "teacher answers", 1
_LONGEST_LINE = 16 * 2**20


class BadExport(Exception):
    """A file that cannot be imported; the message says why, in one line, and which line it is."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Header(_Strict):
    format: Literal["teacher answers"]
    version: Literal[1]


class _Teacher(_Strict):
    teacher: str
    description: dict[str, Any]


class _Answer(_Strict):
    teacher: str
    picture: str = Field(pattern=r"^[0-9a-f]{64}$")
    mission: str
    task: str
    actions: list[str]
    created: float = Field(ge=0, allow_inf_nan=False)
    answer: dict[str, Any]


class _End(_Strict):
    answers: int


@dataclass
class Exported:
    """How many answers were written, and how many were left out: damaged, or of a teacher not described."""

    written: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class Imported:
    """What became of a file's answers; those that differ in their probabilities are among the known."""

    new: int
    known: int
    differ: int


def export(connection: sqlite3.Connection, out: BinaryIO, identities: Collection[str]) -> Exported:
    """Writes the answers of these teachers, in the order of their keys.

    Raises:
        sqlite3.Error, OSError: it cannot be read or written.
    """
    done = Exported()
    _write(out, {"format": FORMAT, "version": VERSION})
    for teacher, description in known_teachers(connection).items():
        if teacher not in identities:
            continue
        if description is not None:
            _write(out, {"teacher": teacher, "description": description})
        for row in answers_of(connection, teacher):
            if row is None or description is None:
                done.left_out += 1
            else:
                _write(out, _exported(row))
                done.written += 1
    _write(out, {"answers": done.written})
    return done


def import_(connection: sqlite3.Connection, file: BinaryIO) -> Imported:
    """Takes a file's answers over, all or none; an answer that is there already stays.

    The whole file is checked before the store is locked for writing.

    Raises:
        BadExport: something in it is wrong.
        sqlite3.Error, OSError: the store cannot be written, or the file not be read.
    """
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS new_answers AS SELECT * FROM answers WHERE false")
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS new_teachers AS SELECT * FROM teachers WHERE false")
    with connection:
        connection.execute("BEGIN")
        connection.execute("DELETE FROM new_answers")
        connection.execute("DELETE FROM new_teachers")
        _stage(connection, _checked(file))
        connection.execute("INSERT OR IGNORE INTO teachers SELECT * FROM new_teachers")
        (differ,) = connection.execute(
            """SELECT count(*) FROM new_answers AS new
            JOIN answers AS old USING (identity, picture, mission, task, actions)
            WHERE CASE WHEN sound(new.identity, new.picture, new.mission, new.task, new.actions,
                                  CAST(old.answer AS BLOB), old.checksum)
                THEN json_extract(new.answer, '$.probabilities')
                     IS NOT json_extract(old.answer, '$.probabilities') END"""
        ).fetchone()
        (total,) = connection.execute("SELECT count(*) FROM new_answers").fetchone()
        put = connection.execute(f"INSERT INTO answers SELECT * FROM new_answers WHERE true {UNLESS_SOUND}")
        return Imported(put.rowcount, total - put.rowcount, differ)


def _write(out: BinaryIO, line: dict[str, Any]) -> None:
    out.write(json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n")


def _exported(row: Row) -> dict[str, Any]:
    identity, picture, mission, task, actions, answer, created, _ = row
    return {
        "teacher": identity,
        "picture": picture.hex(),
        "mission": mission,
        "task": task,
        "actions": actions.split(","),
        "created": created,
        "answer": json.loads(answer),
    }


def _stage(connection: sqlite3.Connection, rows: Iterable[Row | tuple[str, str]]) -> None:
    for row in rows:
        table = "new_teachers" if len(row) == 2 else "new_answers"
        connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _checked(file: BinaryIO) -> Iterator[Row | tuple[str, str]]:
    """The rows of a file, each checked.

    Raises:
        BadExport: something is wrong, with the line's number.
    """
    known: set[str] = set()
    answers = number = 0
    end: _End | None = None
    for number, line in enumerate(_lines(file), 1):
        try:
            read = json.loads(line)
            if not isinstance(read, dict):
                raise ValueError("it is no JSON object")
            if end is not None:
                raise ValueError("the line before told the end")
            if number == 1:
                _header(read)
            elif "description" in read:
                teacher = _teacher(read)
                known.add(teacher[0])
                yield teacher
            elif "answer" in read:
                yield _answer(read, known)
                answers += 1
            else:
                end = _End.model_validate(read)
                if end.answers != answers:
                    raise ValueError(f"it tells of {end.answers} answers, and there are {answers} before it")
        except (ValueError, RecursionError) as error:
            raise BadExport(f"line {number}: {_in_words(error)}") from error
    if end is None:
        raise BadExport(
            f"line {number + 1}: the last line, which tells how many answers there are, is missing"
        )


def _lines(file: BinaryIO) -> Iterator[bytes]:
    number = 0
    try:
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if len(line) == _LONGEST_LINE:
                raise BadExport(f"line {number}: it has more than {_LONGEST_LINE} bytes")
            yield line
    except EOFError as error:  # of gzip
        raise BadExport(f"line {number + 1}: the file is cut off") from error


def _header(read: dict[str, Any]) -> None:
    try:
        _Header.model_validate(read)
    except ValidationError as error:
        raise ValueError(f"the first line has to be of the format {FORMAT!r}, version {VERSION}") from error


def _teacher(read: dict[str, Any]) -> tuple[str, str]:
    line = _Teacher.model_validate(read)
    kind = line.description.get("kind")
    if not isinstance(kind, str) or identity_of(line.description) != line.teacher:
        raise ValueError(f"the description is not that of {line.teacher!r}, which is its digest")
    return line.teacher, as_stored(line.description)


def _answer(read: dict[str, Any], known: set[str]) -> Row:
    line = _Answer.model_validate(read)
    if line.teacher not in known:
        raise ValueError(f"the teacher {line.teacher!r} is described on no line before")
    # As on the wire, where the picture itself stands in place of its digest
    asked = Question.model_validate(
        {"image": "", "mission": line.mission, "task": line.task, "actions": tuple(line.actions)}
    )
    answer = Answer.model_validate(line.answer).model_dump_json()
    if not is_valid(line.teacher, ",".join(asked.actions), answer):
        raise ValueError(f"answer: it is not a whole one of {line.teacher} about {', '.join(asked.actions)}")
    key = Key(line.teacher, bytes.fromhex(line.picture), asked.mission, asked.task, asked.actions)
    return row_of(key, answer, line.created)


def _in_words(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return in_words(error)
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"it is not JSON: {error}"
    return str(error) or type(error).__name__

"""Answers in a file of JSON lines: written, checked, and imported into a store."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from teacher_api.schemas import Answer, Question
from teacher_api.validation import in_words
from teacher_server.answers.content import ImportReport, StoreContent
from teacher_server.answers.rows import Key, Row, as_stored, is_valid, row_of
from teacher_server.teachers.base import identity_of

FORMAT, VERSION = "teacher answers", 1
_LONGEST_LINE = 16 * 2**20


class BadExport(Exception):
    """The file cannot be imported; the message names the line and the reason."""


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
class ExportReport:
    """How many answers were written, and how many left out: damaged, or of a teacher without description."""

    written: int = 0
    left_out: int = 0


def export(store: StoreContent, out: BinaryIO, identities: Collection[str]) -> ExportReport:
    """Writes the answers of these teachers in the order of their keys.

    Raises:
        OSError, or an error of the store: it cannot be read, or the file not be written.
    """
    report = ExportReport()
    _write(out, {"format": FORMAT, "version": VERSION})
    for teacher, description in store.teachers().items():
        if teacher not in identities:
            continue
        if description is not None:
            _write(out, {"teacher": teacher, "description": description})
        for row in store.answers(teacher):
            if row is None or description is None:
                report.left_out += 1
            else:
                _write(out, _exported(row))
                report.written += 1
    _write(out, {"answers": report.written})
    return report


def import_(store: StoreContent, file: BinaryIO) -> ImportReport:
    """Adds the answers of an exported file to the store, all or none.

    Raises:
        BadExport: something in the file is wrong.
        OSError, or an error of the store: it cannot be written, or the file not be read.
    """
    return store.merge(_checked(file))


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


def _checked(file: BinaryIO) -> Iterator[Row | tuple[str, str]]:
    """Yields the rows of an exported file, each checked.

    Raises:
        BadExport: something in the file is wrong.
    """
    known: set[str] = set()
    answers = number = 0
    end: _End | None = None
    for number, line in enumerate(_lines(file), 1):
        try:
            read = json.loads(line)
            if not isinstance(read, dict):
                raise ValueError("not a JSON object")
            if end is not None:
                raise ValueError("there is a line after the last one, which gives the number of answers")
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
                    raise ValueError(
                        f"the line counts {end.answers} answers, and the file has {answers} before it"
                    )
        except (ValueError, RecursionError) as error:
            raise BadExport(f"line {number}: {_in_words(error)}") from error
    if end is None:
        raise BadExport(f"line {number + 1}: the last line, which gives the number of answers, is missing")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    number = 0
    try:
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if len(line) == _LONGEST_LINE:
                raise BadExport(f"line {number}: the line has more than {_LONGEST_LINE} bytes")
            yield line
    except EOFError as error:  # from gzip
        raise BadExport(f"line {number + 1}: the file is cut off") from error


def _header(read: dict[str, Any]) -> None:
    try:
        _Header.model_validate(read)
    except ValidationError as error:
        raise ValueError(f"the first line has to give format {FORMAT!r}, version {VERSION}") from error


def _teacher(read: dict[str, Any]) -> tuple[str, str]:
    line = _Teacher.model_validate(read)
    kind = line.description.get("kind")
    if not isinstance(kind, str) or identity_of(line.description) != line.teacher:
        raise ValueError(f"the description does not match the identity {line.teacher!r}")
    return line.teacher, as_stored(line.description)


def _answer(read: dict[str, Any], known: set[str]) -> Row:
    line = _Answer.model_validate(read)
    if line.teacher not in known:
        raise ValueError(f"no line before describes the teacher {line.teacher!r}")
    # Checked as a question on the wire, without the picture, of which only the digest is known
    asked = Question.model_validate(
        {"image": "", "mission": line.mission, "task": line.task, "actions": tuple(line.actions)}
    )
    answer = Answer.model_validate(line.answer).model_dump_json()
    if not is_valid(line.teacher, ",".join(asked.actions), answer):
        raise ValueError(f"answer: not a complete answer of {line.teacher} about {', '.join(asked.actions)}")
    key = Key(line.teacher, bytes.fromhex(line.picture), asked.mission, asked.task, asked.actions)
    return row_of(key, answer, line.created)


def _in_words(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return in_words(error)
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"not JSON: {error}"
    return str(error) or type(error).__name__

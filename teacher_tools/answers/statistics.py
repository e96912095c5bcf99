"""What a store holds, in figures: answers by teacher and task, their ages, room, soundness."""

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from teacher_server.answers.errors import tells_of_damage
from teacher_server.answers.layout import VERSION
from teacher_server.answers.lock import beside
from teacher_server.answers.opening import what_is_wrong
from teacher_server.answers.reading import answers_of, known_teachers, names_of
from teacher_server.answers.size import bytes_in_use
from teacher_tools.answers.table import printable


@dataclass
class Ages:
    """A number of answers, and when the oldest and the newest were given, in seconds since 1970."""

    answers: int = 0
    oldest: float = float("inf")
    newest: float = float("-inf")

    def add(self, created: float) -> None:
        """Counts an answer."""
        self.answers += 1
        self.oldest, self.newest = min(self.oldest, created), max(self.newest, created)


@dataclass
class TeacherFigures:
    """One teacher's answers by task, and how many more are damaged."""

    identity: str
    described: bool
    name: str | None = None
    tasks: dict[str, Ages] = field(default_factory=dict)
    damaged: int = 0


@dataclass
class Figures:
    """Of one store; sizes in bytes, of the file and its -wal together."""

    store: Path
    size: int
    in_use: int
    wrong: str | None
    teachers: list[TeacherFigures] = field(default_factory=list)

    @staticmethod
    def size_of(store: Path) -> int:
        """Bytes on the disk."""
        size = 0
        for file in (store, beside(store, "-wal")):
            with suppress(FileNotFoundError):
                size += file.stat().st_size
        return size

    @property
    def damaged(self) -> int:
        """Answers that are damaged."""
        return sum(teacher.damaged for teacher in self.teachers)

    @property
    def answers(self) -> int:
        """Answers that are sound."""
        return sum(ages.answers for teacher in self.teachers for ages in teacher.tasks.values())

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged."""
        return self.wrong is None and self.damaged == 0

    def as_json(self) -> dict[str, Any]:
        """All of it, times as text in UTC."""
        return {
            "store": str(self.store),
            "version": VERSION,
            "sound": self.sound,
            "wrong": self.wrong,
            "answers": self.answers,
            "damaged": self.damaged,
            "bytes": self.size,
            "bytes_in_use": self.in_use,
            "bytes_free": max(0, self.size - self.in_use),
            "teachers": [
                {
                    "identity": teacher.identity,
                    "checkpoint": teacher.name,
                    "described": teacher.described,
                    "damaged": teacher.damaged,
                    "tasks": {
                        task: {
                            "answers": ages.answers,
                            "oldest": _moment(ages.oldest),
                            "newest": _moment(ages.newest),
                        }
                        for task, ages in sorted(teacher.tasks.items())
                    },
                }
                for teacher in self.teachers
            ],
        }


def figures_of(connection: sqlite3.Connection, store: Path) -> Figures:
    """Checks all pages and all checksums, and counts.

    Raises:
        sqlite3.Error: it cannot be read, for another reason than damage.
    """
    try:
        wrong = what_is_wrong(connection)
        figures = Figures(store, Figures.size_of(store), bytes_in_use(connection), wrong)
        names = names_of(connection)
        for identity, description in known_teachers(connection).items():
            teacher = TeacherFigures(identity, description is not None, names.get(identity))
            figures.teachers.append(teacher)
            for row in answers_of(connection, identity):
                if row is None:
                    teacher.damaged += 1
                else:
                    teacher.tasks.setdefault(row[3], Ages()).add(row[6])
    except sqlite3.DatabaseError as error:
        if not tells_of_damage(error):
            raise
        return Figures(store, Figures.size_of(store), 0, str(error))
    return figures


def as_text(figures: Figures) -> str:
    """The figures, to be read."""
    state = "sound" if figures.sound else f"damaged: {figures.wrong or f'{figures.damaged} answers'}"
    free = max(0, figures.size - figures.in_use)
    sizes = f"{_mib(figures.size)} on the disk, {_mib(figures.in_use)} in use, {_mib(free)} free"
    table = [("teacher", "checkpoint", "task", "answers", "oldest", "newest"), *_lines(figures)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    rows = ("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) for line in table)
    head = f"{figures.store}: {figures.answers} answers, version {VERSION}, {state}\n{sizes}\n"
    return "\n".join([head, *(row.rstrip() for row in rows)])


def _lines(figures: Figures) -> Iterator[tuple[str, ...]]:
    for teacher in figures.teachers:
        who = teacher.identity, printable(teacher.name or "")
        for task, ages in sorted(teacher.tasks.items()):
            yield *who, task, str(ages.answers), _moment(ages.oldest), _moment(ages.newest)
        if not teacher.tasks:
            yield *who, "", "0", "", ""
        if teacher.damaged:
            yield *who, "(damaged)", str(teacher.damaged), "", ""


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _moment(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):  # the time is no part of the checksum
        return "unknown"

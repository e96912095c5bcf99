"""Statistics of a store: answers by teacher and task, their times, sizes, damage."""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from teacher_server.answers.content import StoreContent
from teacher_server.answers.errors import is_damage
from teacher_tools.answers.table import printable


@dataclass
class TaskStatistics:
    """A number of answers, and the times of the oldest and the newest in seconds since 1970."""

    answers: int = 0
    oldest: float = float("inf")
    newest: float = float("-inf")

    def add(self, created: float) -> None:
        """Counts an answer."""
        self.answers += 1
        self.oldest, self.newest = min(self.oldest, created), max(self.newest, created)


@dataclass
class TeacherStatistics:
    """One teacher's sound answers by task, and the number of damaged ones."""

    identity: str
    described: bool
    name: str | None = None
    tasks: dict[str, TaskStatistics] = field(default_factory=dict)
    damaged: int = 0


@dataclass
class StoreStatistics:
    """Statistics of one store; sizes in bytes, of the file and its -wal together."""

    store: str
    version: int
    size: int
    in_use: int
    damage: str | None
    teachers: list[TeacherStatistics] = field(default_factory=list)

    @property
    def damaged(self) -> int:
        """The number of damaged answers."""
        return sum(teacher.damaged for teacher in self.teachers)

    @property
    def answers(self) -> int:
        """The number of sound answers."""
        return sum(task.answers for teacher in self.teachers for task in teacher.tasks.values())

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged."""
        return self.damage is None and self.damaged == 0

    def as_json(self) -> dict[str, Any]:
        """Returns everything, with times as text in UTC."""
        return {
            "store": self.store,
            "version": self.version,
            "sound": self.sound,
            "wrong": self.damage,
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
                        name: {
                            "answers": task.answers,
                            "oldest": _moment(task.oldest),
                            "newest": _moment(task.newest),
                        }
                        for name, task in sorted(teacher.tasks.items())
                    },
                }
                for teacher in self.teachers
            ],
        }


def statistics_of(store: StoreContent) -> StoreStatistics:
    """Checks all pages and all checksums, and counts.

    Raises:
        sqlite3.Error: the store cannot be read, for another reason than damage.
    """
    try:
        statistics = StoreStatistics(store.name, store.version, store.on_disk, store.in_use, store.damage())
        names = store.names()
        for identity, description in store.teachers().items():
            teacher = TeacherStatistics(identity, description is not None, names.get(identity))
            statistics.teachers.append(teacher)
            for row in store.answers(identity):
                if row is None:
                    teacher.damaged += 1
                else:
                    teacher.tasks.setdefault(row[3], TaskStatistics()).add(row[6])
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return StoreStatistics(store.name, store.version, store.on_disk, 0, str(error))
    return statistics


def as_text(statistics: StoreStatistics) -> str:
    """Returns the statistics as text for a terminal."""
    problem = statistics.damage or f"{statistics.damaged} answers"
    state = "sound" if statistics.sound else f"damaged: {problem}"
    free = max(0, statistics.size - statistics.in_use)
    sizes = f"{_mib(statistics.size)} on the disk, {_mib(statistics.in_use)} in use, {_mib(free)} free"
    table = [("teacher", "checkpoint", "task", "answers", "oldest", "newest"), *_lines(statistics)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    rows = ("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) for line in table)
    head = (
        f"{statistics.store}: {statistics.answers} answers, version {statistics.version}, {state}\n{sizes}\n"
    )
    return "\n".join([head, *(row.rstrip() for row in rows)])


def _lines(statistics: StoreStatistics) -> Iterator[tuple[str, ...]]:
    for teacher in statistics.teachers:
        names = teacher.identity, printable(teacher.name or "")
        for name, task in sorted(teacher.tasks.items()):
            yield *names, name, str(task.answers), _moment(task.oldest), _moment(task.newest)
        if not teacher.tasks:
            yield *names, "", "0", "", ""
        if teacher.damaged:
            yield *names, "(damaged)", str(teacher.damaged), "", ""


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _moment(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):  # the time is not part of the checksum
        return "unknown"

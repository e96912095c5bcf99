"""Answer stores of this version and of version 1, with answers in them, for tests."""

import asyncio
import json
import random
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from teacher_api.schemas import Answer, StageReport, Stages
from teacher_server.answers.rows import Key
from teacher_server.answers.sqlite import SqliteStore
from teacher_server.teachers.base import identity_of

TEACHER = {"kind": "planner", "version": 7}
IDENTITY = identity_of(TEACHER)

OTHER_KEYS: list[dict[str, Any]] = [
    {"identity": "planner-2"},
    {"picture": b"q" * 32},
    {"mission": "get the ball"},
    {"task": "go_to_door"},
    {"actions": ("right", "left")},
    {"actions": ("left",)},
]
"""Changes to a part of a key, each of which makes it another key."""

_VERSION_1 = """
CREATE TABLE teachers (
        identity    TEXT PRIMARY KEY,
        description TEXT NOT NULL       -- JSON: everything in the identity
    ) STRICT;
CREATE TABLE answers (
        identity TEXT NOT NULL REFERENCES teachers (identity),
        picture  BLOB NOT NULL,         -- SHA-256 of the picture's file
        mission  TEXT NOT NULL,
        task     TEXT NOT NULL,
        actions  TEXT NOT NULL,         -- in the order asked, with commas in between
        answer   TEXT NOT NULL,         -- JSON, as it was first given
        created  REAL NOT NULL,         -- seconds since 1970
        PRIMARY KEY (identity, picture, mission, task, actions)
    ) STRICT;
PRAGMA application_id = 0x6C766C6D;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""


def key_of(number: int, identity: str = IDENTITY, task: str = "fetch") -> Key:
    """Returns the key of a question; each number has its own."""
    return Key(identity, random.Random(number).randbytes(32), f"get key {number}", task, ("left", "right"))


def answer_of(number: int, identity: str = IDENTITY) -> str:
    """Returns a valid answer to that question; some take several pages."""
    p = number % 1000 / 1000
    said = StageReport(text=f"I see {number} «keys». " * (number * 37 % 400), tokens=number, milliseconds=0.5)
    return Answer(
        probabilities={"left": p, "right": 1 - p},
        action="left" if p >= 0.5 else "right",
        analysis=f"analysis {number}",
        stages=Stages(analysis=said, action=said),
        teacher=identity,
        stored=False,
        milliseconds={"teacher": 0.1},
    ).model_dump_json()


def make_store(path: Path, numbers: Iterable[int], *, close: bool = True) -> dict[Key, str]:
    """Makes a store with these answers and returns them. With `close=False` they stay in the -wal."""
    answers = {key_of(number): answer_of(number) for number in numbers}

    async def fill() -> None:
        store = SqliteStore(path)
        store.register(IDENTITY, TEACHER)
        await asyncio.gather(*(store.put(key, answer) for key, answer in answers.items()))
        if close:
            await store.close()

    asyncio.run(fill())
    return answers


def make_version_1(path: Path, numbers: Iterable[int]) -> dict[Key, str]:
    """Makes a store as version 1 did, and returns its answers."""
    answers = {key_of(number): answer_of(number) for number in numbers}
    connection = sqlite3.connect(path)
    connection.executescript(_VERSION_1)
    connection.execute("INSERT INTO teachers VALUES (?, ?)", (IDENTITY, json.dumps(TEACHER, sort_keys=True)))
    rows = [(*key.columns, answer, 1.7e9 + i) for i, (key, answer) in enumerate(answers.items())]
    connection.executemany("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return answers


def found(path: Path, keys: Iterable[Key]) -> dict[Key, str]:
    """Opens a store and returns its sound answers for these keys."""
    store = SqliteStore(path)
    try:
        return {key: text for key, text in store.get_many(keys).items() if text is not None}
    finally:
        asyncio.run(store.close())


def number(path: Path, query: str) -> int:
    """Returns the number in the query's only row."""
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute(query).fetchone()[0])
    finally:
        connection.close()

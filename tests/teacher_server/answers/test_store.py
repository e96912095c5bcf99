"""The answer store: a real SQLite file, shared between processes, locked, full, and killed while writing."""

import asyncio
import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from teacher_server.answers.errors import StoreError
from teacher_server.answers.rows import Key
from teacher_server.answers.sqlite import SqliteStore
from tests.teacher_server.answers.stores import OTHER_KEYS

pytestmark = pytest.mark.integration

KEY = Key("planner-1", b"p" * 32, "get the key", "fetch", ("left", "right"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path, lock_timeout_s=0.2)
    store.register("planner-1", {"kind": "planner"})
    yield store
    asyncio.run(store.close())


def _number(path: Path, query: str) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute(query).fetchone()[0])
    finally:
        connection.close()


def test_an_answer_is_found_again_by_another_store(store: SqliteStore, path: Path) -> None:
    assert store.get_many([KEY]) == {}
    asyncio.run(store.put(KEY, '{"a": 1}'))
    assert store.get_many([KEY]) == {KEY: '{"a": 1}'}
    other = SqliteStore(path)
    assert other.get_many([KEY]) == {KEY: '{"a": 1}'}
    asyncio.run(other.close())


@pytest.mark.parametrize("change", OTHER_KEYS)
def test_each_part_of_the_key_distinguishes_answers(store: SqliteStore, change: dict[str, Any]) -> None:
    asyncio.run(store.put(KEY, "{}"))
    assert store.get_many([dataclasses.replace(KEY, **change)]) == {}


def test_the_first_answer_stays(store: SqliteStore) -> None:
    asyncio.run(store.put(KEY, '"first"'))
    asyncio.run(store.put(KEY, '"second"'))
    assert store.get_many([KEY]) == {KEY: '"first"'}


def test_many_at_once_are_all_written(store: SqliteStore, path: Path) -> None:
    keys = [dataclasses.replace(KEY, picture=i.to_bytes(32)) for i in range(500)]

    async def put_all() -> None:
        await asyncio.gather(*(store.put(key, "{}") for key in keys))

    asyncio.run(put_all())
    assert len(store.get_many(keys)) == 500
    assert _number(path, "SELECT count(*) FROM answers JOIN teachers USING (identity)") == 500


def test_a_lock_of_another_process_fails_the_write_and_not_the_reads(store: SqliteStore, path: Path) -> None:
    asyncio.run(store.put(KEY, "{}"))
    other = dataclasses.replace(KEY, mission="other")
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")

    async def put_and_read() -> None:
        putting = asyncio.create_task(store.put(other, "{}"))
        await asyncio.sleep(0.05)
        assert not putting.done()
        assert store.get_many([KEY]) == {KEY: "{}"}
        with pytest.raises(StoreError, match="locked"):
            await putting

    asyncio.run(put_and_read())
    locker.rollback()
    locker.close()
    asyncio.run(store.put(other, "{}"))
    assert store.get_many([other]) == {other: "{}"}


def test_a_full_disk_fails_the_write_and_the_store_stays_usable(store: SqliteStore) -> None:
    # max_page_count makes SQLite report what a full disk does
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full"):
        asyncio.run(store.put(KEY, "x" * 100_000))
    store._writer.execute("PRAGMA max_page_count = 1000000")
    asyncio.run(store.put(KEY, "x" * 100_000))
    assert len(store.get_many([KEY])[KEY]) == 100_000


def _other_program(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text)")
    connection.close()


def _newer_version(path: Path) -> None:
    asyncio.run(SqliteStore(path).close())
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_text("These are my notes, not a database. " * 50), "is not a database"),
        (lambda path: path.mkdir(), "is a folder"),
        (_other_program, "a database of another program"),
        (_newer_version, "of version 99"),
    ],
)
def test_a_file_that_is_not_an_answer_store_is_refused_and_left_untouched(
    path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(StoreError, match=message) as caught:
        SqliteStore(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (path.read_bytes() if path.is_file() else b"") == before
    if spoil is not _newer_version:  # this one is a store and may have SQLite's files beside it
        assert list(path.parent.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere is not a folder"):
        SqliteStore(tmp_path / "nowhere" / "answers.sqlite3")


_WRITER = """
import asyncio, pathlib, sys
from teacher_server.answers.rows import Key
from teacher_server.answers.sqlite import SqliteStore
async def main():
    store = SqliteStore(pathlib.Path(sys.argv[1]))
    store.register("planner-1", {})
    for i in range(int(sys.argv[2]), 10**9):
        await store.put(Key("planner-1", i.to_bytes(32), "m", "fetch", ("left",)), str(i))
        print(i, flush=True)
asyncio.run(main())
"""


def test_two_writers_killed_while_writing_lose_no_stored_answer(path: Path) -> None:
    starts = (0, 10**6)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(start)], stdout=subprocess.PIPE, text=True
        )
        for start in starts
    ]
    stored = []
    for writer in writers:
        assert writer.stdout is not None
        stored += [int(writer.stdout.readline()) for _ in range(200)]
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
    for writer in writers:
        assert writer.stdout is not None
        stored += [int(line) for line in writer.stdout if line.endswith("\n")]
        writer.wait()
        writer.stdout.close()
    assert _number(path, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'") == 1
    store = SqliteStore(path)
    keys = {i: Key("planner-1", i.to_bytes(32), "m", "fetch", ("left",)) for i in stored}
    assert store.get_many(keys.values()) == {key: str(i) for i, key in keys.items()}
    asyncio.run(store.close())

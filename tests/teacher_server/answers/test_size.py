"""Limits: the store's size, a full disk, long locks, and a log that does not grow with every failure."""

import asyncio
import logging
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from teacher_server.answers.errors import FailureLog, StoreError
from teacher_server.answers.size import bytes_in_use
from teacher_server.answers.sqlite import SqliteStore
from tests.conftest import AskAbout, StartTeacher
from tests.teacher_server.answers.stores import (
    IDENTITY,
    TEACHER,
    answer_of,
    found,
    key_of,
    make_store,
    number,
)
from tests.waiting import LONG_S, metric

pytestmark = pytest.mark.integration

_OTHER = "planner-0123456789abcdef"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.sqlite3"


async def _put(store: SqliteStore, numbers: range, identity: str) -> None:
    await asyncio.gather(*(store.put(key_of(i, identity), answer_of(i, identity)) for i in numbers))


def _left(store: SqliteStore, numbers: range, identity: str) -> list[int]:
    stored = store.get_many(key_of(i, identity) for i in numbers)
    return [i for i in numbers if key_of(i, identity) in stored]


def test_over_its_size_the_oldest_answers_are_evicted_other_teachers_first(path: Path) -> None:
    evicted: list[int] = []

    async def fill() -> None:
        store = SqliteStore(path, max_mib=4, on_evicted=evicted.append)
        for first in range(0, 300, 50):
            await _put(store, range(first, first + 50), IDENTITY)
        assert evicted == []
        for first in range(0, 2000, 100):
            await _put(store, range(first, first + 100), _OTHER)
            while store._evicting is not None and not store._evicting.done():
                await asyncio.sleep(0.001)
            assert bytes_in_use(store._writer) <= 4 * 2**20
            left = _left(store, range(300), IDENTITY)
            others = _left(store, range(first + 100), _OTHER)
            assert left == list(range(300))[300 - len(left) :]  # the oldest of the first teacher are evicted
            assert not left or len(others) == first + 100  # ... before any of the teacher that answers
            assert others
            assert others == list(range(first + 100))[-len(others) :]
        assert sum(evicted) == 2300 - len(others)
        assert len(evicted) > 5
        await store.close()

    asyncio.run(fill())
    assert number(path, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'") == 1


def test_puts_and_look_ups_continue_during_a_long_eviction(path: Path) -> None:
    make_store(path, range(2000))

    async def fill() -> None:
        store = SqliteStore(path, max_mib=1)
        await _put(store, range(1), _OTHER)
        steps = 0
        while store._evicting is not None and not store._evicting.done():
            steps += 1
            await _put(store, range(steps, steps + 1), _OTHER)
            assert _left(store, range(steps, steps + 1), _OTHER)
        assert steps > 3
        assert bytes_in_use(store._writer) <= 2**20
        await store.close()

    asyncio.run(fill())


def test_the_wal_stays_small(path: Path) -> None:
    async def fill() -> None:
        store = SqliteStore(path, max_mib=2)
        for first in range(0, 3000, 100):
            await _put(store, range(first, first + 100), IDENTITY)
        assert path.with_name(path.name + "-wal").stat().st_size < 16 * 2**20
        assert number(path, "PRAGMA journal_size_limit") != 0
        await store.close()

    asyncio.run(fill())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"no small disk can be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_on_a_full_disk_a_put_fails_and_nothing_is_lost(small_disk: Path) -> None:
    path = small_disk / "answers.sqlite3"
    filler = small_disk / "filler"

    async def fill() -> None:
        store = SqliteStore(path)
        store.register(IDENTITY, TEACHER)
        await _put(store, range(20), IDENTITY)
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(bytes(2**20))
        for i in range(20, 200):
            try:
                await store.put(key_of(i), answer_of(i))
            except StoreError as error:
                cause = error.cause
                break
        assert "full" in cause or "disk I/O" in cause
        assert str(small_disk) not in cause
        assert _left(store, range(200), IDENTITY) == list(range(i))
        filler.unlink()
        await store.put(key_of(i), answer_of(i))
        assert _left(store, range(200), IDENTITY) == list(range(i + 1))
        await store.close()

    asyncio.run(fill())
    assert len(found(path, map(key_of, range(20)))) == 20


def test_on_a_full_disk_a_damaged_store_is_set_aside_and_the_start_refused(small_disk: Path) -> None:
    path = small_disk / "answers.sqlite3"
    make_store(path, range(20))
    with path.open("r+b") as file:
        file.write(b"rubbish")
    spoiled = path.read_bytes()
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(2**20))
    for _ in range(2):
        with pytest.raises(StoreError, match=r"full|disk I/O"):
            SqliteStore(path)
    filler.unlink()
    again = make_store(path, range(3))
    assert found(path, again) == again
    (aside,) = path.parent.glob("*.damaged-*")
    assert aside.read_bytes() == spoiled


def test_a_served_teacher_answers_while_its_store_is_locked(
    teacher_process: StartTeacher, ask_about: AskAbout, tmp_path: Path
) -> None:
    store = tmp_path / "secret-name.sqlite3"
    teacher = teacher_process(store=str(store))
    locker = sqlite3.connect(store, isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    questions = [ask_about("MiniGrid-LavaGapS5-v0", seed).model_dump() for seed in range(3)]
    mission = questions[0]["mission"]

    def ask() -> list[bool]:
        reply = httpx.post(f"{teacher.url}/policy/batch", json=questions, timeout=LONG_S)
        return [each["answer"]["stored"] for each in reply.json()["answers"]]

    assert ask() == [False] * 3
    failures = metric(teacher, "teacher_store_failures_total")
    assert failures >= 1
    assert teacher.stderr.count("\n") == 1
    assert "answer store: database is locked (SQLITE_BUSY)" in teacher.stderr
    assert "secret-name" not in teacher.stderr
    assert mission not in teacher.stderr
    locker.rollback()
    locker.close()
    ask()
    assert ask() == [True] * 3
    assert metric(teacher, "teacher_store_failures_total") == failures


def test_a_damaged_store_is_reported_in_one_line_and_the_teacher_serves(
    teacher_process: StartTeacher, tmp_path: Path
) -> None:
    store = tmp_path / "answers.sqlite3"
    make_store(store, range(10))
    with store.open("r+b") as file:
        file.write(os.urandom(100))
    teacher = teacher_process(store=str(store))
    assert teacher.stderr.count("\n") == 1
    assert "`teacher answers recover " in teacher.stderr
    assert metric(teacher, "teacher_store_evicted_total") == 0
    assert teacher.stop() == 0


def test_a_failure_is_logged_once_a_minute_for_each_cause(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = FailureLog(clock=lambda: now)
    full, locked = StoreError("/a/path is full", "full"), StoreError("/a/path is locked", "locked")
    with caplog.at_level(logging.ERROR):
        for second in range(125):
            now = float(second)
            log.add(full)
            if second == 30:
                log.add(locked)
    assert caplog.messages == [
        "answer store: full",
        "answer store: locked",
        "answer store: full (60 times since the last message)",
        "answer store: full (60 times since the last message)",
    ]

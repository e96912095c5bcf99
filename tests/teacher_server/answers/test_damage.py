"""Damaged stores: set aside, salvaged, never a wrong answer; what is no store is refused and left alone."""

import asyncio
import fcntl
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from teacher_server.answers.errors import StoreError
from teacher_server.answers.salvage import salvaged
from teacher_server.answers.store import AnswerStore
from tests.teacher_server.answers.stores import (
    IDENTITY,
    TEACHER,
    answer_of,
    found,
    key_of,
    make_store,
    make_version_1,
    number,
)
from tests.waiting import LONG_S, wait_for

pytestmark = pytest.mark.unit

_PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.sqlite3"


def _aside(path: Path) -> list[Path]:
    names = path.parent.glob(f"{path.name}.damaged-*")
    return sorted(name for name in names if not name.name.endswith(("-wal", "-shm")))


def _spoil(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


@pytest.mark.parametrize(
    ("spoil", "kept"),
    [
        (lambda path: _spoil(path, 0, b"not a database at all"), 100),
        (lambda path: _spoil(path, 0, bytes(_PAGE)), 100),
        (lambda path: _spoil(path, 40 * _PAGE, os.urandom(_PAGE)), 90),
        (_truncate, 40),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), 0),
        (lambda path: path.write_text("These are my notes. " * 100), 0),
    ],
    ids=["header", "first page", "a page", "truncated", "zeros", "overwritten"],
)
def test_a_damaged_store_is_set_aside_and_what_is_sound_is_saved(
    path: Path, spoil: Callable[[Path], object], kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    answers = make_store(path, range(100))
    spoil(path)
    spoiled = path.read_bytes()
    left = found(path, answers)
    assert left.items() <= answers.items()
    assert len(left) >= kept
    (aside,) = _aside(path)
    assert aside.read_bytes() == spoiled
    (told,) = caplog.messages
    assert "\n" not in told
    assert f"{path} was damaged" in told
    assert str(aside) in told
    assert f"and {len(left)} answers were saved" in told
    assert number(path, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'") == 1
    if left:
        assert number(path, "SELECT count(*) FROM teachers") == 1
    again = make_store(path, range(100, 110))
    assert found(path, {**left, **again}) == {**left, **again}
    assert len(_aside(path)) == 1


def test_an_earlier_damaged_file_is_never_overwritten(path: Path) -> None:
    make_store(path, range(3))
    for round_ in range(3):
        _spoil(path, 0, f"damage {round_}".encode())
        assert len(found(path, map(key_of, range(3)))) == 3
    assert sorted(aside.read_bytes()[:8] for aside in _aside(path)) == [
        f"damage {i}".encode() for i in range(3)
    ]


_KILLED = """
import os, pathlib, signal, sys
from tests.teacher_server.stores import make_store
make_store(pathlib.Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])), close=False)
os.kill(os.getpid(), signal.SIGKILL)
"""


def _make_killed(path: Path, first: int, last: int) -> None:
    """A process puts answers and is killed: they are in the -wal."""
    killed = subprocess.run([sys.executable, "-c", _KILLED, path, str(first), str(last)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.with_name(path.name + "-wal").stat().st_size


def test_what_is_in_the_wal_of_a_damaged_store_is_saved(path: Path) -> None:
    make_store(path, range(20))
    _make_killed(path, 20, 30)
    _spoil(path, 0, bytes(_PAGE))
    assert found(path, map(key_of, range(30))) == {key_of(i): answer_of(i) for i in range(30)}
    (aside,) = _aside(path)
    assert aside.with_name(aside.name + "-wal").exists()


def test_a_store_whose_wal_is_rubbish_is_set_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers = make_store(path, range(20))
    _make_killed(path, 20, 30)
    wal = path.with_name(path.name + "-wal")
    wal.write_bytes(b"rubbish " * 5000)
    assert found(path, [*answers, key_of(20)]) == answers
    (aside,) = _aside(path)
    assert aside.with_name(aside.name + "-wal").read_bytes() == b"rubbish " * 5000
    assert "its -wal is damaged" in caplog.text


def test_a_store_truncated_to_nothing_beside_its_wal_is_set_aside(path: Path) -> None:
    make_store(path, range(5))
    _make_killed(path, 5, 10)
    os.truncate(path, 0)
    assert found(path, map(key_of, range(5, 10))) == {key_of(i): answer_of(i) for i in range(5, 10)}


def test_every_bit_of_the_header_may_flip(path: Path) -> None:
    answers = make_store(path, range(10))
    whole = path.read_bytes()
    for bit in range(100 * 8):
        spoiled = bytearray(whole)
        spoiled[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoiled)
        version = int.from_bytes(spoiled[60:64])
        if 3 < version < 1000:  # legible as a newer store
            with pytest.raises(StoreError, match=f"of version {version}"):
                AnswerStore(path)
            assert path.read_bytes() == spoiled
        else:
            assert found(path, answers) == answers
        for left in (*_aside(path), path):
            left.unlink()


def _flip(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 10, 1000))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _cut(rng: random.Random, path: Path) -> None:
    os.truncate(path, rng.randrange(1, path.stat().st_size))


def _zero(rng: random.Random, path: Path) -> None:
    pages = path.stat().st_size // _PAGE
    for _ in range(rng.choice((1, 5, pages // 2))):
        _spoil(path, rng.randrange(pages) * _PAGE, bytes(_PAGE))


def _garble(rng: random.Random, path: Path) -> None:
    size = rng.choice((10, _PAGE, 20 * _PAGE))
    _spoil(path, rng.randrange(path.stat().st_size), rng.randbytes(size))


def _append(rng: random.Random, path: Path) -> None:
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.choice((100, _PAGE, 30_000))))


def _swap(rng: random.Random, path: Path) -> None:
    pages = path.stat().st_size // _PAGE
    data = path.read_bytes()
    one, two = (rng.randrange(pages) * _PAGE for _ in range(2))
    _spoil(path, one, data[two : two + _PAGE])
    _spoil(path, two, data[one : one + _PAGE])


def _spoil_wal(rng: random.Random, path: Path) -> None:
    wal = path.with_name(path.name + "-wal")
    rng.choice((_flip, _cut, _garble, _append))(rng, wal)


@pytest.mark.integration
def test_damaged_in_random_ways_it_opens_and_never_gives_a_wrong_answer(tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "answers.sqlite3"
    whole.parent.mkdir()
    make_store(whole, range(400))
    _make_killed(whole, 400, 500)
    answers = {key_of(i): answer_of(i) for i in range(500)}
    rng = random.Random(1)
    survived = []
    for round_ in range(200):
        folder = tmp_path / "spoiled"
        shutil.copytree(whole.parent, folder)
        path = folder / whole.name
        spoil = (_flip, _cut, _zero, _garble, _append, _swap, _spoil_wal)[round_ % 7]
        spoil(rng, path)
        store = AnswerStore(path)
        left = {key: text for key, text in store.get_many(answers).items() if text is not None}
        wrong = [key for key, text in left.items() if answers[key] != text]
        assert not wrong, f"round {round_}, {spoil.__name__}"
        asyncio.run(store.close())
        survived.append(len(left))
        shutil.rmtree(folder)
    mean = sum(survived) / len(survived)
    print(f"of 500 answers survived: mean {mean:.0f}, median {sorted(survived)[100]}, least {min(survived)}")
    assert mean > 250


def test_a_damaged_answer_is_found_at_the_look_up_and_replaced_by_a_fresh_one(path: Path) -> None:
    answers = make_store(path, range(3))
    text = answers[key_of(1)].encode()
    data = path.read_bytes()
    at = data.index(text[-80:])
    _spoil(path, at + 20, bytes([data[at + 20] ^ 1]))
    store = AnswerStore(path)
    assert _aside(path) == []
    assert store.get_many(answers) == answers | {key_of(1): None}
    fresh = answer_of(1).replace("analysis 1", "analysis I")
    asyncio.run(store.put(key_of(1), fresh))
    asyncio.run(store.put(key_of(2), fresh))
    assert store.get_many(answers) == answers | {key_of(1): fresh}
    asyncio.run(store.close())


def test_a_damaged_page_costs_only_its_own_answers_while_the_store_is_open(path: Path) -> None:
    answers = make_store(path, range(200))
    store = AnswerStore(path)
    for page in range(60, 70):
        _spoil(path, page * _PAGE, os.urandom(_PAGE))
    looked_up = store.get_many(answers)
    sound = {key: text for key, text in looked_up.items() if text is not None}
    assert len(sound) > 100
    assert sound.items() <= answers.items()
    assert None in looked_up.values()
    asyncio.run(store.close())


def test_what_another_has_open_is_not_set_aside(path: Path) -> None:
    answers = make_store(path, range(20))
    store = AnswerStore(path)
    _spoil(path, 20 * _PAGE, os.urandom(_PAGE))
    with pytest.raises(StoreError, match=r"is damaged .* and another process has it open: end it"):
        AnswerStore(path)
    assert _aside(path) == []
    asyncio.run(store.close())
    assert len(found(path, answers)) >= 15
    assert len(_aside(path)) == 1


_OPENER = """
import asyncio, pathlib, sys
from teacher_server.answers import AnswerStore
from tests.teacher_server.stores import answer_of, key_of
print("ready", flush=True)
sys.stdin.readline()
store = AnswerStore(pathlib.Path(sys.argv[1]))
number = int(sys.argv[2])
asyncio.run(store.put(key_of(number), answer_of(number)))
print(len(store.get_many(map(key_of, range(200)))), flush=True)
sys.stdin.readline()
asyncio.run(store.close())
"""


@pytest.mark.integration
@pytest.mark.parametrize("make", [make_store, make_version_1], ids=["damaged", "damaged version 1"])
def test_of_processes_that_start_at_once_one_sets_the_file_aside(
    path: Path, make: Callable[[Path, range], object]
) -> None:
    make(path, range(200))
    _spoil(path, 0, b"SQLite format 3\0" + bytes(2) if make is make_version_1 else b"rubbish")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _OPENER, path, str(1000 + i)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    told = []
    for step in range(2):
        for process in processes:
            assert process.stdout is not None
            assert process.stdin is not None
            told.append(process.stdout.readline().strip())
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        if step == 1:
            assert told[4:] == ["200"] * 4
    assert [process.wait(LONG_S) for process in processes] == [0] * 4
    assert len(_aside(path)) == 1
    assert len(found(path, map(key_of, [*range(200), *range(1000, 1004)]))) == 204


def _open_and_kill_after(seconds: float, path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _OPENER, path, "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    process.stdin.write(b"\n")
    process.stdin.flush()
    time.sleep(seconds)
    process.kill()
    process.communicate()


@pytest.mark.integration
def test_killed_while_it_salvages_it_salvages_again(path: Path) -> None:
    answers = make_store(path, range(2000))
    _spoil(path, 0, bytes(_PAGE))
    for seconds in (0.02, 0.05, 0.1, 0.2, 0.3):
        _open_and_kill_after(seconds, path)
    assert found(path, answers) == answers


def test_version_1_is_brought_up_and_damaged_answers_are_left_out(path: Path) -> None:
    answers = make_version_1(path, range(50))
    data = path.read_bytes()
    at = data.index(answers[key_of(1)].encode()[:20])
    _spoil(path, at, b"\xff")
    assert found(path, answers) == {key: text for key, text in answers.items() if key != key_of(1)}
    assert _aside(path) == []
    assert number(path, "PRAGMA user_version") == 3
    assert number(path, "PRAGMA auto_vacuum") == 2
    assert number(path, "SELECT count(*) FROM teachers") == 1
    assert number(path, "SELECT min(created) FROM answers") == 1_700_000_000
    assert number(path, "SELECT count(*) FROM sqlite_schema WHERE name = 'answers_1'") == 0


@pytest.mark.integration
def test_killed_while_version_1_is_brought_up_nothing_is_lost(path: Path) -> None:
    answers = make_version_1(path, range(3000))
    for milliseconds in range(20, 400, 40):
        _open_and_kill_after(milliseconds / 1000, path)
        assert number(path, "PRAGMA user_version") in (1, 3)
    assert found(path, answers) == answers
    assert _aside(path) == []


def test_a_damaged_version_1_is_salvaged(path: Path) -> None:
    answers = make_version_1(path, range(50))
    _spoil(path, 30 * _PAGE, bytes(_PAGE))
    left = found(path, answers)
    assert 30 < len(left) < 50
    assert left.items() <= answers.items()
    assert len(_aside(path)) == 1


def test_salvaging_reads_every_kind_of_row(path: Path) -> None:
    answers = make_store(path, range(300))
    rows = list(salvaged(path))
    assert {row[5] for row in rows if len(row) == 8} == set(answers.values())
    connection = sqlite3.connect(path)
    assert {row for row in rows if len(row) == 8} == set(connection.execute("SELECT * FROM answers"))
    connection.close()
    assert [row for row in rows if len(row) == 2] == [(IDENTITY, '{"kind": "planner", "version": 7}')]
    assert TEACHER["version"] == 7


def test_a_sound_database_of_another_program_in_the_stores_place_is_refused(path: Path) -> None:
    make_store(path, range(3))
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="of another program"):
        AnswerStore(path)
    assert path.read_bytes() == before
    assert _aside(path) == []


def test_a_store_that_is_locked_at_the_start_says_so(path: Path) -> None:
    make_store(path, range(3))
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("PRAGMA locking_mode = EXCLUSIVE")
    locker.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="locked by another process") as caught:
        AnswerStore(path, lock_timeout_s=0.1)
    assert "\n" not in str(caught.value)
    locker.rollback()
    locker.close()
    assert _aside(path) == []
    assert len(found(path, map(key_of, range(3)))) == 3


@pytest.mark.integration
def test_one_that_waits_for_anothers_repair_gets_the_repaired_store(path: Path) -> None:
    answers = make_store(path, range(20))
    lock = path.with_name(path.name + "-lock").open("rb+")
    fcntl.flock(lock, fcntl.LOCK_EX)
    process = subprocess.Popen(
        [sys.executable, "-c", _OPENER, path, "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    process.stdin.write("\n")
    process.stdin.flush()
    wait_for(lambda: f"{process.pid}" in Path("/proc/locks").read_text(), "the second to wait")
    assert process.poll() is None
    lock.close()
    assert process.stdout.readline() == f"{len(answers)}\n"
    process.communicate("\n")
    assert _aside(path) == []

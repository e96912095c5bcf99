"""Damaged stores are set aside and never give a wrong answer; other files are refused and left untouched."""

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
from teacher_server.answers.lock import beside
from teacher_server.answers.rows import Key
from teacher_server.answers.sqlite import SqliteStore
from tests.teacher_server.answers.stores import (
    answer_of,
    found,
    key_of,
    make_store,
    make_version_1,
    number,
)
from tests.waiting import LONG_S, wait_for

pytestmark = pytest.mark.integration

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
    "spoil",
    [
        lambda path: _spoil(path, 0, b"not a database at all"),
        lambda path: _spoil(path, 0, bytes(_PAGE)),
        lambda path: _spoil(path, 40 * _PAGE, os.urandom(_PAGE)),
        lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.write_text("These are my notes. " * 100),
    ],
    ids=["header", "first page", "a page", "truncated", "zeros", "overwritten"],
)
@pytest.mark.parametrize("make", [make_store, make_version_1])
def test_a_damaged_store_is_set_aside_for_a_new_one(
    path: Path,
    make: Callable[[Path, range], dict[Key, str]],
    spoil: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = make(path, range(100))
    assert found(path, answers) == answers
    spoil(path)
    spoiled = path.read_bytes()
    assert found(path, answers) == {}
    (aside,) = _aside(path)
    assert aside.read_bytes() == spoiled
    (line,) = caplog.messages
    assert "\n" not in line
    assert line.startswith(f"answer store {path} is damaged (")
    assert line.endswith(f"`teacher answers recover {aside} --store {path}`")
    again = make_store(path, range(100, 110))
    assert found(path, again) == again
    assert len(_aside(path)) == 1


def test_an_earlier_damaged_file_is_never_overwritten(path: Path) -> None:
    make_store(path, range(3))
    for round_ in range(3):
        _spoil(path, 0, f"damage {round_}".encode())
        assert found(path, map(key_of, range(3))) == {}
        make_store(path, range(3))
    assert sorted(aside.read_bytes()[:8] for aside in _aside(path)) == [
        f"damage {i}".encode() for i in range(3)
    ]


_KILLED = """
import os, pathlib, signal, sys
from tests.teacher_server.answers.stores import make_store
make_store(pathlib.Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])), close=False)
os.kill(os.getpid(), signal.SIGKILL)
"""


def _make_killed(path: Path, first: int, last: int) -> None:
    """Puts answers in a process that is killed, which leaves them in the -wal."""
    killed = subprocess.run([sys.executable, "-c", _KILLED, path, str(first), str(last)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert beside(path, "-wal").stat().st_size


_RUBBISH = b"rubbish " * 5000


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda path: _spoil(path, 0, bytes(_PAGE)), "its header is damaged"),
        (lambda path: beside(path, "-wal").write_bytes(_RUBBISH), "its -wal is damaged"),
        (lambda path: os.truncate(path, 0), "the file is empty and its -wal is not"),
    ],
)
def test_the_wal_is_set_aside_with_its_store(
    path: Path, spoil: Callable[[Path], object], cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_store(path, range(20))
    _make_killed(path, 20, 30)
    spoil(path)
    before = path.read_bytes(), beside(path, "-wal").read_bytes()
    assert found(path, map(key_of, range(30))) == {}
    (aside,) = _aside(path)
    assert (aside.read_bytes(), beside(aside, "-wal").read_bytes()) == before
    assert cause in caplog.text


def test_each_byte_of_the_header_may_be_damaged(path: Path) -> None:
    answers = make_store(path, range(10))
    whole = path.read_bytes()
    rng = random.Random(1)
    for byte in range(100):
        spoiled = bytearray(whole)
        spoiled[byte] ^= 1 << rng.randrange(8)
        path.write_bytes(spoiled)
        version = int.from_bytes(spoiled[60:64])
        if 3 < version < 1000:  # legible as a newer store
            with pytest.raises(StoreError, match=f"of version {version}"):
                SqliteStore(path)
            assert path.read_bytes() == spoiled
        else:
            left = found(path, answers)
            assert left == ({} if _aside(path) else answers)
        for file in (*_aside(path), path):
            file.unlink()


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
    wal = beside(path, "-wal")
    rng.choice((_flip, _cut, _garble, _append))(rng, wal)


def test_damaged_in_random_ways_it_opens_and_never_gives_a_wrong_answer(tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "answers.sqlite3"
    whole.parent.mkdir()
    make_store(whole, range(400))
    _make_killed(whole, 400, 500)
    answers = {key_of(i): answer_of(i) for i in range(500)}
    rng = random.Random(1)
    aside = 0
    for round_ in range(70):
        folder = tmp_path / "spoiled"
        shutil.copytree(whole.parent, folder)
        path = folder / whole.name
        spoil = (_flip, _cut, _zero, _garble, _append, _swap, _spoil_wal)[round_ % 7]
        spoil(rng, path)
        left = found(path, answers)
        assert left.items() <= answers.items(), f"round {round_}, {spoil.__name__}"
        assert not (left and _aside(path))
        aside += len(_aside(path))
        shutil.rmtree(folder)
    assert 30 < aside < 70


def test_a_damaged_answer_is_found_at_the_look_up_and_replaced_by_a_fresh_one(path: Path) -> None:
    answers = make_store(path, range(3))
    text = answers[key_of(1)].encode()
    data = path.read_bytes()
    at = data.index(text[-80:])
    _spoil(path, at + 20, bytes([data[at + 20] ^ 1]))
    store = SqliteStore(path)
    assert _aside(path) == []
    assert store.get_many(answers) == answers | {key_of(1): None}
    fresh = answer_of(1).replace("analysis 1", "analysis I")
    asyncio.run(store.put(key_of(1), fresh))
    asyncio.run(store.put(key_of(2), fresh))
    assert store.get_many(answers) == answers | {key_of(1): fresh}
    asyncio.run(store.close())


def test_a_damaged_page_costs_only_its_own_answers_while_the_store_is_open(path: Path) -> None:
    answers = make_store(path, range(200))
    store = SqliteStore(path)
    for page in range(60, 70):
        _spoil(path, page * _PAGE, os.urandom(_PAGE))
    looked_up = store.get_many(answers)
    sound = {key: text for key, text in looked_up.items() if text is not None}
    assert len(sound) > 100
    assert sound.items() <= answers.items()
    assert None in looked_up.values()
    asyncio.run(store.close())


def test_a_store_that_another_process_has_open_is_not_set_aside(path: Path) -> None:
    answers = make_store(path, range(20))
    store = SqliteStore(path)
    _spoil(path, 20 * _PAGE, os.urandom(_PAGE))
    with pytest.raises(StoreError, match=r"is damaged .* and another process has it open: end that"):
        SqliteStore(path)
    assert _aside(path) == []
    asyncio.run(store.close())
    assert found(path, answers) == {}
    assert len(_aside(path)) == 1


_OPENER = """
import asyncio, pathlib, sys
from teacher_server.answers.sqlite import SqliteStore
from tests.teacher_server.answers.stores import answer_of, key_of
print("ready", flush=True)
sys.stdin.readline()
store = SqliteStore(pathlib.Path(sys.argv[1]))
number = int(sys.argv[2])
asyncio.run(store.put(key_of(number), answer_of(number)))
print("open", flush=True)
sys.stdin.readline()
asyncio.run(store.close())
"""


@pytest.mark.parametrize("make", [make_store, make_version_1])
def test_of_several_processes_that_start_at_once_one_sets_the_file_aside(
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
    for line in ("ready\n", "open\n"):
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == line
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
    assert [process.wait(LONG_S) for process in processes] == [0] * 4
    assert len(_aside(path)) == 1
    assert len(found(path, map(key_of, [*range(200), *range(1000, 1004)]))) == 4


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


def test_version_1_is_upgraded_without_its_damaged_answers(path: Path) -> None:
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


def test_killed_during_the_upgrade_of_version_1_nothing_is_lost(path: Path) -> None:
    answers = make_version_1(path, range(3000))
    for milliseconds in range(20, 400, 80):
        _open_and_kill_after(milliseconds / 1000, path)
        assert number(path, "PRAGMA user_version") in (1, 3)
    assert found(path, answers) == answers
    assert _aside(path) == []


def test_a_sound_database_of_another_program_in_the_stores_place_is_refused(path: Path) -> None:
    make_store(path, range(3))
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="of another program"):
        SqliteStore(path)
    assert path.read_bytes() == before
    assert _aside(path) == []


def test_a_store_locked_at_the_start_is_reported(path: Path) -> None:
    make_store(path, range(3))
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("PRAGMA locking_mode = EXCLUSIVE")
    locker.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="locked by another process") as caught:
        SqliteStore(path, lock_timeout_s=0.1)
    assert "\n" not in str(caught.value)
    locker.rollback()
    locker.close()
    assert _aside(path) == []
    assert len(found(path, map(key_of, range(3)))) == 3


def test_a_process_waits_while_another_sets_the_store_aside(path: Path) -> None:
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
    assert process.stdout.readline() == "open\n"
    process.communicate("\n")
    assert found(path, answers) == answers
    assert _aside(path) == []

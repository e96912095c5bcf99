"""`teacher answers` on a database, and answers carried between a file and a database."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from teacher_server.answers.postgres.store import PostgresStore
from tests.fleet.postgres import PASSWORD, PostgresServer
from tests.teacher_server.answers.stores import IDENTITY, TEACHER, answer_of, found, key_of, make_store

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(300)]


def _fill(server: PostgresServer, numbers: range, picture: bytes | None = None) -> None:
    async def fill() -> None:
        store = PostgresStore(server.url())
        store.register(IDENTITY, TEACHER, "tiny")
        await asyncio.gather(*(store.put(key_of(n), answer_of(n), picture) for n in numbers))
        await store.close()

    asyncio.run(fill())


def _run(command: str, store: object, *flags: object, code: int = 0) -> str:
    teacher = Path(sys.executable).with_name("teacher")
    arguments = [teacher, "answers", command, *map(str, flags), "--store", str(store)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def test_answers_are_carried_from_a_file_to_a_database_and_back(
    database: PostgresServer, tmp_path: Path
) -> None:
    answers = make_store(tmp_path / "one.sqlite3", range(600))
    exported, again = tmp_path / "one.jsonl", tmp_path / "again.jsonl"
    _run("export", tmp_path / "one.sqlite3", exported)
    assert _run("import", database.url(), exported) == f"{exported}: 600 new, 0 known\n"
    assert _run("import", database.url(), exported) == f"{exported}: 0 new, 600 known\n"
    _run("export", database.url(), again)
    assert again.read_bytes() == exported.read_bytes()
    _run("import", tmp_path / "two.sqlite3", again)
    assert found(tmp_path / "two.sqlite3", answers) == answers


def test_what_differs_stays_and_what_is_damaged_is_replaced(database: PostgresServer, tmp_path: Path) -> None:
    make_store(tmp_path / "one.sqlite3", range(3))
    exported = tmp_path / "one.jsonl"
    _run("export", tmp_path / "one.sqlite3", exported)

    async def fill() -> None:
        store = PostgresStore(database.url())
        await store.put(key_of(0), answer_of(500))
        await store.put(key_of(1), answer_of(1))
        await store.close()

    asyncio.run(fill())
    database.query("UPDATE answers SET answer = answer || ' ' WHERE mission = 'get key 1'")
    told = "2 new, 1 known; 1 of these differ in their probabilities and stay as they were"
    assert _run("import", database.url(), exported) == f"{exported}: {told}\n"
    stored = dict(database.query("SELECT mission, answer FROM answers"))
    assert stored == {f"get key {n}": answer_of(m) for n, m in ((0, 500), (1, 1), (2, 2))}


def test_show_stats_and_tables(database: PostgresServer, tmp_path: Path) -> None:
    _fill(database, range(20), b"\x89PNG a picture")
    database.query("UPDATE answers SET answer = '{}' WHERE mission = 'get key 7'")
    shown = _run("show", database.url(), "--limit", 5)
    assert shown.startswith(f"{IDENTITY} (tiny)\nwhen (UTC)")
    assert len(shown.splitlines()) == 2 + 5
    statistics: dict[str, Any] = json.loads(_run_stats(database))
    assert statistics["store"] == f"postgresql://127.0.0.1:{database.port}/answers"
    assert (statistics["answers"], statistics["damaged"], statistics["sound"]) == (19, 1, False)
    assert statistics["bytes"] > 0
    assert statistics["teachers"][0]["checkpoint"] == "tiny"
    table = tmp_path / "table.csv"
    _run("export", database.url(), table, "--csv", "--pictures", tmp_path / "pictures")
    assert len(table.read_text().splitlines()) == 1 + 19


def _run_stats(database: PostgresServer) -> str:
    teacher = Path(sys.executable).with_name("teacher")
    command = [teacher, "answers", "stats", "--json", "--store", database.url()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1  # one answer is damaged
    return done.stdout


def test_prune(database: PostgresServer) -> None:
    _fill(database, range(400), b"a picture")
    assert "400 answers would be deleted" in _run(
        "prune", database.url(), "--before", "2999-01-01", "--dry-run"
    )
    assert "about" in _run("prune", database.url(), "--max-mib", "2", "--dry-run")
    out = _run("prune", database.url(), "--max-mib", "2")
    assert f"{IDENTITY}: " in out
    (left,) = database.query("SELECT count(*) FROM answers")[0]
    assert 0 < left < 400
    assert f"{IDENTITY}: {left} answers deleted" in _run("prune", database.url(), "--before", "2999-01-01")
    assert database.query("SELECT count(*) FROM answers") == database.query("SELECT count(*) FROM pictures")


def test_an_empty_database_holds_no_answers(database: PostgresServer) -> None:
    assert "holds no answers" in _run("stats", database.url(), code=2)
    assert "answers are recovered into an SQLite file" in _run("recover", database.url(), "x", code=2)

"""`teacher answers recover`: real damage, SQLite's own program, and hostile output of that program."""

import asyncio
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from teacher_api.command_line import CannotStart
from teacher_server.answers.lock import beside
from teacher_server.answers.rows import Key, row_of
from teacher_server.answers.sqlite import SqliteStore
from teacher_tools import cli
from teacher_tools.answers import recover
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

pytestmark = pytest.mark.integration

_PAGE = 4096

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def sqlite3_program() -> str:
    try:
        return recover.program()
    except CannotStart as error:
        pytest.skip(str(error))


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    return tmp_path / "damaged.sqlite3"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEACHER_STORE", str(tmp_path / "answers.sqlite3"))
    return tmp_path / "answers.sqlite3"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `teacher answers recover`: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["answers", "recover", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def _write(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def _zero_pages(path: Path) -> None:
    for page in range(20, path.stat().st_size // _PAGE, 20):
        _write(path, page * _PAGE, bytes(_PAGE))


def _spoil_indexes(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        roots = connection.execute("SELECT rootpage FROM sqlite_schema WHERE type = 'index'").fetchall()
    for (page,) in roots:
        _write(path, (page - 1) * _PAGE, os.urandom(_PAGE))


def _add_stale_wal(path: Path) -> None:
    """Puts the -wal of an earlier state beside a file that was vacuumed since."""
    wal = beside(path, "-wal")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("UPDATE answers SET created = created - 1 WHERE rowid < 50")
        connection.commit()
        stale = wal.read_bytes()
        connection.execute("VACUUM")
    wal.write_bytes(stale)


def _leave_the_wal_alone(path: Path) -> None:
    """Has every page in the -wal, and nothing in the file."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("VACUUM")
        wal = beside(path, "-wal").read_bytes()
    beside(path, "-wal").write_bytes(wal)
    os.truncate(path, 0)


@pytest.mark.parametrize(
    ("make", "spoil", "least"),
    [
        (make_store, lambda path: None, 200),
        (make_store, lambda path: _write(path, 0, b"not a database at all"), 200),
        (make_store, lambda path: _write(path, 0, os.urandom(_PAGE)), 200),
        (make_store, _zero_pages, 100),
        (make_store, lambda path: os.truncate(path, path.stat().st_size * 2 // 3), 100),
        (make_store, _spoil_indexes, 200),
        (make_store, _add_stale_wal, 100),
        (make_store, _leave_the_wal_alone, 200),
        (make_version_1, _zero_pages, 100),
        (make_version_1, lambda path: _write(path, 0, bytes(_PAGE)), 200),
    ],
    ids=[
        *("sound", "header", "first page", "pages", "truncated", "indexes", "stale wal", "wal alone"),
        *("version 1, pages", "version 1, first page"),
    ],
)
def test_answers_of_a_damaged_store_are_recovered(
    sqlite3_program: str,
    damaged: Path,
    store: Path,
    run: Run,
    make: Callable[[Path, range], dict[Key, str]],
    spoil: Callable[[Path], object],
    least: int,
) -> None:
    answers = make(damaged, range(200))
    spoil(damaged)
    before = {file.name: file.read_bytes() for file in damaged.parent.glob("damaged*")}
    other = make_store(store, range(200, 210))
    code, out, err = run(damaged)
    assert (code, err) == (0, "")
    recovered = found(store, answers)
    assert recovered.items() <= answers.items()
    assert len(recovered) >= least
    assert f" recovered ({len(recovered)} new, " in out
    assert out.endswith(": none\n") or len(recovered) < 200
    assert found(store, other) == other
    assert number(store, "SELECT count(*) FROM teachers") == 1
    assert {file.name: file.read_bytes() for file in damaged.parent.glob("damaged*")} == before
    assert " recovered (0 new, " in run(damaged)[1]
    assert not list(store.parent.glob("recover-*"))


def test_pictures_names_and_missions_of_any_text_are_recovered(
    sqlite3_program: str, damaged: Path, store: Path, run: Run
) -> None:
    picture = b"\x89PNG" + bytes(range(256)) * 40
    missions = ('say "go"\nto the door', "a lone\rreturn", "it's\\n", "grün ключ 🔑", "")
    keys = [Key(IDENTITY, hashlib.sha256(picture).digest(), m, "fetch", ("left", "right")) for m in missions]

    async def fill() -> None:
        filled = SqliteStore(damaged)
        filled.register(IDENTITY, TEACHER, "qwen, tuned")
        for key in keys:
            await filled.put(key, answer_of(1), picture)
        await filled.close()

    asyncio.run(fill())
    _write(damaged, 0, bytes(_PAGE))
    assert run(damaged)[0] == 0
    assert found(store, keys) == dict.fromkeys(keys, answer_of(1))
    with closing(sqlite3.connect(store)) as connection:
        assert connection.execute("SELECT file FROM pictures").fetchall() == [(picture,)]
        assert connection.execute("SELECT identity, name FROM names").fetchall() == [
            (IDENTITY, "qwen, tuned")
        ]


def _install(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Makes a shell script the only program sqlite3."""
    program = folder / "bin" / "sqlite3"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


def _insert(number: int, checksum: bytes = b"", table: str = "'answers'") -> str:
    *key, answer, created, right = row_of(key_of(number), answer_of(number).replace("'", "''"), 1.0)
    i, p, m, t, a = (f"X'{each.hex()}'" if isinstance(each, bytes) else f"'{each}'" for each in key)
    fields = f"{i}, {p}, {m}, {t}, {a}, '{answer}', {created}, X'{(checksum or right).hex()}'"
    before = "6, 6, 8, NULL" if table == "lost_and_found" else "NULL"
    columns = "" if table == "lost_and_found" else "(_rowid_, 'identity')"
    return f"INSERT OR IGNORE INTO {table}{columns} VALUES({before}, {fields});"


def test_the_programs_output_is_not_trusted(
    damaged: Path, store: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, written = tmp_path / "secret", tmp_path / "written"
    make_store(store, [])
    make_store(secret, range(1))
    endless = "(WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n)"
    lines = [
        f"ATTACH '{written}' AS other;",
        f"ATTACH '{secret}' AS secret;",
        "SELECT load_extension('/tmp/x.so');",
        f"INSERT INTO answers VALUES(writefile('{written}', 'x'), 1);",
        "INSERT INTO answers VALUES(load_extension('x'), 1);",
        "INSERT INTO answers VALUES((SELECT count(*) FROM sqlite_schema), 1);",
        f"INSERT INTO answers VALUES({endless}, 1);",
        "INSERT INTO answers VALUES(1, 2); DROP TABLE answers;",
        "INSERT INTO answers SELECT * FROM secret.answers;",
        "INSERT INTO answers(_rowid_) VALUES(1, 2.5, 3.5, 4.5);",
        "DROP TABLE answers;",
        _insert(1, checksum=b"wrong !!"),
        _insert(2),
        _insert(3, table="lost_and_found"),
    ]
    (tmp_path / "sql").write_text("\n".join(lines) + "\n")
    _install(tmp_path, monkeypatch, f"cat '{tmp_path / 'sql'}'")
    damaged.write_bytes(b"damaged")
    code, out, err = run(damaged)
    assert (code, err) == (0, "")
    assert "2 answers recovered (2 new, 0 known); " in out
    assert out.endswith(
        "dropped rows: 1 with a wrong checksum, 1 with an unknown layout, 6 with unreadable values\n"
    )
    assert found(store, map(key_of, range(5))) == {key_of(i): answer_of(i) for i in (2, 3)}
    assert not written.exists()


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("exit 1", 2, "was built without .recover: install the Debian package sqlite3 of Debian 13 or later"),
        (
            'case "$*" in *dbpage*) exit 0;; esac; echo "disk I/O error (10)" >&2; exit 10',
            1,
            "disk I/O error (10)",
        ),
    ],
)
def test_a_program_that_cannot_recover_is_reported(
    damaged: Path,
    store: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    code: int,
    message: str,
) -> None:
    make_store(damaged, range(1))
    _install(tmp_path, monkeypatch, script)
    exit_code, _, err = run(damaged)
    assert (exit_code, err.count("\n")) == (code, 1)
    assert message in err


def test_what_cannot_be_recovered_is_refused(
    damaged: Path, store: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(damaged, range(1))
    _install(tmp_path, monkeypatch, "exit 0")
    assert "there is no file" in run(tmp_path / "nothing")[2]
    monkeypatch.setenv("PATH", "")
    code, _, err = run(damaged)
    assert (code, err.count("\n")) == (2, 1)
    assert "sqlite3, which is not installed: install " in err
    assert not store.exists()
    shutil.copy(damaged, store)
    assert "is the store itself" in run(store)[2]

"""`teacher answers`: export, import, stats and prune, also while a teacher uses the store."""

import asyncio
import gzip
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teacher_server.answers.sqlite import SqliteStore
from teacher_server.teachers.base import identity_of
from teacher_tools import cli
from tests.conftest import StartTeacher
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
from tests.waiting import LONG_S

pytestmark = pytest.mark.integration

_NOISY = {"kind": "planner", "noise": 0.2}
_OTHER = identity_of(_NOISY)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEACHER_STORE", str(tmp_path / "answers.sqlite3"))
    return tmp_path / "answers.sqlite3"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `teacher answers`: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["answers", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def _two_teachers(path: Path) -> None:
    make_store(path, range(40))

    async def more() -> None:
        store = SqliteStore(path)
        store.register(_OTHER, _NOISY)
        for i in range(10):
            await store.put(key_of(i, _OTHER, "lava_gap"), answer_of(i, _OTHER))
        await store.close()

    asyncio.run(more())


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_exported_and_imported_the_store_is_the_same(path: Path, run: Run, tmp_path: Path, name: str) -> None:
    _two_teachers(path)
    file, again, other = tmp_path / name, tmp_path / f"again-{name}", tmp_path / "other.sqlite3"
    assert run("export", file) == (0, "50 answers written\n", "")
    assert run("import", "--store", other, file) == (0, f"{file}: 50 new, 0 known\n", "")
    assert run("import", "--store", other, file) == (0, f"{file}: 0 new, 50 known\n", "")
    run("export", "--store", other, again)
    assert again.read_bytes() == file.read_bytes()
    keys = [key_of(i) for i in range(40)] + [key_of(i, _OTHER, "lava_gap") for i in range(10)]
    assert found(other, keys) == found(path, keys)
    assert len(found(other, keys)) == 50
    assert not list(tmp_path.glob("*.part*"))


def test_an_export_is_what_the_docs_say(path: Path, run: Run, tmp_path: Path) -> None:
    _two_teachers(path)
    file = tmp_path / "a.jsonl"
    run("export", file, "--teacher", _OTHER)
    header, teacher, *answers, end = _lines(file)
    assert header == {"format": "teacher answers", "version": 1}
    assert teacher == {"teacher": _OTHER, "description": _NOISY}
    assert end == {"answers": 10}
    assert [line["picture"] for line in answers] == sorted(line["picture"] for line in answers)
    assert set(answers[0]) == {"teacher", "picture", "mission", "task", "actions", "created", "answer"}
    stored = {key_of(i, _OTHER).picture.hex(): json.loads(answer_of(i, _OTHER)) for i in range(10)}
    assert {line["picture"]: line["answer"] for line in answers} == stored


def test_export_to_stdout_and_import_from_stdin(path: Path) -> None:
    _two_teachers(path)
    teacher = Path(sys.executable).with_name("teacher")
    written = subprocess.run(
        [teacher, "answers", "export", "-"], capture_output=True, timeout=LONG_S, check=True
    )
    assert written.stderr == b"50 answers written\n"
    read = subprocess.run(
        [teacher, "answers", "import", "--store", path.with_name("b.sqlite3"), "-"],
        input=written.stdout,
        capture_output=True,
        timeout=LONG_S,
        check=True,
    )
    assert read.stdout == b"-: 50 new, 0 known\n"


def test_stored_answers_stay_and_those_that_differ_are_counted(path: Path, run: Run, tmp_path: Path) -> None:
    make_store(path, range(10))
    file = tmp_path / "a.jsonl"
    run("export", file)
    lines = _lines(file)
    lines[2]["answer"]["probabilities"] = {"left": 0.25, "right": 0.75}
    lines[3]["answer"]["milliseconds"] = {"teacher": 77.0}  # another machine takes another time
    file.write_text("\n".join(map(json.dumps, lines)))
    before = found(path, map(key_of, range(10)))
    printed = f"{file}: 0 new, 10 known; 1 of these differ in their probabilities and stay as they were\n"
    assert run("import", file) == (0, printed, "")
    assert found(path, map(key_of, range(10))) == before


def test_an_import_replaces_what_is_damaged(path: Path, run: Run, tmp_path: Path) -> None:
    answers = make_store(path, range(10))
    file = tmp_path / "a.jsonl"
    run("export", file)
    data = bytearray(path.read_bytes())
    data[data.index(b"analysis 3")] ^= 1
    path.write_bytes(data)
    code, out, _ = run("stats")
    assert code == 1
    assert "damaged: 1 answers" in out
    partly = tmp_path / "b.jsonl"
    assert run("export", partly)[2].startswith("teacher answers export: 1 answer left out: damaged")
    assert len(_lines(partly)) == 9 + 3
    assert run("import", file)[1] == f"{file}: 1 new, 9 known\n"
    assert found(path, answers) == answers
    assert run("stats")[0] == 0


def _change(index: int, **fields: Any) -> Callable[[list[dict[str, Any]]], object]:
    return lambda lines: lines[index].update(fields)


def _answer(**fields: Any) -> Callable[[list[dict[str, Any]]], object]:
    return lambda lines: lines[3]["answer"].update(fields)


@pytest.mark.parametrize(
    ("spoil", "line", "words"),
    [
        (_change(0, version=2), 1, "version 1"),
        (_change(0, format="labels"), 1, "'teacher answers'"),
        (_change(1, description={"kind": "planner", "version": 8}), 2, "does not match the identity"),
        (_change(1, description={"version": 8}), 2, "does not match the identity"),
        (_change(3, teacher="planner-0000000000000000"), 4, "no line before describes"),
        (_change(3, picture="ab"), 4, "picture"),
        (_change(3, picture="Z" * 64), 4, "picture"),
        (_change(3, mission="m" * 600), 4, "mission"),
        (_change(3, actions=["left", "Jump!"]), 4, "'Jump!' is no action's name"),
        (_change(3, actions=["right", "left"]), 4, "about right, left"),
        (_change(3, created="today"), 4, "created"),
        (_change(3, created=-1), 4, "created"),
        (_change(3, extra=1), 4, "extra"),
        (_change(3, answer=[]), 4, "answer"),
        (_answer(teacher=_OTHER), 4, f"a complete answer of {IDENTITY}"),
        (_answer(probabilities={"left": 0.5, "right": 0.4}), 4, "not a probability distribution"),
        (_answer(probabilities=None, action=None), 4, "a complete answer"),
        (_answer(action="up"), 4, "'up' is none of"),
        (_answer(stages=None), 4, "stages"),
        (_change(-1, answers=9), 13, "counts 9 answers, and the file has 10"),
        (lambda lines: lines.pop(), 13, "the last line"),
        (lambda lines: lines.append({"answers": 10}), 14, "a line after the last one"),
        (lambda lines: lines.pop(5), 12, "counts 10 answers, and the file has 9"),
        (lambda lines: lines.insert(4, [1]), 5, "not a JSON object"),
        (lambda lines: lines[3]["answer"]["milliseconds"].update(x=float("nan")), 4, "a complete answer"),
    ],
)
def test_a_file_with_anything_wrong_in_it_is_refused_as_a_whole(
    path: Path, run: Run, tmp_path: Path, spoil: Callable[[list[Any]], object], line: int, words: str
) -> None:
    make_store(path, range(10))
    file, other = tmp_path / "a.jsonl", tmp_path / "other.sqlite3"
    run("export", file)
    lines = _lines(file)
    spoil(lines)
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))
    code, out, err = run("import", "--store", other, file)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith(f"teacher answers import: error: {file}: line {line}: ")
    assert words in err
    assert "nothing of this file was imported" in err
    assert number(other, "SELECT (SELECT count(*) FROM answers) + (SELECT count(*) FROM teachers)") == 0


def test_a_file_that_is_cut_off_or_no_export_is_refused(path: Path, run: Run, tmp_path: Path) -> None:
    make_store(path, range(10))
    file = tmp_path / "a.jsonl.gz"
    run("export", file)
    whole = file.read_bytes()
    for spoiled in (whole[: len(whole) // 2], b"rubbish", whole[:-20] + bytes(20), b"", gzip.compress(b"{")):
        file.write_bytes(spoiled)
        code, out, err = run("import", file)
        assert (code, out, err.count("\n")) == (2, "", 1)
    plain = tmp_path / "a.jsonl"
    for spoiled in (b"\xff\xfe", b"[" * 100_000, b"\n", b"no JSON\n", gzip.decompress(whole)[:-100]):
        plain.write_bytes(spoiled)
        code, out, err = run("import", plain)
        assert (code, out, err.count("\n")) == (2, "", 1)
    assert run("stats")[0] == 0


def test_errors_take_one_line(path: Path, run: Run, tmp_path: Path) -> None:
    for command in (["export", "x"], ["stats"], ["prune", "--max-mib", "1"]):
        code, _, err = run(*command)
        assert (code, err.count("\n")) == (2, 1)
        assert f"there is no answer store {path}" in err
    path.write_text("My notes. " * 100)
    for command in (["export", "x"], ["import", "x"], ["stats"], ["prune", "--max-mib", "1"]):
        code, _, err = run(*command)
        assert (code, err.count("\n")) == (2, 1)
    assert path.read_text() == "My notes. " * 100
    path.unlink()
    make_store(path, range(1))
    for command in (
        ["export"],
        ["export", tmp_path / "nowhere" / "x"],
        ["export", "x", "--teacher", "nobody-1"],
        ["import", tmp_path / "nothing"],
        ["prune"],
        ["prune", "--max-mib", "1", "--before", "1d"],
        ["prune", "--before", "yesterday"],
        ["prune", "--before", "99999999999w"],
        ["prune", "--teacher", "nobody-1"],
        ["prune", "--max-mib", "-1"],
        ["polish"],
    ):
        code, _, err = run(*command)
        assert (code, err.count("\n")) == (2, 1), command


def test_an_interrupted_export_leaves_the_earlier_file(
    path: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(path, range(10))
    file = tmp_path / "a.jsonl"
    file.write_text("from before")
    monkeypatch.setattr("teacher_server.answers.content.answers_of", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("export", file)
    assert file.read_text() == "from before"
    assert not list(tmp_path.glob("*.part*"))


def test_stats_show_teachers_tasks_times_and_size(path: Path, run: Run) -> None:
    _two_teachers(path)
    code, out, _ = run("stats", "--json")
    statistics = json.loads(out)
    assert code == 0
    assert (statistics["answers"], statistics["damaged"], statistics["sound"], statistics["version"]) == (
        50,
        0,
        True,
        3,
    )
    assert statistics["bytes"] >= statistics["bytes_in_use"] > 40 * 500
    tasks = {each["identity"]: each["tasks"] for each in statistics["teachers"]}
    assert {name: {task: ages["answers"] for task, ages in by.items()} for name, by in tasks.items()} == {
        IDENTITY: {"fetch": 40},
        _OTHER: {"lava_gap": 10},
    }
    assert tasks[IDENTITY]["fetch"]["oldest"] <= tasks[_OTHER]["lava_gap"]["newest"]
    code, out, _ = run("stats")
    assert f"{path}: 50 answers, version 3, sound" in out
    assert re.search(rf"^{_OTHER} +lava_gap  10 ", out, re.MULTILINE)


def test_version_1_is_exported_too(path: Path, run: Run, tmp_path: Path) -> None:
    make_version_1(path, range(10))
    assert run("export", tmp_path / "a.jsonl")[1] == "10 answers written\n"
    assert _lines(tmp_path / "a.jsonl")[1] == {"teacher": IDENTITY, "description": TEACHER}


def test_prune_by_teacher_age_and_size_frees_disk_space(path: Path, run: Run) -> None:
    make_version_1(path, range(300))  # given in 2023
    _two_teachers(path)
    size = path.stat().st_size
    assert run("prune", "--before", "2024-01-01", "--dry-run")[1].startswith(
        f"{_OTHER}: 0 answers would be deleted"
    )
    assert number(path, "SELECT count(*) FROM answers") == 310
    code, out, _ = run("prune", "--before", "30d", "--teacher", _OTHER)
    assert (code, out.splitlines()[0]) == (0, "nothing to delete")
    assert f"{_OTHER}: 10 answers deleted" in run("prune", "--teacher", _OTHER)[1]
    half = number(path, "PRAGMA page_count") * 4096 / 2**21
    assert run("prune", "--max-mib", half, "--dry-run")[1].startswith("about 1")
    assert number(path, "SELECT count(*) FROM answers") == 300
    assert f"{IDENTITY}: 256 answers deleted" in run("prune", "--max-mib", half)[1]
    assert path.stat().st_size < size / 2
    assert len(found(path, map(key_of, range(256, 300)))) == 44
    assert f"{IDENTITY}: 44 answers deleted" in run("prune", "--before", "2024-01-01T00:00")[1]
    assert path.stat().st_size < 100_000


def test_every_command_works_while_a_teacher_uses_the_store(
    teacher_process: StartTeacher, run: Run, path: Path, tmp_path: Path
) -> None:
    make_store(path, range(1000))
    teacher = teacher_process(store=str(path))
    file = tmp_path / "a.jsonl"
    assert run("export", file)[:2] == (0, "1000 answers written\n")
    size = path.stat().st_size
    assert f"{IDENTITY}: 1000 answers deleted" in run("prune", "--teacher", IDENTITY)[1]
    assert path.stat().st_size < size / 10
    assert run("import", file)[:2] == (0, f"{file}: 1000 new, 0 known\n")
    code, out, _ = run("stats")
    assert code == 0
    assert "1000 answers, version 3, sound" in out
    assert teacher.stop() == 0
    assert teacher.stderr == ""


def test_a_duration_counts_back_from_now(path: Path, run: Run) -> None:
    make_store(path, range(5))
    time.sleep(0.01)
    assert "5 answers would be deleted" in run("prune", "--before", "0m", "--dry-run")[1]
    assert "0 answers would be deleted" in run("prune", "--before", "1m", "--dry-run")[1]
    assert "5 answers would be deleted" in run("prune", "--before", "2999-01-01", "--dry-run")[1]


def test_lines_that_are_too_long_are_refused(path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'"' + b"x" * (17 * 2**20))))
    code, _, err = run("import", "-")
    assert (code, err.count("\n")) == (2, 1)
    assert "line 1: the line has more than" in err

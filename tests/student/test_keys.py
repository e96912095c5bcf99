"""Students of a teacher with a key: every command takes its file, and no run's folder holds the key."""

import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from student.cli import main
from tests.conftest import StartTeacher, TeacherProcess
from tests.waiting import LONG_S, without_waiting

pytestmark = pytest.mark.integration

_STUDENT = str(Path(sys.executable).with_name("student"))
_KEY = "a-key-of-some-length"
_ENV = "MiniGrid-LavaGapS5-v0"
_SMALL = ("--env", _ENV, "--environments", "4", "--frames", "320", "--evaluation-episodes", "2")
_PLAN = f"""
envs = ["{_ENV}"]
algos = ["ppo"]
seeds = 1
baseline = "given"
[settings]
frames = 320
environments = 4
evaluation_episodes = 2
[arms.given]
teacher = "given"
[arms.own]
teacher = {{ noise = 0.1 }}
"""


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key.txt"
    file.write_text(f"{_KEY}\n")
    return file


@pytest.fixture
def teacher(teacher_process: StartTeacher, key_file: Path) -> TeacherProcess:
    return teacher_process("--api-key-file", str(key_file))


def _student(*arguments: str | Path, code: int = 0) -> str:
    """What the command, run in this process, wrote to stderr."""
    with redirect_stderr(StringIO()) as err, redirect_stdout(StringIO()) as out:
        assert main([str(argument) for argument in arguments]) == code
    assert _KEY not in out.getvalue() + err.getvalue()
    return err.getvalue()


def _student_process(*arguments: str | Path) -> tuple[int, list[str]]:
    """The exit code, and the lines on stderr."""
    command = [_STUDENT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert _KEY not in done.stdout + done.stderr
    return done.returncode, without_waiting(done.stderr)


def _refused(*arguments: str | Path, code: int) -> str:
    (line,) = _student(*arguments, code=code).splitlines()
    return line


def _assert_nowhere(folder: Path, key_file: Path) -> None:
    for file in folder.rglob("*"):
        assert not file.is_file() or file == key_file or _KEY.encode() not in file.read_bytes(), file


def test_a_student_learns_with_the_key_and_cannot_begin_without(
    teacher: TeacherProcess, key_file: Path, tmp_path: Path
) -> None:
    run, wrong = tmp_path / "run", tmp_path / "wrong.txt"
    wrong.write_text("another")
    train = ("train", *_SMALL, "--teacher", teacher.url, "--no-progress", "--out", run)
    told = "name a file that holds it in --teacher-key-file"
    assert _student_process(*train) == (3, [f"student train: error: {teacher.url} needs a key: {told}"])
    assert f"needs another key than the one sent: {told}" in _refused(
        *train, "--teacher-key-file", wrong, code=3
    )
    assert "cannot read the key in" in _refused(*train, "--teacher-key-file", tmp_path / "no", code=2)
    assert not run.exists()
    assert _student_process(*train, "--teacher-key-file", key_file) == (0, [])
    assert json.loads((run / "summary.json").read_text())["questions"] > 0
    assert json.loads((run / "config.json").read_text())["settings"]["teacher_key_file"] == str(key_file)
    resume = ("train", "--resume", run, "--no-progress", "--frames", "640")
    moved = key_file.rename(tmp_path / "moved.txt")
    assert "cannot read the key in" in _refused(*resume, code=2)
    _student(*resume, "--teacher-key-file", moved)
    assert json.loads((run / "summary.json").read_text())["frames"] >= 640
    _assert_nowhere(run, moved)


def test_a_key_that_changes_on_the_way_stops_the_run_which_can_be_resumed(
    teacher_process: StartTeacher, key_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    keyless = teacher_process()
    train = ("train", *_SMALL, "--no-progress", "--out", run, "--teacher", keyless.url)
    _student(*train, "--lambda-frames", "640")
    keyed = teacher_process("--api-key-file", str(key_file))
    resume = ("train", "--resume", run, "--frames", "640", "--teacher", keyed.url, "--no-progress")
    assert "needs a key" in _refused(*resume, code=3)
    _student(*resume, "--teacher-key-file", key_file)


def test_a_teacher_with_a_key_is_played_and_measured(
    teacher: TeacherProcess, key_file: Path, tmp_path: Path
) -> None:
    play = ("evaluate", teacher.url, "--env", _ENV, "--episodes", "2")
    assert "needs a key" in _refused(*play, code=3)
    _student(*play, "--teacher-key-file", key_file)
    pytest.importorskip("onnxruntime")
    _student("train", *_SMALL, "--no-progress", "--out", tmp_path / "run")
    export = ("export", tmp_path / "run", "--teacher", teacher.url, "--questions", "2")
    assert "needs a key" in _refused(*export, code=3)
    _student(*export, "--teacher-key-file", key_file)


def test_a_sweep_takes_the_key_to_its_runs(teacher: TeacherProcess, key_file: Path, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.toml", tmp_path / "out"
    plan.write_text(_PLAN)
    sweep = ("sweep", plan, "--out", out, "--jobs", "1", "--no-progress", "--teacher", teacher.url)
    assert "needs a key" in _refused(*sweep, code=3)
    _student(*sweep, "--teacher-key-file", key_file)
    runs = {arm: out / "runs" / arm / "ppo" / _ENV / "seed-1" for arm in ("given", "own")}
    told = {arm: json.loads((run / "config.json").read_text())["settings"] for arm, run in runs.items()}
    assert told["given"]["teacher_key_file"] == str(key_file)
    assert told["own"]["teacher_key_file"] is None
    assert all((run / "summary.json").exists() for run in runs.values())
    _assert_nowhere(tmp_path, key_file)

"""Wrong input ends a command with one line and an exit code, and changes no files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gridworld.tasks import ALL_TASKS
from tests.conftest import TeacherProcess
from tests.waiting import LONG_S, without_waiting

pytestmark = pytest.mark.integration

_STUDENT = str(Path(sys.executable).with_name("student"))

_ROOMS = "MiniGrid-MemoryS7-v0"


def _fails(*arguments: str | Path, code: int = 2) -> str:
    """Runs a command that fails; returns its only line."""
    result = subprocess.run(
        [_STUDENT, *map(str, arguments)], capture_output=True, text=True, timeout=LONG_S, check=False
    )
    assert result.returncode == code, result.stderr
    lines = without_waiting(result.stderr)
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run without a teacher."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    command = [_STUDENT, "train", "--env", "MiniGrid-LavaGapS5-v0", "--frames", "512", "--out", str(folder)]
    subprocess.run([*command, "--evaluation-episodes", "2"], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("dance",), "no command 'dance'"),
        (("train", "--env", "MiniGrid-Nowhere-v0"), "--env (or STUDENT_ENV): unknown environment"),
        (("train", "--lambda", "-1"), "--lambda (or STUDENT_LAMBDA)"),
        (("train", "--lambda", "nan"), "--lambda"),
        (("train", "--algo", "a2c", "--clip", "0.1"), "--clip cannot be used with --algo a2c"),
        (("train", "--frames", "many"), "--frames (or STUDENT_FRAMES)"),
        (("train", "--speed", "9"), "--speed"),
        (("train", "--teacher", "localhost:8000"), "localhost:8000"),
        (("train", "--env", "Pendulum-v1"), "has the action space Box"),
        (("train", "--env", "MiniGrid-LavaGapS5-v0", "--task", "fetch"), "belongs to the task lava_gap, not"),
        (
            ("train", "--env", _ROOMS, "--teacher", "http://127.0.0.1:9"),
            f"--task is missing: {_ROOMS} belongs",
        ),
        (("evaluate", "http://127.0.0.1:9", "--env", _ROOMS), f"--task is missing: {_ROOMS} belongs"),
        (("evaluate",), "POLICY"),
        (("evaluate", "http://127.0.0.1:9"), "--env"),
    ],
)
def test_flags_that_cannot_be_used(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    if arguments[0] == "train":
        arguments = (*arguments, "--out", str(tmp_path / "run"))
    assert said in _fails(*arguments)
    assert not (tmp_path / "run").exists()


def test_variables_are_named_as_flags_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDENT_LAMBDA", "-3")
    assert "STUDENT_LAMBDA" in _fails("train", "--out", tmp_path / "run")


def test_a_run_is_never_overwritten(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert f"resume it with --resume {run}" in _fails("train", "--out", run, "--frames", "100")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    assert "no config.json" in _fails("train", "--resume", tmp_path)
    assert "no config.json" in _fails("evaluate", tmp_path / "nowhere")


def test_the_frames_of_a_schedule_stay(tmp_path: Path, shared_teacher: TeacherProcess) -> None:
    flags = ("--env", "MiniGrid-LavaGapS5-v0", "--frames", "512", "--lambda-frames", "0")
    run = tmp_path / "run"
    command = [_STUDENT, "train", *flags, "--teacher", shared_teacher.url, "--out", str(run)]
    subprocess.run([*command, "--evaluation-episodes", "2"], check=True, capture_output=True)
    said = _fails("train", "--resume", run, "--frames", 1024)
    assert "its lambda falls to 0 over 512 frames" in said


def test_a_student_in_an_environment_of_another_size(run: Path) -> None:
    assert "MiniGrid-LavaGapS6-v0 has another size" in _fails(
        "evaluate", run, "--env", "MiniGrid-LavaGapS6-v0"
    )


def test_a_run_that_was_damaged(run: Path, tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"PK\x03\x04 and no more", b"no checkpoint at all")):
        copy = tmp_path / str(number)
        (copy / "checkpoints").mkdir(parents=True)
        (copy / "config.json").write_bytes((run / "config.json").read_bytes())
        (copy / "checkpoints" / "000000000512.pt").write_bytes(content)
        assert "cannot be read as a checkpoint" in _fails("train", "--resume", copy, "--frames", 1000)
    (copy / "config.json").write_text('{"settings": {"env": ')
    assert "config.json cannot be read" in _fails("train", "--resume", copy)
    (copy / "config.json").write_text(json.dumps({"settings": {"env": "MiniGrid-LavaGapS5-v0", "warp": 9}}))
    assert "not of this version" in _fails("train", "--resume", copy)


def test_a_teacher_that_is_not_there(tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = _fails("train", "--teacher", "http://127.0.0.1:9", "--teacher-wait-s", "0.3", "--out", out, code=3)
    assert "http://127.0.0.1:9 gave no answer" in line
    assert not out.exists()


def test_a_teacher_that_does_not_know_the_task(tmp_path: Path, shared_teacher: TeacherProcess) -> None:
    flags = ("--env", _ROOMS, "--task", "empty")
    told = f"{shared_teacher.url} knows {', '.join(ALL_TASKS)}, and not empty"
    assert told in _fails("train", *flags, "--teacher", shared_teacher.url, "--out", tmp_path / "run", code=3)
    assert told in _fails("evaluate", shared_teacher.url, *flags, code=3)
    assert not (tmp_path / "run").exists()


def test_a_mission_that_is_too_long(tmp_path: Path) -> None:
    flags = ("--env", "tests.student.custom_environments:Custom-Talkative-v0", "--out", tmp_path / "run")
    assert "an observation holds 128" in _fails("train", *flags)
    assert not (tmp_path / "run").exists()

"""Whole runs, each a process of its own beside a real teacher: resumed, killed, lost, repeated."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import student
import teacher_api
from tests.conftest import StartTeacher, TeacherProcess, environment_without
from tests.student.ends import assert_same_end, checkpoint, metrics
from tests.waiting import LONG_S, wait_for, without_waiting

pytestmark = pytest.mark.integration

_STUDENT = str(Path(sys.executable).with_name("student"))
_SMALL = (
    *("--env", "MiniGrid-LavaGapS5-v0", "--environments", "4", "--rollout-steps", "32"),
    *("--evaluate-every", "1024", "--evaluation-episodes", "10", "--checkpoint-every", "512"),
    *("--log-every", "128"),
)


def _start(*arguments: str) -> subprocess.Popen[str]:
    env = environment_without("STUDENT_")
    return subprocess.Popen(
        [_STUDENT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    process = _start(*arguments)
    out, err = process.communicate(timeout=LONG_S)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def _completed(*arguments: str) -> None:
    result = _run("train", *arguments)
    assert result.returncode == 0, result.stderr


def _train(out: Path, *arguments: str) -> dict[str, Any]:
    _completed(*_SMALL, "--out", str(out), *arguments)
    return _summary(out)


def _summary(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return summary


def _asked(url: str) -> int:
    match = re.search(r'questions_total\{[^}]*"asked"\} (\S+)', httpx.get(f"{url}/metrics").text)
    return int(float(match[1])) if match else 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """undisturbed(*flags): the folder of a run that nothing interrupted; the same flags, the same run."""

    @cache
    def run(*flags: str) -> Path:
        out = tmp_path_factory.mktemp("undisturbed") / "run"
        _completed(*flags, "--out", str(out))
        return out

    return run


def test_questions_are_asked_once_ever(teacher_process: StartTeacher, tmp_path: Path) -> None:
    """No more questions than distinct states; none in a second run; only new states with a second seed."""
    teacher = teacher_process()
    flags = ("--teacher", teacher.url, "--frames", "3000")
    first = _train(tmp_path / "first", *flags)
    states = {key.numpy().tobytes() for key in checkpoint(tmp_path / "first")["labels"]["keys"]}
    assert first["questions"] == first["states"] == len(states) == _asked(teacher.url)
    second = _train(tmp_path / "second", *flags)
    assert (second["questions"], second["store_hits"]) == (0, len(states))
    assert_same_end(tmp_path / "first", tmp_path / "second")
    third = _train(tmp_path / "third", *flags, "--seed", "2")
    met = {key.numpy().tobytes() for key in checkpoint(tmp_path / "third")["labels"]["keys"]}
    assert third["questions"] == len(met - states)
    assert third["store_hits"] == len(met & states)


@pytest.mark.parametrize(
    ("how", "taught", "learning"),
    [
        ("frames", False, ""),
        *((how, True, "") for how in ("frames", "SIGTERM", "SIGKILL")),
        ("frames", True, "--lambda-frames 512"),
        ("frames", False, "--algo a2c"),
        ("frames", True, "--algo a2c --preset paper"),
        ("SIGTERM", True, "--algo a2c --targets hard --lambda 0.3 --lambda-schedule linear"),
        ("SIGKILL", True, "--algo soft-q"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    teacher_process: StartTeacher,
    shared_teacher: TeacherProcess,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
    taught: bool,
    how: str,
    learning: str,
) -> None:
    flags, frames = (*_SMALL, *learning.split()), ("--frames", "6000")
    whole = undisturbed(*flags, *frames, *(("--teacher", shared_teacher.url) if taught else ()))
    parts = tmp_path / "parts"
    flags += ("--out", str(parts))
    if taught:
        flags += ("--teacher", teacher_process("--delay-ms", "5").url)
    if how == "frames":
        _completed(*flags, "--frames", "2500")
    else:
        process = _start("train", *flags, *frames)
        wait_for(lambda: any(parts.glob("checkpoints/*1*.pt")), "a checkpoint")
        process.send_signal(getattr(signal, how))
        _, err = process.communicate(timeout=LONG_S)
        if how == "SIGTERM":
            assert process.returncode == 130
            assert f"--resume {parts}" in err
    _completed("--resume", str(parts), *frames)
    assert_same_end(whole, parts)


def test_the_student_waits_for_a_killed_teacher_and_loses_no_label(
    teacher_process: StartTeacher,
    shared_teacher: TeacherProcess,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
) -> None:
    reference = undisturbed(*_SMALL, "--teacher", shared_teacher.url, "--frames", "2000")
    teacher, run = teacher_process("--delay-ms", "30", "--concurrency", "2"), tmp_path / "run"
    process = _start("train", *_SMALL, "--out", str(run), "--teacher", teacher.url, "--frames", "2000")
    for _ in range(3):
        wait_for(lambda: _asked(teacher.url) >= 8, "8 questions")
        teacher.kill()
        time.sleep(0.5)
        assert process.poll() is None
        teacher.restart()
    _, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 0, err
    assert_same_end(reference, run)
    summary = _summary(run)
    assert summary["questions"] + summary["store_hits"] == summary["states"] == _summary(reference)["states"]


def test_a_teacher_gone_for_good_stops_the_run_which_can_be_resumed(
    teacher_process: StartTeacher,
    shared_teacher: TeacherProcess,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    teacher = teacher_process("--delay-ms", "20", "--concurrency", "2")
    flags = ("--teacher", teacher.url, "--frames", "2000")
    process = _start("train", *_SMALL, "--out", str(run), *flags, "--teacher-wait-s", "1")
    wait_for(lambda: _asked(teacher.url) >= 30, "30 questions")
    teacher.kill()
    _, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 3
    assert f"resume with --resume {run}" in err
    assert "Traceback" not in err
    teacher.restart()
    _completed("--resume", str(run))
    assert_same_end(undisturbed(*_SMALL, "--teacher", shared_teacher.url, "--frames", "2000"), run)


def test_another_teacher_stops_a_resumed_run_unless_told_to_go_on(
    teacher_process: StartTeacher, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    _train(run, "--teacher", teacher_process().url, "--frames", "600")
    other = teacher_process("--noise", "0.2")
    resume = ("train", "--resume", str(run), "--teacher", other.url, "--frames", "1200")
    result = _run(*resume)
    assert result.returncode == 3
    assert "--allow-teacher-change" in result.stderr
    assert "Traceback" not in result.stderr
    assert _summary(run)["frames"] < 1200
    result = _run(*resume, "--allow-teacher-change")
    assert result.returncode == 0, result.stderr
    assert _summary(run)["teacher"] == httpx.get(f"{other.url}/teacher").json()["identity"]


@pytest.mark.parametrize("targets", ["soft", "hard"])
def test_a2c_learns_from_the_teacher_within_few_frames(
    shared_teacher: TeacherProcess, undisturbed: Callable[..., Path], tmp_path: Path, targets: str
) -> None:
    """Alone it does not get there: the same run without the teacher is beside it."""
    flags = ("--algo", "a2c", "--env", "MiniGrid-LavaGapS5-v0", "--frames", "16000", "--evaluate-every", "0")
    taught = ("--teacher", shared_teacher.url, "--targets", targets, "--doubt", "0", "--no-judge-labels")
    _completed(*flags, *taught, "--out", str(tmp_path / "taught"))
    assert _summary(tmp_path / "taught")["success"] >= 0.9
    assert _summary(undisturbed(*flags))["success"] < 0.9
    # None once lambda is 0 and the teacher is not asked
    entropies = {row["target_entropy"] for row in metrics(tmp_path / "taught")} - {None}
    assert entropies
    assert (entropies == {0.0}) == (targets == "hard")


def test_lambda_falls_over_its_frames_and_the_asking_ends(
    shared_teacher: TeacherProcess, tmp_path: Path
) -> None:
    flags = ("--teacher", shared_teacher.url, "--frames", "1536", "--lambda-frames", "1024")
    _train(tmp_path, *flags, "--lambda", "0.8")
    rows = metrics(tmp_path)
    assert [row["lambda"] for row in rows] == pytest.approx([0.8 - 0.1 * i for i in range(8)] + [0] * 4)
    # A teacher without weight is not asked
    assert rows[7]["states"] > rows[3]["states"] > 0
    assert [row["states"] for row in rows[8:]] == [rows[7]["states"]] * 4
    assert [row["kl"] for row in rows[8:]] == [0] * 4


def test_a_run_says_all_about_itself(teacher_process: StartTeacher, tmp_path: Path) -> None:
    teacher = teacher_process()
    summary = _train(tmp_path, "--teacher", teacher.url, "--frames", "1100", "--lambda", "0.5")
    config = json.loads((tmp_path / "config.json").read_text())
    settings = config["settings"]
    assert settings["lambda"] == 0.5
    assert summary["algorithm"] == settings["algo"] == "ppo"
    assert summary["preset"] == settings["preset"] == "fast"
    assert summary["targets"] == settings["targets"] == "soft"
    assert config["teacher"]["identity"] == summary["teacher"]
    assert config["teacher"]["description"]
    assert {"python", "torch", "minigrid", "lvlm2p"} <= config["versions"].keys()
    rows = metrics(tmp_path)
    assert [row["frames"] for row in rows] == list(range(128, 1153, 128))
    assert {"return", "success", "kl", "lambda", "agreement", "states", "failed", "labels"} <= rows[-1].keys()
    assert [row["frames"] for row in rows if "evaluation_success" in row] == [1024]
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_trained_student_is_evaluated_and_drawn(tmp_path: Path) -> None:
    run, gif, report = tmp_path / "run", tmp_path / "x" / "student.gif", tmp_path / "report.json"
    _train(run, "--frames", "600")
    flags = ("--episodes", "12", "--gif", str(gif), "--out", str(report))
    result = _run("evaluate", str(run), *flags)
    assert result.returncode == 0, result.stderr
    with Image.open(gif) as animation:
        assert animation.format == "GIF"
        assert min(animation.size) >= 400
    written = json.loads(report.read_text())
    assert written["sampled"]["episodes"] == written["argmax"]["episodes"] == 12
    assert _run("evaluate", str(run), *flags).stdout == result.stdout


def _demo(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "student.demo", "--frames", "500", "--env", "MiniGrid-LavaGapS5-v0"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=LONG_S, check=False, cwd=cwd
    )


@pytest.mark.parametrize(
    ("teacher", "says", "identity"),
    [
        ("compact", "A Qwen2.5-VL of 2.8 million parameters answers at http://", "prompted-"),
        ("planner", "The planner answers at http://", "planner-"),
    ],
)
def test_the_demo_leaves_what_it_promises(teacher: str, says: str, identity: str, tmp_path: Path) -> None:
    for hits in (False, True):
        result = _demo("--teacher", teacher, "--out", str(tmp_path))
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(says)
        config = json.loads((tmp_path / "taught" / "config.json").read_text())
        assert config["teacher"]["identity"].startswith(identity)
        arms = json.loads((tmp_path / "summary.json").read_text())["arms"]
        assert arms["alone"]["questions"] == 0
        asked, from_store = arms["taught"]["questions"], arms["taught"]["store_hits"]
        assert asked + from_store == arms["taught"]["states"]
        assert asked == 0 if hits else from_store <= 1  # the one that is shown
        about, probabilities = result.stdout.splitlines()[1:3]
        assert about.startswith(
            f"About {tmp_path / 'question.png'} (avoid the lava and get to the green goal"
        )
        assert len(about.partition("it says: ")[2]) > 20
        assert sum(map(float, re.findall(r"\d\.\d\d", probabilities))) == pytest.approx(1, abs=0.03)
    assert (tmp_path / "question.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "student.gif").read_bytes().startswith(b"GIF89a")


def _package_elsewhere(folder: Path) -> str:
    """The packages as if they were installed into a folder that holds nothing else."""
    for package in (student, teacher_api):
        (folder / package.__name__).symlink_to(package.__path__[0])
    return "no checkpoint in "


def _no_transformers(folder: Path) -> str:
    (folder / "transformers.py").write_text("raise ImportError('broken')")
    return "onnx cannot be used here (broken): pip install"


@pytest.mark.parametrize("spoil", [_package_elsewhere, _no_transformers])
def test_without_what_it_needs_the_demo_says_so(spoil: Callable[[Path], str], tmp_path: Path) -> None:
    why = spoil(tmp_path)
    result = _demo(cwd=tmp_path)  # which Python looks into first
    (line,) = without_waiting(result.stderr)
    assert (result.returncode, result.stdout) == (1, "")
    assert line.startswith("demo: error: ")
    assert why in line

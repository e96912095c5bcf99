"""`student train --go-on`: the same command, started again and again, comes to the same end."""

import json
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from student.cli import main
from tests.conftest import StartTeacher, environment_without
from tests.student.ends import assert_same_end, summary
from tests.waiting import LONG_S, metric, wait_for

_STUDENT = str(Path(sys.executable).with_name("student"))
_SMALL = (
    *("--env", "MiniGrid-LavaGapS5-v0", "--environments", "4", "--rollout-steps", "32", "--frames", "4000"),
    *("--evaluate-every", "1024", "--evaluation-episodes", "5", "--checkpoint-every", "512"),
)


def _start(*arguments: str) -> subprocess.Popen[str]:
    env = environment_without("STUDENT_")
    command = [_STUDENT, "train", *arguments, "--no-progress"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def _train(*arguments: str) -> str:
    """What the command prints, run in this process."""
    with redirect_stdout(StringIO()) as out:
        assert main(["train", *arguments, "--no-progress"]) == 0
    return out.getvalue()


def _refused(*arguments: str) -> str:
    """The one line of a command that cannot start."""
    with redirect_stderr(StringIO()) as err, redirect_stdout(StringIO()) as out:
        assert main(["train", *arguments, "--no-progress"]) == 2
    (line,) = err.getvalue().splitlines()
    assert out.getvalue() == ""
    return line


def _content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run without a teacher that is complete."""
    run = tmp_path_factory.mktemp("done") / "run"
    _train(*_SMALL, "--frames", "600", "--out", str(run), "--go-on")
    return run


@pytest.mark.integration
def test_the_same_command_comes_to_the_same_end_and_then_does_nothing(
    teacher_process: StartTeacher, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = (*_SMALL, "--teacher", teacher_process().url)
    said = _train(*flags, "--out", str(whole))
    teacher = teacher_process("--delay-ms", "5")
    again = (*_SMALL, "--teacher", teacher.url, "--out", str(parts), "--go-on")
    for number in (signal.SIGTERM, signal.SIGKILL):
        before = set(parts.glob("checkpoints/*.pt"))
        process = _start(*again)
        wait_for(lambda before=before: bool(set(parts.glob("checkpoints/*.pt")) - before), "a checkpoint")
        process.send_signal(number)
        process.communicate(timeout=LONG_S)
        assert process.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL)
        assert not (parts / "summary.json").exists()
    second = _train(*again)
    assert_same_end(whole, parts)
    assert "go_on" not in json.loads((parts / "config.json").read_text())["settings"]
    questions = metric(teacher, "teacher_questions_total")
    content = _content(parts)
    teacher.stop()
    third = _train(*again)
    assert third == second
    assert third.splitlines()[2:] == said.splitlines()[2:]
    assert _content(parts) == content
    assert questions > 0


@pytest.mark.integration
def test_more_frames_than_a_complete_run_has_are_trained(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    _train(*_SMALL, "--frames", "1200", "--out", str(whole))
    for frames in ("600", "1200"):
        _train(*_SMALL, "--frames", frames, "--out", str(run), "--go-on")
    assert_same_end(whole, run)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--seed", "5", "--lambda", "2"), "--seed, --lambda cannot be changed when a run is resumed"),
        (("--algo", "a2c"), "learns by ppo and cannot be resumed with a2c"),
        (("--teacher", "http://127.0.0.1:9"), "learns without a teacher and cannot be resumed with one"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_overwritten(
    done: Path, flags: tuple[str, ...], said: str
) -> None:
    before = _content(done)
    for frames in ("600", "5000"):
        told = ("--env", "MiniGrid-LavaGapS5-v0", "--frames", frames, "--out", str(done), "--go-on")
        assert said in _refused(*told, *flags)
    assert _content(done) == before


@pytest.mark.integration
def test_a_run_that_moved_is_gone_on_with(done: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "run"
    before = _content(done)
    shutil.copytree(done, moved)
    _train(*_SMALL, "--frames", "900", "--out", str(moved), "--go-on")
    assert summary(moved)["frames"] >= 900
    assert _content(done) == before


@pytest.mark.integration
def test_a_run_without_a_checkpoint_begins_anew(done: Path, tmp_path: Path) -> None:
    """Killed at any moment before its first checkpoint; what is not its own is never taken away."""
    command = (*_SMALL, "--frames", "600", "--go-on", "--out")
    nothing, begun, foreign = tmp_path / "nothing", tmp_path / "begun", tmp_path / "foreign"
    (nothing / "checkpoints").mkdir(parents=True)
    _train(*command, str(nothing))
    assert_same_end(done, nothing)
    for run in (begun, foreign):
        (run / "checkpoints").mkdir(parents=True)
        (run / "tensorboard").mkdir()
        (run / "config.json").write_bytes((done / "config.json").read_bytes())
        (run / "metrics.jsonl").write_text('{"frames": 128}\n')
        (run / "checkpoints" / "000000000512.part").write_bytes(b"half")
        (run / "tensorboard" / "events.out.tfevents.1.host.1.0").write_bytes(b"")
    _train(*command, str(begun))
    assert_same_end(done, begun)
    assert not list(begun.rglob("*.part"))
    (foreign / "tensorboard" / "notes.txt").write_text("mine")
    (foreign / "run.lock").touch()
    before = _content(foreign)
    assert f"{foreign / 'tensorboard' / 'notes.txt'} is not one of its files" in _refused(
        *command, str(foreign)
    )
    assert "--seed cannot be changed" in _refused(*command, str(foreign), "--seed", "7")
    assert _content(foreign) == before


def test_several_seeds_are_the_runs_of_each_seed(tmp_path: Path) -> None:
    flags = ("--env", "MiniGrid-LavaGapS5-v0", "--frames", "600", "--evaluation-episodes", "4")
    said = _train(*flags, "--seed", "3", "--seeds", "2", "--out", str(tmp_path / "all"))
    assert said.splitlines()[-1].startswith("2 seeds: success ")
    _train(*flags, "--seed", "4", "--out", str(tmp_path / "one"))
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["seed-3", "seed-4"]
    assert summary(tmp_path / "all" / "seed-4") == summary(tmp_path / "one")
    before = _content(tmp_path / "all")
    again = (*flags, "--seed", "3", "--seeds", "3", "--out", str(tmp_path / "all"))
    assert "seed-3 holds a run already: resume it with --go-on" in _refused(*again)
    assert _content(tmp_path / "all") == before
    _train(*again, "--go-on")
    assert (tmp_path / "all" / "seed-5" / "summary.json").exists()
    assert _content(tmp_path / "all").items() >= before.items()
    assert "--seeds cannot be used with --resume" in _refused(
        "--seeds", "2", "--resume", str(tmp_path / "one")
    )

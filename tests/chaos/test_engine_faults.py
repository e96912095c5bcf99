"""A teacher's engine is killed or stopped while a student trains: the student's result is the same."""

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import TeacherProcess, environment_without
from tests.student.ends import assert_same_end
from tests.vllm.conftest import VLLM_FLAGS, StartPrompted
from tests.waiting import LONG_S, metric, wait_for

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-chaos"),
]

_STUDENT = str(Path(sys.executable).with_name("student"))
_TRAINING = (
    *("--env", "MiniGrid-LavaGapS5-v0", "--frames", "1000", "--environments", "4", "--rollout-steps", "32"),
    *("--evaluate-every", "0", "--evaluation-episodes", "5", "--checkpoint-every", "128", "--no-progress"),
    *("--teacher-wait-s", "900"),
)


@pytest.fixture
def teacher(start_prompted: StartPrompted, short_prompts: Path) -> TeacherProcess:
    """A prompted teacher that is slow enough to be disturbed."""
    lenient = ("--prompts", str(short_prompts), "--min-label-mass", "0", "--sum-tolerance", "1")
    watched = ("--stall-s", "20", "--watch-s", "5", "--timeout-s", "60")
    return start_prompted(*VLLM_FLAGS, *lenient, *watched, "--concurrency", "2")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_a_student_survives_the_loss_of_an_engine(
    teacher: TeacherProcess, tmp_path: Path, number: signal.Signals
) -> None:
    student = _start(tmp_path / "disturbed", teacher)
    try:
        asked = metric(teacher, "teacher_questions_total", way="asked")
        wait_for(lambda: metric(teacher, "teacher_questions_total", way="asked") > asked + 10, "questions")
        began = time.monotonic()
        for engine in psutil.Process(teacher.process.pid).children(recursive=True):
            engine.send_signal(number)
        wait_for(lambda: student.poll() is not None, "the student's end", 2 * LONG_S)
        assert teacher.process.poll() is None
        why = "dead" if number is signal.SIGKILL else "stuck"
        assert metric(teacher, "teacher_replacements_total", why=why, outcome="replaced") == 1
        print(f"\nengine {number.name}: the student had finished {time.monotonic() - began:.0f} s later")
        assert student.returncode == 0, student.communicate()[1]
    finally:
        student.kill()
        student.communicate()
    # Every answer is in the store: an undisturbed student gets the same answers
    undisturbed = _start(tmp_path / "undisturbed", teacher)
    _, err = undisturbed.communicate(timeout=LONG_S)
    assert undisturbed.returncode == 0, err
    assert_same_end(tmp_path / "undisturbed", tmp_path / "disturbed")


def _start(out: Path, teacher: TeacherProcess) -> subprocess.Popen[str]:
    env = environment_without("STUDENT_")
    return subprocess.Popen(
        [_STUDENT, "train", *_TRAINING, "--out", str(out), "--teacher", teacher.url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )

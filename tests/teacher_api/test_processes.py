"""Teacher processes start, report why they do not, and end with the process that started them."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from teacher_api.processes import TeacherDidNotStart, TeacherProcess, served_teacher
from tests.waiting import LONG_S, wait_for

pytestmark = pytest.mark.integration


def test_why_a_teacher_did_not_start_is_the_last_line_of_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(TeacherDidNotStart, match=r"^teacher serve: error: --noise .*not '7'$"),
        served_teacher(tmp_path / "answers.sqlite3", {"noise": 7}, tmp_path / "log.txt"),
    ):
        pass


def test_variables_do_not_reach_a_served_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_NOISE", "7")
    with served_teacher(tmp_path / "answers.sqlite3") as url:
        assert url.startswith("http://127.0.0.1:")


def test_a_teacher_ends_with_a_killed_starter() -> None:
    code = "import time; from teacher_api.processes import TeacherProcess as P; p = P(['--store=none'])"
    code += "; print(p.process.pid, p.url, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        teacher = psutil.Process(int(starter.stdout.readline().split()[0]))
        starter.kill()
    wait_for(
        lambda: not teacher.is_running() or teacher.status() == psutil.STATUS_ZOMBIE, "the teacher's end"
    )


def test_a_stopped_teacher_ends_well() -> None:
    teacher = TeacherProcess(["--store=none"])
    assert " as planner-" in teacher.greeting
    assert teacher.end(LONG_S) == 0

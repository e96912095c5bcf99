"""The `teacher` command: errors take one line, and stopping is no error."""

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import AskAbout, StartTeacher
from tests.waiting import LONG_S, metric, wait_for

pytestmark = pytest.mark.integration


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    teacher = Path(sys.executable).with_name("teacher")
    return subprocess.run([teacher, *arguments], capture_output=True, text=True, timeout=LONG_S, check=False)


def _refused(*arguments: str) -> str:
    done = _run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("teacher")
    return done.stderr


def test_help_lists_the_commands_and_every_setting() -> None:
    assert "serve" in _run("--help").stdout
    done = _run("serve", "--help")
    assert done.returncode == 0
    for flag in ("--noise", "--delay-ms", "--seed", "--store", "--host", "--port", "--max-pending"):
        assert flag in done.stdout


def test_bad_flags_and_commands_are_refused() -> None:
    assert "'serv'" in _refused("serv")
    assert "--nosie" in _refused("serve", "--nosie", "0.1")
    assert "TEACHER_NOISE" in _refused("serve", "--noise", "2")


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = _refused("serve", "--port", port, "--store", str(tmp_path / "answers.sqlite3"))
    assert f"port {port} on 127.0.0.1 is in use" in told
    assert "--port" in told


def test_an_address_of_another_machine_is_refused() -> None:
    assert "cannot listen on" in _refused("serve", "--host", "192.0.2.1", "--port", "0")


def test_a_store_that_is_no_database_is_refused(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no database " * 100)
    told = _refused("serve", "--port", "0", "--store", str(notes))
    assert f"{notes} is not a database" in told
    assert notes.read_text() == "no database " * 100


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_sigint_end_the_service_without_error(
    teacher_process: StartTeacher, number: signal.Signals
) -> None:
    teacher = teacher_process()
    assert teacher.greeting.startswith("teacher: listening on http://127.0.0.1:")
    assert "planner-" in teacher.greeting
    teacher.process.send_signal(number)
    assert teacher.process.wait(30) == 0
    assert teacher.stderr == ""


def test_waiting_requests_are_refused_when_the_service_stops(
    teacher_process: StartTeacher, ask_about: AskAbout
) -> None:
    teacher = teacher_process("--delay-ms", "600000")
    body = ask_about("MiniGrid-LavaGapS5-v0").model_dump()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(httpx.post, f"{teacher.url}/policy", json=body, timeout=LONG_S)
        wait_for(lambda: metric(teacher, "teacher_in_flight") == 1, "the question")
        assert teacher.stop() == 0
        reply = asking.result()
    assert reply.status_code == 503
    assert reply.headers["Retry-After"] == "1"
    assert "Traceback" not in teacher.stderr


_FAILING = """
import sys
from teacher_tools import cli
from teacher_server.teachers.planner import PlannerTeacher
from tests.waiting import LONG_S

async def start(self):
    raise RuntimeError("no weights here")

PlannerTeacher.start = start
sys.exit(cli.main(["serve", "--port", "0", "--store", sys.argv[1]]))
"""


def test_a_teacher_that_cannot_start_ends_the_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAILING, str(tmp_path / "answers.sqlite3")],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "teacher serve: error: the teacher could not start: no weights here\n"


def test_variables_and_flags_reach_the_teacher(teacher_process: StartTeacher) -> None:
    by_flag, by_variable = teacher_process("--noise", "0.5"), teacher_process(noise="0.5")
    identities = {teacher.greeting.split()[-1] for teacher in (by_flag, by_variable)}
    assert len(identities) == 1
    assert identities != {teacher_process().greeting.split()[-1]}

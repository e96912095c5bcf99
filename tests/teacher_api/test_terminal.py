"""Progress and waiting on stderr: a bar that fits the terminal, lines elsewhere."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable

import pytest

from teacher_api import terminal
from teacher_api.terminal import Bar, Waiting, columns, say
from tests.waiting import LONG_S, wait_for

_FIGURES = """{"success": "0.93", "failed": "1,172", "asked": "2,033", "return": "0.91", "frames/s": "7,553",
"KL": "0.12", "lambda": "0.50", "agreement": "0.99", "stored": "12"}"""
_CHILD = f"""
import time
from teacher_api.terminal import Bar, say, speak_as
speak_as("student train")
with Bar(60_416, "frames") as bar:
    for done in range(0, 60_417, 15_104):
        time.sleep(0.15)
        bar.update(done, {_FIGURES})
    say("note: a line between")
"""


def _drawn(code: str, width: int) -> list[str]:
    """The lines that the child draws on a terminal of this width."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    with subprocess.Popen([sys.executable, "-c", code], stderr=its, stdout=its, stdin=its):
        os.close(its)
        written = b""
        try:
            while piece := os.read(ours, 65536):
                written += piece
        except OSError:  # how the other end of a terminal is told of on Linux
            pass
    os.close(ours)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode()))
    return [line.rstrip() for line in lines if line.strip()]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("width", "figures"),
    [
        (40, []),
        (60, ["success 0.93"]),
        (80, ["success 0.93", "failed 1,172"]),
        (200, ["success 0.93", "failed 1,172", "asked 2,033", "agreement 0.99", "stored 12"]),
    ],
)
def test_a_bar_fits_its_terminal_and_shows_the_most_important_figures(width: int, figures: list[str]) -> None:
    lines = _drawn(_CHILD, width)
    assert max(map(len, lines)) <= width
    *_, last = (line for line in lines if "%" in line)
    assert re.match(r"100%\|[█]{8,}\| 60,416/60,416", last)
    assert all(figure in last for figure in figures)
    known = [f"{name} {value}" for name, value in json.loads(_FIGURES).items()]
    assert set(filter(None, last.partition("] ")[2].split(", "))) <= set(known)  # no figure is cut
    assert "student train: note: a line between" in lines


@pytest.mark.unit
def test_a_bar_without_a_terminal_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "_speaker", "")  # as other commands in this process leave it
    with Bar(1000, "samples", name="pictures") as bar:
        bar.update(10, {"tile": "0.1"})
        assert capsys.readouterr().err == ""  # it has only begun
        monkeypatch.setattr(terminal, "_LINE_EVERY_S", 0.0)
        bar.update(250, {"tile": "0.5", "3 to come": ""})
        said = capsys.readouterr().err
        assert re.fullmatch(
            r"pictures: 250 of 1,000 samples \(25%\), about \d+ s left; tile 0.5, 3 to come\n", said
        )
        bar.begin(20, name="conversations")
        bar.update(5)
        assert capsys.readouterr().err.startswith("conversations: 5 of 20 samples (25%), about ")
    with Bar(None, "questions", name="x") as bar:
        bar.update(12)
        assert capsys.readouterr().err == "x: 12 questions\n"
    with Bar(10, "frames", shown=False) as bar:
        bar.update(5)
    assert capsys.readouterr().err == ""
    assert columns() == 80


def _told(lines: list[str]) -> Callable[[], bool]:
    before = len(lines)
    return lambda: len(lines) > before


@pytest.mark.unit
def test_threads_that_wait_for_one_thing_print_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_AGAIN_S", 0.0)
    lines: list[str] = []
    waiting, over = Waiting("the teacher at X", say=lines.append), threading.Event()

    def wait() -> None:
        with waiting.for_it(300, slow=True):
            waiting.failed("Connection refused")
            over.wait(LONG_S)

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_for(_told(lines), "a line")
    time.sleep(0.5)
    assert lines == ["waiting for the teacher at X, for 300 s at most: Connection refused"]
    waiting.failed("503: it is not ready")
    wait_for(_told(lines), "another reason")
    assert re.fullmatch(r"still waiting for .*, for 29\d s more at most: 503: it is not ready", lines[1])
    waiting.came()
    over.set()
    for thread in threads:
        thread.join()
    assert re.fullmatch(r"the teacher at X answers after \d+ s", lines[2])
    assert len(lines) == 3


@pytest.mark.unit
def test_a_slow_answer_is_reported_later() -> None:
    lines: list[str] = []
    waiting = Waiting("the teacher", say=lines.append)
    with waiting.for_it(300, slow=True):
        time.sleep(1.5)
    assert lines == []
    with waiting.for_it(300):
        wait_for(_told(lines), "a line")
    assert lines == ["waiting for the teacher, for 300 s at most: no answer yet"]


@pytest.mark.unit
def test_a_line_begins_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "_speaker", "")
    terminal.speak_as("student train")
    say("note")
    assert capsys.readouterr().err == "student train: note\n"

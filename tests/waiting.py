"""Waits for conditions and for a teacher's readiness, and reads metrics."""

import re
import time
from collections.abc import Callable

import httpx

from tests.conftest import TeacherProcess

# Longer than anything here takes, even on a machine that stands still for a minute at a time
LONG_S = 300


def wait_for(condition: Callable[[], object], what: str, seconds: float = LONG_S) -> None:
    """Returns when the condition holds; fails after the time limit."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited for {what} in vain"
        time.sleep(0.01)


def wait_until_ready(teacher: TeacherProcess, within_s: float = 600) -> None:
    """Returns when the teacher can answer; fails if its process ends first."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        assert teacher.process.poll() is None, teacher.stderr[-3000:]
        if httpx.get(f"{teacher.url}/readyz", timeout=LONG_S).status_code == 200:
            return
        time.sleep(0.5)
    raise AssertionError(f"not ready within {within_s:g} s: {teacher.stderr[-3000:]}")


def metric(teacher: TeacherProcess, name: str, **labels: str) -> float:
    """Returns the sum of a metric's series with these labels."""
    total = 0.0
    for line in httpx.get(f"{teacher.url}/metrics", timeout=LONG_S).text.splitlines():
        match = re.fullmatch(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)", line)
        if match and all(f'{label}="{value}"' in (match[1] or "") for label, value in labels.items()):
            total += float(match[2])
    return total


def without_waiting(stderr: str) -> list[str]:
    """A command's lines without those about waiting, which a busy machine may add."""
    on_waiting = re.compile(r"waiting for the teacher|the teacher.* answers after")
    return [line for line in stderr.splitlines() if not on_waiting.search(line)]

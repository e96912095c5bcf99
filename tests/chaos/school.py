"""A teacher and a student whose folders may be full and whose clocks may jump; what dies is started again."""

import base64
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from teacher_api.processes import TeacherDidNotStart
from tests.chaos.bodies import Bodies
from tests.chaos.stored import Ledger
from tests.conftest import TeacherProcess, environment_without
from tests.student.ends import assert_same_end
from tests.waiting import LONG_S, wait_for, without_waiting

_STUDENT = str(Path(sys.executable).with_name("student"))
_LESSON = (
    *("--env", "MiniGrid-Fetch-6x6-N2-v0", "--frames", "2500"),
    *("--environments", "4", "--rollout-steps", "32"),
    *("--evaluate-every", "1024", "--evaluation-episodes", "5", "--checkpoint-every", "256"),
    *("--log-every", "128", "--no-progress"),
)
_FAKE_TIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
_DISK_MIB = 256


class Disk:
    """A folder of its own that can be filled, where that is permitted."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m", "chaos", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
            self.why_not = ""
        except (OSError, subprocess.CalledProcessError):
            self.why_not = "no small disk can be mounted here: that takes root"

    @contextmanager
    def full(self) -> Iterator[None]:
        """No byte fits."""
        filler = self.folder / "filler"
        try:
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(2**16))
            yield
        finally:
            filler.unlink()

    def close(self) -> None:
        """Gives the disk back."""
        if not self.why_not:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)


class Clock:
    """What the processes take for the time of day, as far as it is faked."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "offset"
        self.why_not = "" if _FAKE_TIME.exists() else "libfaketime is not installed: apt-get install faketime"
        self.env: dict[str, str] = {}
        if not self.why_not:
            self.set(0)
            self.env = {
                "LD_PRELOAD": str(_FAKE_TIME),
                "FAKETIME_TIMESTAMP_FILE": str(self._file),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_DONT_RESET": "1",
            }

    def set(self, offset_s: int) -> None:
        """Seconds that the clock is off."""
        part = self._file.with_suffix(".part")
        part.write_text(f"{offset_s:+d}")
        part.replace(self._file)


class Prober(threading.Thread):
    """A client of its own that asks new questions all the time, and remembers which were answered."""

    def __init__(self, url: str, bodies: Bodies, ledger: Ledger) -> None:
        super().__init__(daemon=True)
        self._url, self._bodies, self._ledger = url, bodies, ledger
        self._ended = threading.Event()
        self.store_is_well = True
        self.acknowledged: set[bytes] = set()
        self.statuses: dict[int, int] = {}

    def run(self) -> None:
        while not self._ended.wait(0.05):
            question = self._bodies.question()
            digest = self._ledger.know(base64.b64decode(question["image"]))
            well = self.store_is_well
            try:
                status = httpx.post(f"{self._url}/policy", json=question, timeout=LONG_S).status_code
            except httpx.TransportError:
                status = 0
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == 200 and well and self.store_is_well:
                self.acknowledged.add(digest)

    def end(self) -> None:
        """Ends after the question in hand."""
        self._ended.set()
        self.join(LONG_S)


class School:
    """The teacher, the student, and all that is known of what they did.

    Whatever ends is started again with the same command by `tend`; nothing else helps them.
    """

    def __init__(self, folder: Path, bodies: Bodies) -> None:
        self.store_disk, self.run_disk = Disk(folder / "store"), Disk(folder / "runs")
        self.clock = Clock(folder)
        self._untroubled = folder / "untroubled"
        self._untroubled.mkdir()
        self._planner = TeacherProcess(self._untroubled, (), {"TEACHER_STORE": "none"})
        self.store = self.store_disk.folder / "answers.sqlite3"
        self.ledger = Ledger(self.store)
        flags = ("--delay-ms", "10", "--concurrency", "4")
        self.teacher = TeacherProcess(folder, flags, self.clock.env | {"TEACHER_STORE": str(self.store)})
        self.prober = Prober(self.teacher.url, bodies, self.ledger)
        self.bodies = bodies
        self.half_open: list[socket.socket] = []
        self._seed = 0
        self._killed = False
        self.lessons = 0
        self.said: list[str] = []
        self._begin_lesson()
        self.prober.start()

    @property
    def run(self) -> Path:
        """The folder of the student's run."""
        return self.run_disk.folder / f"seed-{self._seed}"

    def kill_student(self) -> None:
        """kill -9; does nothing to one that has ended."""
        if self.student.poll() is None:
            self._killed = True
            self.student.kill()

    def tend(self) -> None:
        """Starts what has ended, and begins the next lesson where one is over.

        Raises:
            AssertionError: something ended without a word, or with more than a line.
        """
        if self.teacher.process.poll() is not None:
            wait_for(self._teacher_starts, "the teacher's start")
        if self.student.poll() is None:
            return
        _, err = self.student.communicate(timeout=LONG_S)
        if self.student.returncode == 0:
            self._end_lesson()
            self._begin_lesson()
            return
        if not self._killed:
            *_, line = without_waiting(err)
            assert line.startswith("student train: error: "), line
            self.said.append(f"{self.student.returncode}: {line}")
        self._start_student()

    def check(self) -> None:
        """All are back, and nothing was lost.

        Raises:
            AssertionError: something was.
        """
        wait_for(self._answers, "an answer")
        self.ledger.check(set(self.prober.acknowledged))

    def finish(self) -> None:
        """Lets the student come to the end of its lesson."""
        lessons = self.lessons

        def over() -> bool:
            self.tend()
            return self.lessons > lessons

        wait_for(over, "the end of the lesson", 2 * LONG_S)

    def close(self) -> None:
        """Ends all."""
        self.prober.end()
        for connection in self.half_open:
            connection.close()
        self.student.kill()
        self.student.communicate()
        self.teacher.end()
        self._planner.end()
        for disk in (self.store_disk, self.run_disk):
            disk.close()

    def _teacher_starts(self) -> bool:
        before = len(self.teacher.stderr)
        try:
            self.teacher.restart()
        except TeacherDidNotStart:
            lines = self.teacher.stderr[before:].splitlines()
            assert len(lines) == 1, lines
            self.said.append(lines[0])
            time.sleep(0.5)
            return False
        return True

    def _answers(self) -> bool:
        self.tend()
        before = len(self.prober.acknowledged)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if len(self.prober.acknowledged) > before:
                return True
            time.sleep(0.05)
        return False

    def _begin_lesson(self) -> None:
        self._seed += 1
        # What an untroubled student comes to, and the pictures that it asks about
        reference = self._reference(self._seed)
        told = ["train", *_LESSON, "--seed", str(self._seed), "--out", str(reference)]
        subprocess.run(
            [_STUDENT, *told, "--teacher", self._planner.url],
            check=True,
            stdout=subprocess.DEVNULL,
            env=environment_without("STUDENT_"),
        )
        self.ledger.know_run(reference)
        self._start_student()

    def _end_lesson(self) -> None:
        assert_same_end(self._reference(self._seed), self.run)
        self.lessons += 1
        shutil.rmtree(self.run)

    def _reference(self, seed: int) -> Path:
        return self._untroubled / f"seed-{seed}"

    def _start_student(self) -> None:
        self._killed = False
        self.student = subprocess.Popen(
            [
                *(_STUDENT, "train", "--go-on", *_LESSON, "--seed", str(self._seed)),
                *("--out", str(self.run), "--teacher", self.teacher.url),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment_without("STUDENT_") | self.clock.env,
        )

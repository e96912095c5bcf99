"""A teacher and a student with small disks and a clock that can jump; processes that end are restarted."""

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
_TRAINING = (
    *("--env", "MiniGrid-Fetch-6x6-N2-v0", "--frames", "2500"),
    *("--environments", "4", "--rollout-steps", "32"),
    *("--evaluate-every", "1024", "--evaluation-episodes", "5", "--checkpoint-every", "256"),
    *("--log-every", "128", "--no-progress"),
)
_FAKE_TIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
_DISK_MIB = 256


class Disk:
    """A small disk of its own that can be filled; a plain folder where nothing can be mounted."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m", "chaos", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
            self.unavailable = ""
        except (OSError, subprocess.CalledProcessError):
            self.unavailable = "a small disk cannot be mounted here: mounting needs root"

    @contextmanager
    def full(self) -> Iterator[None]:
        """Fills the disk for the time of the block."""
        filler = self.folder / "filler"
        try:
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(2**16))
            yield
        finally:
            filler.unlink()

    def close(self) -> None:
        """Unmounts the disk."""
        if not self.unavailable:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)


class Clock:
    """The processes' time of day, with an offset."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "offset"
        self.unavailable = (
            "" if _FAKE_TIME.exists() else "libfaketime is not installed: apt-get install faketime"
        )
        self.env: dict[str, str] = {}
        if not self.unavailable:
            self.set(0)
            self.env = {
                "LD_PRELOAD": str(_FAKE_TIME),
                "FAKETIME_TIMESTAMP_FILE": str(self._file),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_DONT_RESET": "1",
            }

    def set(self, offset_s: int) -> None:
        """Sets the offset in seconds."""
        part = self._file.with_suffix(".part")
        part.write_text(f"{offset_s:+d}")
        part.replace(self._file)


class Prober(threading.Thread):
    """A client that asks new questions all the time and records which were answered."""

    def __init__(self, url: str, bodies: Bodies, ledger: Ledger) -> None:
        super().__init__(daemon=True)
        self._url, self._bodies, self._ledger = url, bodies, ledger
        self._ended = threading.Event()
        self.store_writable = True
        self.acknowledged: set[bytes] = set()
        self.statuses: dict[int, int] = {}

    def run(self) -> None:
        while not self._ended.wait(0.05):
            question = self._bodies.question()
            digest = self._ledger.add_picture(base64.b64decode(question["image"]))
            writable = self.store_writable
            try:
                status = httpx.post(f"{self._url}/policy", json=question, timeout=LONG_S).status_code
            except httpx.TransportError:
                status = 0
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == 200 and writable and self.store_writable:
                self.acknowledged.add(digest)

    def end(self) -> None:
        """Ends the thread after the current question."""
        self._ended.set()
        self.join(LONG_S)


class Harness:
    """A teacher, its student, and a record of what they did.

    `restart_ended` restarts a process that ended with the same command; nothing else helps them.
    """

    def __init__(self, folder: Path, bodies: Bodies) -> None:
        self.store_disk, self.run_disk = Disk(folder / "store"), Disk(folder / "runs")
        self.clock = Clock(folder)
        self._undisturbed = folder / "undisturbed"
        self._undisturbed.mkdir()
        self._planner = TeacherProcess(self._undisturbed, (), {"TEACHER_STORE": "none"})
        self.store = self.store_disk.folder / "answers.sqlite3"
        self.ledger = Ledger(self.store)
        flags = ("--delay-ms", "10", "--concurrency", "4")
        self.teacher = TeacherProcess(folder, flags, self.clock.env | {"TEACHER_STORE": str(self.store)})
        self.prober = Prober(self.teacher.url, bodies, self.ledger)
        self.bodies = bodies
        self.half_open: list[socket.socket] = []
        self._seed = 0
        self._killed = False
        self.completed_runs = 0
        self.errors: list[str] = []
        self._begin_run()
        self.prober.start()

    @property
    def run(self) -> Path:
        """The folder of the student's current run."""
        return self.run_disk.folder / f"seed-{self._seed}"

    def kill_student(self) -> None:
        """Kills the student with SIGKILL, unless it has ended."""
        if self.student.poll() is None:
            self._killed = True
            self.student.kill()

    def restart_ended(self) -> None:
        """Restarts a process that ended, and begins the next run after a completed one.

        Raises:
            AssertionError: a process ended without an error message, or with more than one line.
        """
        if self.teacher.process.poll() is not None:
            wait_for(self._teacher_starts, "the teacher's start")
        if self.student.poll() is None:
            return
        _, err = self.student.communicate(timeout=LONG_S)
        if self.student.returncode == 0:
            self._complete_run()
            self._begin_run()
            return
        if not self._killed:
            *_, line = without_waiting(err)
            assert line.startswith("student train: error: "), line
            self.errors.append(f"{self.student.returncode}: {line}")
        self._start_student()

    def check(self) -> None:
        """Checks that the teacher answers again and that no answer was lost.

        Raises:
            AssertionError: an answer was lost or changed.
        """
        wait_for(self._answers, "an answer")
        self.ledger.check(set(self.prober.acknowledged))

    def finish(self) -> None:
        """Waits until the student completes its run."""
        before = self.completed_runs

        def completed() -> bool:
            self.restart_ended()
            return self.completed_runs > before

        wait_for(completed, "the end of the run", 2 * LONG_S)

    def close(self) -> None:
        """Ends all processes and unmounts the disks."""
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
            self.errors.append(lines[0])
            time.sleep(0.5)
            return False
        return True

    def _answers(self) -> bool:
        self.restart_ended()
        before = len(self.prober.acknowledged)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if len(self.prober.acknowledged) > before:
                return True
            time.sleep(0.05)
        return False

    def _begin_run(self) -> None:
        self._seed += 1
        # The result of an undisturbed student, and the pictures that it asks about
        reference = self._reference(self._seed)
        command = ["train", *_TRAINING, "--seed", str(self._seed), "--out", str(reference)]
        subprocess.run(
            [_STUDENT, *command, "--teacher", self._planner.url],
            check=True,
            stdout=subprocess.DEVNULL,
            env=environment_without("STUDENT_"),
        )
        self.ledger.add_run(reference)
        self._start_student()

    def _complete_run(self) -> None:
        assert_same_end(self._reference(self._seed), self.run)
        self.completed_runs += 1
        shutil.rmtree(self.run)

    def _reference(self, seed: int) -> Path:
        return self._undisturbed / f"seed-{seed}"

    def _start_student(self) -> None:
        self._killed = False
        self.student = subprocess.Popen(
            [
                *(_STUDENT, "train", "--go-on", *_TRAINING, "--seed", str(self._seed)),
                *("--out", str(self.run), "--teacher", self.teacher.url),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment_without("STUDENT_") | self.clock.env,
        )

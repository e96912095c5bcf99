"""Starts `teacher serve` as a process of its own, which ends with the process that started it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from teacher_api.client import TeacherError
from teacher_api.terminal import Waiting

COMPACT = Path(__file__).parents[1] / "checkpoints" / "compact"
"""The checkpoint in the repository: a Qwen2.5-VL of 2.8 million parameters."""
COMPACT_FLAGS = {
    "teacher": "prompted",
    "engine": "onnx",
    "model": str(COMPACT),
    "prompts": "compact",
}
"""The flags of `teacher serve` that serve COMPACT on the CPU."""
_SERVE = """import sys
from teacher_api.processes import end_with_stdin
end_with_stdin()
from teacher_server.__main__ import main
sys.exit(main())"""


class TeacherDidNotStart(TeacherError):
    """A teacher process ended before it listened; the message is the last line of its log."""


class TeacherProcess:
    """A `teacher serve` in a session of its own.

    Ctrl-C does not reach it: questions in hand can still be answered. When this process ends, even by
    SIGKILL, the teacher's standard input closes and the teacher ends.

    Attributes:
        process: the process.
    """

    def __init__(
        self, flags: Sequence[str], *, log: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """Starts the process; `url` waits for it.

        Args:
            flags: of `teacher serve`; without --port, any free port.
            log: the file that stderr is appended to; None: this process's stderr.
            env: the environment; None: this process's.
        """
        self._log = log
        with log.open("ab") if log else nullcontext() as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, "serve", "--port=0", *flags],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                encoding="utf-8",
                env=env,
                start_new_session=True,
            )
        self._greeting: Future[str] = Future()
        threading.Thread(target=self._read, name="teacher's stdout", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _read(self) -> None:
        """Reads stdout to its end, so that the pipe never fills up."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "listening on " in line and not self._greeting.done():
                self._greeting.set_result(line)
        if not self._greeting.done():
            self._greeting.set_result("")

    @property
    def greeting(self) -> str:
        """The line on stdout that names the address and the teacher; waits for it.

        Raises:
            TeacherDidNotStart: the process ended.
        """
        if line := self._greeting.result():
            return line
        self.process.wait()
        lines = self._log.read_text(encoding="utf-8").splitlines() if self._log else []
        said = [line.strip() for line in lines if line.strip()]
        raise TeacherDidNotStart(said[-1] if said else "the teacher did not start")

    @property
    def url(self) -> str:
        """The address; waits until the teacher listens, as `greeting` does."""
        return self.greeting.split("listening on ")[1].split()[0]

    def end(self, within_s: float = 60.0) -> int:
        """Stops the teacher by SIGTERM, and by SIGKILL after so many seconds; returns its exit code."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(within_s)
        with suppress(ProcessLookupError):  # an engine may have left processes behind
            os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait()


def end_with_stdin() -> None:
    """Has this process get SIGTERM when its standard input closes."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="stdin", daemon=True).start()


def end_with_parent() -> None:
    """Has this process, started by `multiprocessing`, end at once when its parent's does, even by SIGKILL."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


@contextmanager
def served_teacher(
    store: Path | str,
    flags: Mapping[str, bool | int | float | str] | None = None,
    log: Path | None = None,
) -> Iterator[str]:
    """Serves a teacher for students on this machine; yields its address.

    The flags alone configure the teacher: TEACHER_* variables are withheld. It calculates in one thread,
    unless OMP_NUM_THREADS is set, because the students need the other cores.

    Args:
        store: the answer store: a file, or the address of a database.
        flags: of `teacher serve`, such as {"noise": 0.3}.
        log: the file for stderr; None: this process's stderr.

    Raises:
        TeacherDidNotStart: the process ended before it listened.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("TEACHER_")}
    env.setdefault("OMP_NUM_THREADS", "1")
    with TeacherProcess([f"--store={store}", *_arguments(flags or {})], log=log, env=env) as teacher:
        starting = Waiting("the new teacher")
        with starting.for_it(slow=True):
            url = teacher.url
        starting.came()
        yield url


def _arguments(flags: Mapping[str, bool | int | float | str]) -> list[str]:
    return [
        (f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool) else f"--{flag}={value}"
        for flag, value in flags.items()
    ]

"""Embedded teachers: `teacher serve` as a process that ends with the one that started it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from teacher_api.client import TeacherError
from teacher_api.terminal import Waiting

COMPACT = Path(__file__).parents[1] / "checkpoints" / "compact"
"""The checkpoint that the repository ships with: a Qwen2.5-VL of 2.8 million parameters."""
COMPACT_FLAGS = {
    "teacher": "prompted",
    "engine": "transformers",
    "device": "cpu",
    "model": str(COMPACT),
    "prompts": "compact",
}
"""Of the `teacher serve` that asks it in two stages, on the CPU."""
_KEEPER = '"$@" & teacher=$!; exec > /dev/null; cat; kill $teacher 2> /dev/null; wait $teacher'
"""Runs the teacher until standard input is closed, which the kernel does for a starter that is killed."""


class TeacherDidNotStart(TeacherError):
    """What a teacher said instead of starting."""


@contextmanager
def served_teacher(
    store: Path, flags: Mapping[str, bool | int | float | str] | None = None, log: Path | None = None
) -> Iterator[str]:
    """A teacher's address while it is served by a process of its own, on any free port.

    TEACHER_* variables do not reach it: the flags alone say what it is. It calculates in one thread, because
    the students beside it need the other cores; OMP_NUM_THREADS says otherwise.

    Args:
        store: its answer store.
        flags: of `teacher serve`, such as {"noise": 0.3}.
        log: where it writes what it has to say; None: to stderr.

    Raises:
        TeacherDidNotStart: the last line that it wrote.
    """
    serve = [sys.executable, "-m", "teacher_server", "serve", "--port=0", f"--store={store}"]
    command = ["sh", "-c", _KEEPER, "teacher", *serve, *_arguments(flags or {})]
    env = {name: value for name, value in os.environ.items() if not name.startswith("TEACHER_")}
    env.setdefault("OMP_NUM_THREADS", "1")
    with (
        log.open("wb") if log else nullcontext() as stderr,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=env,
            start_new_session=True,  # Ctrl-C is for the students: they still need it to stop in good order
            encoding="utf-8",
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            starting = Waiting("the teacher, which is being started")
            with starting.for_it(slow=True):
                address = re.search(r"http://\S+", process.stdout.readline())
            if address is None:
                said = log.read_text(encoding="utf-8").splitlines() if log else []
                raise TeacherDidNotStart(said[-1] if said else "the teacher did not start")
            starting.came()
            yield address.group()
        finally:
            process.stdin.close()


def _arguments(flags: Mapping[str, bool | int | float | str]) -> list[str]:
    return [
        (f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool) else f"--{flag}={value}"
        for flag, value in flags.items()
    ]

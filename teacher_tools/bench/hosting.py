"""Teachers for the time of a run: processes of their own, on free ports."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from teacher_api.client import in_words
from teacher_api.command_line import CannotStart
from teacher_api.processes import TeacherDidNotStart, TeacherProcess
from teacher_api.terminal import Waiting

_LOAD_S = 1200.0
"""Loading a checkpoint may take so long."""


@contextmanager
def served(flags: Sequence[str]) -> Iterator[Callable[[], str]]:
    """Serves a teacher with these flags on any free port, for the time of the block.

    Several that are entered one after the other load side by side.

    Yields:
        A function that waits until the teacher can answer and returns its address. It raises CannotStart if
        the process ends.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "stderr.txt")
        with TeacherProcess([*flags, "--port=0"], log=log) as teacher:

            def url() -> str:
                try:
                    address = teacher.url
                    wait_until_ready(address, _LOAD_S, lambda: teacher.process.poll() is None)
                    if teacher.process.poll() is not None:
                        raise TeacherDidNotStart(log.read_text(encoding="utf-8").strip().splitlines()[-1])
                except TeacherDidNotStart as error:
                    raise CannotStart(f"`teacher serve {' '.join(flags)}` did not start: {error}") from error
                return address

            yield url


def wait_until_ready(url: str, within_s: float, lives: Callable[[], bool] = lambda: True) -> None:
    """Returns once a teacher can answer, or when it lives no more.

    Raises:
        CannotStart: it is not ready within so many seconds.
    """
    deadline, waiting = time.monotonic() + within_s, Waiting(f"the teacher at {url}")
    with waiting.for_it(within_s):
        while lives():
            try:
                reply = httpx.get(f"{url}/readyz", timeout=10, trust_env=False)
            except httpx.TransportError as error:
                waiting.failed(in_words(error))
            else:
                if reply.status_code == httpx.codes.OK:
                    break
                waiting.failed(f"{reply.status_code}: it is not ready to answer")
            if time.monotonic() > deadline:
                raise CannotStart(f"{url} is not ready to answer after {within_s:g} s; raise `wait_s`")
            time.sleep(0.2)
    waiting.came()

"""Teachers for the time of a run: processes of their own, on free ports."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import httpx

from teacher_api.client import in_words
from teacher_api.command_line import CannotStart
from teacher_api.terminal import Waiting

_LOAD_S = 1200.0
"""Loading a checkpoint may take so long."""
_END_S = 60.0


@contextmanager
def served(flags: Sequence[str]) -> Iterator[Callable[[], str]]:
    """A `teacher serve` with these flags, on any free port, that ends with the block.

    Several that are entered one after the other load side by side.

    Yields:
        What waits until it can answer, and gives its address; it raises CannotStart where the process ends.
    """
    command = [sys.executable, "-m", "teacher_server", "serve", *flags, "--port", "0"]
    with (
        tempfile.TemporaryFile("w+") as log,
        # A session of its own: Ctrl-C ends the questions first, then us, then the teacher
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            encoding="utf-8",
        ) as process,
    ):

        def url() -> str:
            assert process.stdout is not None
            greeting = process.stdout.readline()
            if "listening on " in greeting:
                address = greeting.split("listening on ")[1].split()[0]
                wait_until_ready(address, _LOAD_S, lambda: process.poll() is None)
                if process.poll() is None:
                    return address
            process.wait()
            log.seek(0)
            said = [line for line in log.read().splitlines() if line.strip()] or ["it said nothing"]
            raise CannotStart(f"`teacher serve {' '.join(flags)}` did not start: {said[-1].strip()}")

        try:
            yield url
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            with suppress(ProcessLookupError):  # what an engine may have left behind
                os.killpg(process.pid, signal.SIGKILL)


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
                raise CannotStart(f"{url} is not ready to answer after {within_s:g} s; --wait-s waits longer")
            time.sleep(0.2)
    waiting.came()

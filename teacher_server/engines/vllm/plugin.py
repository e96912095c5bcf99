"""The vLLM plugin of this package: adapts the processes of our own engine, and no others.

vLLM calls `adapt` in every process of every engine in the environment. `adapt` returns at once unless
`VllmEngine` started the process. This module imports next to nothing.
"""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress

from teacher_server.engines.exceptions import words_of

VARIABLE = "LVLM2P_ENGINE"
"""Set only for the processes that `VllmEngine` starts: path of the file for their failures, one a line."""
_UNINFORMATIVE = ("Engine core initialization failed", "WorkerProc initialization failed")
"""Beginnings of vLLM's errors about a failed process; they do not say why it failed."""


def adapt() -> None:
    """Makes vLLM's waiting loops sleep on CPUs, and records why a process fails to start.

    On CPUs vLLM's processes wait for each other in a loop of `sched_yield`. Beside this loop, on two cores
    under Linux 6.18, a program that only slept 50 ms at a time stood still for up to 18.7 s; why yielding
    does that is not known. A sleep of 0 s gives up the core for about a tenth of a millisecond instead.
    """
    if VARIABLE not in os.environ:
        return
    import vllm.distributed.utils  # noqa: PLC0415
    from vllm.platforms import current_platform  # noqa: PLC0415

    if current_platform.is_cpu():
        vllm.distributed.utils.USE_SCHED_YIELD = False
    logging.getLogger("vllm").addHandler(_Failures(logging.ERROR))


class _Failures(logging.Handler):
    """Appends the message of each exception that vLLM logs to the file, while the file exists."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info and record.exc_info[1]
        if not error:
            return
        with suppress(OSError, KeyError):
            file = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND)
            try:
                os.write(file, f"{words_of(error)}\n".encode())
            finally:
                os.close(file)


def cause_of(error: Exception, failures: Sequence[str]) -> str:
    """Returns why an engine did not start.

    Args:
        error: raised by vLLM; if a process of the engine failed, it does not say why.
        failures: messages recorded by the engine's processes.
    """
    message = words_of(error)
    for words in (message, *failures):
        if not words.startswith(_UNINFORMATIVE):
            return words
    return f"one of its processes ended without a message, as when memory runs out ({message})"

"""What vLLM does otherwise in a teacher's processes: it waits asleep, and writes down why it cannot start.

vLLM calls `adapt` in every process of every engine of the environment. It imports next to nothing, and does
something in those alone that `teacher serve` has started.
"""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress

from teacher_server.engines.exceptions import words_of

VARIABLE = "LVLM2P_ENGINE"
"""Set in a teacher's processes: the file that takes why an engine cannot start, a line for each failure."""
_SAY_NOTHING = ("Engine core initialization failed", "WorkerProc initialization failed")
"""How the errors begin that vLLM raises where a process of an engine has failed."""


def adapt() -> None:
    """Lets other programs run beside vLLM's processes on CPUs, and notes their failures.

    They wait for each other in a loop of `sched_yield`. Beside it, on two cores under Linux 6.18, a program
    that only slept 50 ms at a time stood still for up to 18.7 s; why yielding does that is not known.
    A sleep of 0 s leaves the core instead, for about a tenth of a millisecond.
    """
    if VARIABLE not in os.environ:
        return
    import vllm.distributed.utils  # noqa: PLC0415
    from vllm.platforms import current_platform  # noqa: PLC0415

    if current_platform.is_cpu():
        vllm.distributed.utils.USE_SCHED_YIELD = False
    logging.getLogger("vllm").addHandler(_Failures(logging.ERROR))


class _Failures(logging.Handler):
    """Writes what each exception says that vLLM logs to a file, for as long as that is there."""

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
    """Why an engine did not start.

    Args:
        error: that vLLM raised; where a process of the engine has failed, it does not say why.
        failures: what was noted meanwhile.
    """
    said = words_of(error)
    for words in (said, *failures):
        if not words.startswith(_SAY_NOTHING):
            return words
    return f"a process of it ended without a word, as where memory runs out ({said})"

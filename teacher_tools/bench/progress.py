"""Progress on stderr: one rewritten line on a terminal, elsewhere a line for each load and now and then."""

import sys
import time
from typing import TextIO

from teacher_api.terminal import columns
from teacher_tools.bench.measuring import Round

_REWRITE_EVERY_S = 0.2
_LINE_EVERY_S = 10.0


class BenchProgress:
    """Shows which round is running and how many of its questions are answered.

    Args:
        rounds: of all teachers, loads and passes.
        several: whether more than one teacher is measured.
    """

    def __init__(self, rounds: int, *, several: bool, stream: TextIO | None = None) -> None:
        self._rounds, self._several, self._stream = rounds, several, stream or sys.stderr
        self._rewrites = self._stream.isatty()
        self._started = 0
        self._round: Round | None = None
        self._written = 0.0

    def write(self, text: str) -> None:
        """Writes a line of text."""
        text = text[: columns() - 1] if self._rewrites else text  # a wrapped line cannot be rewritten
        self._stream.write(f"\r\033[K{text}" if self._rewrites else f"teacher bench: {text}\n")
        self._stream.flush()
        self._written = time.monotonic()

    def round_started(self, round_: Round) -> None:
        """Shows the round; without a terminal, only the first of its load."""
        self._started += 1
        new_load = self._round is None or self._round.load != round_.load
        self._round = round_
        if self._rewrites or new_load:
            self.write(self._line(round_) if self._rewrites else f"{round_.load}")

    def answered(self) -> None:
        """Updates the line now and then."""
        every_s = _REWRITE_EVERY_S if self._rewrites else _LINE_EVERY_S
        if self._round and time.monotonic() - self._written > every_s:
            self.write(self._line(self._round))

    def close(self) -> None:
        """Clears the rewritten line."""
        if self._rewrites:
            self._stream.write("\r\033[K")
            self._stream.flush()

    def _line(self, round_: Round) -> str:
        name = f"{round_.target}, " if self._several else ""
        total = round_.uncounted + round_.questions
        line = f"{self._started}/{self._rounds} {name}{round_.load}, {round_.pass_}"
        line += f": {min(len(round_.samples), total)}/{total}"
        if round_.samples:
            line += f", last {round_.samples[-1].latency_ms:.0f} ms"
        failed = sum(not sample.reply.answered for sample in round_.samples)
        return line + (f", {failed} failed" if failed else "")

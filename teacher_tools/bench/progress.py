"""How far a run is: a line on stderr, rewritten on a terminal, elsewhere one a load and now and then."""

import sys
import time
from typing import TextIO

from teacher_api.terminal import columns
from teacher_tools.bench.measuring import Block

_EVERY_S = 0.2
_LINE_EVERY_S = 10.0


class Progress:
    """Shows what is being asked.

    Args:
        blocks: rounds of all points and passes there will be.
        several: whether more than one teacher takes turns.
    """

    def __init__(self, blocks: int, *, several: bool, stream: TextIO | None = None) -> None:
        self._blocks, self._several, self._stream = blocks, several, stream or sys.stderr
        self._rewrites = self._stream.isatty()
        self._begun = 0
        self._block: Block | None = None
        self._written = 0.0

    def says(self, text: str) -> None:
        """A line of its own kind, for what comes before the asking."""
        text = text[: columns() - 1] if self._rewrites else text  # what wraps is not written over
        self._stream.write(f"\r\033[K{text}" if self._rewrites else f"teacher bench: {text}\n")
        self._stream.flush()
        self._written = time.monotonic()

    def begins(self, block: Block) -> None:
        self._begun += 1
        new = self._block is None or self._block.load != block.load
        self._block = block
        if self._rewrites or new:
            self.says(self._line(block) if self._rewrites else f"{block.load}")

    def advances(self) -> None:
        every_s = _EVERY_S if self._rewrites else _LINE_EVERY_S
        if self._block and time.monotonic() - self._written > every_s:
            self.says(self._line(self._block))

    def close(self) -> None:
        """Leaves an empty line to go on with."""
        if self._rewrites:
            self._stream.write("\r\033[K")
            self._stream.flush()

    def _line(self, block: Block) -> str:
        who = f"{block.target}, " if self._several else ""
        total = block.ahead + block.questions
        told = f"{self._begun}/{self._blocks} {who}{block.load}, {block.pass_}"
        told += f": {min(len(block.samples), total)}/{total}"
        if block.samples:
            told += f", last {block.samples[-1].latency_ms:.0f} ms"
        failed = sum(not sample.reply.answered for sample in block.samples)
        return told + (f", {failed} failed" if failed else "")

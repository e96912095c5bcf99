"""How far a run is: a line on stderr, rewritten on a terminal, a new one for each round elsewhere."""

import sys
import time
from typing import TextIO

from teacher_server.bench.measuring import Block

_EVERY_S = 0.2


class Progress:
    """Shows what is being asked.

    Args:
        blocks: rounds of all points and passes there will be.
        several: whether more than one teacher takes turns.
    """

    def __init__(self, blocks: int, *, several: bool, stream: TextIO = sys.stderr) -> None:
        self._blocks, self._several, self._stream = blocks, several, stream
        self._rewrites = stream.isatty()
        self._begun = 0
        self._block: Block | None = None
        self._written = 0.0

    def drawing(self, questions: int) -> None:
        if self._rewrites:
            self._write(f"{self._begun}/{self._blocks} drawing {questions} pictures")

    def begins(self, block: Block) -> None:
        self._begun += 1
        self._block = block
        self._write(self._line(block))

    def advances(self) -> None:
        if self._rewrites and self._block and time.monotonic() - self._written > _EVERY_S:
            self._write(self._line(self._block))

    def close(self) -> None:
        """Leaves an empty line to go on with."""
        if self._rewrites:
            self._stream.write("\r\033[K")
            self._stream.flush()

    def _line(self, block: Block) -> str:
        who = f"{block.target}, " if self._several else ""
        told = f"{self._begun}/{self._blocks} {who}{block.load}, {block.pass_}"
        total = block.ahead + block.questions
        if not self._rewrites:
            return f"{told}: {total} questions"
        done = min(len(block.samples), total)
        if not done:
            return f"{told}: 0/{total}"
        last = block.samples[-1]
        failed = sum(not sample.reply.answered for sample in block.samples)
        return f"{told}: {done}/{total}, last {last.latency_ms:.0f} ms" + (
            f", {failed} failed" if failed else ""
        )

    def _write(self, text: str) -> None:
        self._stream.write(f"\r\033[K{text}" if self._rewrites else f"teacher bench: {text}\n")
        self._stream.flush()
        self._written = time.monotonic()

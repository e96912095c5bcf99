"""Blocks of lessons, one after the other: made in this process, or ahead by workers."""

import itertools
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from teacher_server.checkpoints.checkpoint import read_checkpoint
from teacher_server.prompting.prompt_set import load_prompt_set
from teacher_tools.train.conversation import Lesson, LessonWriter
from teacher_tools.train.samples import Sampler

_AHEAD = 2
"""Blocks a worker that are made before they are asked for."""


@dataclass(frozen=True)
class School:
    """What decides all lessons.

    Attributes:
        checkpoint: the folder whose tokenizer and chat template they are written with.
        prompts: the prompt set's name or folder.
        env_ids, task, seed: of the samples.
        size: lessons in a block.
    """

    checkpoint: Path
    prompts: str
    env_ids: tuple[str, ...]
    task: str | None
    seed: int
    size: int

    def block(self, number: int) -> list[Lesson]:
        """The lessons of a block: the same ones whenever and wherever they are made."""
        sampler, writer = _desk(self)
        return [writer.lesson(sample) for sample in sampler.block(number, self.size)]

    def blocks(self, first: int, workers: int) -> Iterator[list[Lesson]]:
        """The blocks from a number on, without end.

        Args:
            workers: processes that make them; with 0 this one does.
        """
        numbers = itertools.count(first)
        if workers == 0:
            yield from map(self.block, numbers)
        # Not forked: the process that trains has threads
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=_leave_signals_alone) as pool:
            coming = deque[Future[list[Lesson]]]()
            try:
                for number in numbers:
                    coming.append(pool.submit(self.block, number))
                    if len(coming) > _AHEAD * workers:
                        yield coming.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)


@lru_cache(maxsize=1)
def _desk(school: School) -> tuple[Sampler, LessonWriter]:
    checkpoint = read_checkpoint(school.checkpoint, weights=False)
    writer = LessonWriter(checkpoint, load_prompt_set(school.prompts))
    return Sampler(school.env_ids, school.seed, school.task), writer


def _leave_signals_alone() -> None:
    """Ctrl-C reaches all processes of a terminal; the one that trains says when there is an end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""A run: every point of load, cold and warm, round by round, the teachers in turn."""

import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal, Protocol

import numpy as np

from teacher_api.schemas import Question
from teacher_tools.bench.loops import (
    Sample,
    Window,
    closed_loop,
    closed_window,
    open_loop,
    open_window,
    poisson_arrivals,
    whole,
)
from teacher_tools.bench.targets import Target

Pass = Literal["cold", "warm"]
"""Cold: questions asked for the first time; warm: the same ones again."""


@dataclass(frozen=True)
class Load:
    """A point: so many askers (closed loop), or so many arrivals a second (open loop)."""

    kind: Literal["concurrency", "rate"]
    value: float

    @property
    def askers(self) -> int:
        """How many wait for an answer before they ask again; none of an open loop does."""
        return int(self.value) if self.kind == "concurrency" else 1

    def __str__(self) -> str:
        return f"{self.value:g} at once" if self.kind == "concurrency" else f"{self.value:g}/s"


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        questions: counted in a round, at least; `warm_up` come before them and are not.
        seconds: after which a round ends, questions left or not.
    """

    loads: Sequence[Load]
    questions: int
    warm_up: int
    rounds: int
    warm: bool
    seed: int
    seconds: float | None = None

    def ahead(self, load: Load) -> int:
        """Questions of a round that come before the counted ones: each asker has been answered once."""
        return max(self.warm_up, load.askers) if load.kind == "concurrency" else self.warm_up

    def counted(self, load: Load) -> int:
        """Questions of a round that count: as many for each asker, since answers may come in waves."""
        return math.ceil(self.questions / load.askers) * load.askers

    def asked(self, load: Load) -> int:
        """Questions of a round; a closed loop's other askers go on until the last that counts is answered."""
        return self.ahead(load) + self.counted(load) + load.askers - 1

    @property
    def blocks(self) -> int:
        """Rounds of all points and passes, for one teacher."""
        return len(self.loads) * self.rounds * (2 if self.warm else 1)

    @property
    def different(self) -> int:
        """Questions asked for the first time, of one teacher."""
        return sum(self.asked(load) for load in self.loads) * self.rounds


@dataclass
class Block:
    """One round of one teacher at one point and pass.

    Attributes:
        ahead: questions that are not counted; `questions` that are come after them.
        seconds: after which it ends, questions left or not.
    """

    target: str
    load: Load
    pass_: Pass
    round: int
    ahead: int
    questions: int
    seconds: float | None
    samples: list[Sample] = field(default_factory=list)

    @property
    def window(self) -> Window:
        """What of it counts; of an interrupted one, what there is."""
        if self.load.kind == "concurrency":
            askers = self.load.askers
            return closed_window(self.samples, self.ahead, self.questions, self.seconds, askers=askers)
        return open_window(self.samples, self.ahead)

    def enough(self) -> bool:
        """Whether all that counts was answered, or the time is over."""
        if len(self.samples) < max(self.ahead, 1) or self.seconds is None:
            return len(self.samples) >= self.ahead + self.questions
        began = self.samples[max(self.ahead, 1) - 1].reply.ended
        return time.perf_counter() - began > self.seconds or len(self.samples) >= self.ahead + self.questions


class Watcher(Protocol):
    """Told what goes on."""

    def begins(self, block: Block) -> None: ...

    def advances(self) -> None: ...


async def measure(
    plan: Plan,
    targets: Mapping[str, Target],
    questions: Sequence[Question],
    blocks: list[Block],
    watcher: Watcher,
) -> None:
    """Measures all points and closes the targets; in cold passes no question is asked twice.

    Args:
        targets: by name; they take turns within each round, in an order drawn anew.
        questions: `plan.different` for each target, no two of them equal.
        blocks: what is measured is added here as it comes, so that an interruption loses none of it.
    """
    if len(questions) < plan.different * len(targets):
        raise ValueError(f"{len(questions)} questions are too few")
    async with AsyncExitStack() as stack:
        for target in targets.values():
            stack.push_async_callback(target.close)
        await _measure(plan, targets, iter(questions), blocks, watcher)


async def _measure(
    plan: Plan,
    targets: Mapping[str, Target],
    questions: Iterator[Question],
    blocks: list[Block],
    watcher: Watcher,
) -> None:
    order = random.Random(plan.seed)
    arrivals = np.random.default_rng(plan.seed)
    for load in plan.loads:
        for number in range(plan.rounds):
            for name in order.sample(list(targets), len(targets)):
                asked = list(islice(questions, plan.asked(load)))
                cold = Block(name, load, "cold", number, plan.ahead(load), plan.counted(load), plan.seconds)
                blocks.append(cold)
                await _ask(cold, targets[name], asked, arrivals, watcher)
                answered = {sample.number for sample in cold.samples if sample.reply.answered}
                again = [question for i, question in enumerate(asked) if i in answered]
                if plan.warm and again:
                    ahead = min(cold.ahead, len(again) - 1)
                    counted = min(plan.counted(load), whole(len(again) - ahead, load.askers))
                    warm = replace(cold, pass_="warm", ahead=ahead, questions=counted, samples=[])  # noqa: S106 - no password
                    blocks.append(warm)
                    await _ask(warm, targets[name], again, arrivals, watcher)


async def _ask(
    block: Block,
    target: Target,
    questions: Sequence[Question],
    arrivals: np.random.Generator,
    watcher: Watcher,
) -> None:
    """Asks a block's questions; what was sent beyond those that count is waited for."""
    asks = [target.asker(question) for question in questions]
    watcher.begins(block)

    def on_sample(sample: Sample) -> None:
        block.samples.append(sample)
        watcher.advances()

    if block.load.kind == "concurrency":
        await closed_loop(asks, block.load.askers, block.enough, on_sample)
        return
    at = poisson_arrivals(block.load.value, block.ahead + block.questions, arrivals)
    if block.seconds is not None:
        end = (at[block.ahead - 1] if block.ahead else 0.0) + block.seconds
        at = [each for each in at if each <= end]
    await open_loop(asks[: len(at)], at, on_sample)

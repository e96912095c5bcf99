"""A measurement: every load, cold and warm, round by round, with the teachers taking turns."""

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
    whole_waves,
)
from teacher_tools.bench.targets import Target

Pass = Literal["cold", "warm"]
"""Cold: questions that are sent for the first time. Warm: the same questions again."""


@dataclass(frozen=True)
class Load:
    """A number of concurrent clients (closed loop), or a rate of arrivals a second (open loop)."""

    kind: Literal["concurrency", "rate"]
    value: float

    @property
    def clients(self) -> int:
        """The clients that wait for an answer before they send again; 1 for an open loop."""
        return int(self.value) if self.kind == "concurrency" else 1

    def __str__(self) -> str:
        return f"{self.value:g} at once" if self.kind == "concurrency" else f"{self.value:g}/s"


@dataclass(frozen=True)
class BenchPlan:
    """What is measured.

    Attributes:
        questions: counted in a round, at least.
        warm_up: questions before the counted ones.
        seconds: the time after which a round ends, even with questions left.
    """

    loads: Sequence[Load]
    questions: int
    warm_up: int
    rounds: int
    warm: bool
    seed: int
    seconds: float | None = None

    def uncounted(self, load: Load) -> int:
        """Returns the questions before the counted ones: at least one for each concurrent client."""
        return max(self.warm_up, load.clients) if load.kind == "concurrency" else self.warm_up

    def counted(self, load: Load) -> int:
        """Returns the counted questions of a round: equally many for each client, for full waves."""
        return math.ceil(self.questions / load.clients) * load.clients

    def asked(self, load: Load) -> int:
        """Returns all questions of a round; other clients go on until the last counted one is answered."""
        return self.uncounted(load) + self.counted(load) + load.clients - 1

    @property
    def rounds_per_teacher(self) -> int:
        """Rounds of all loads and passes, for one teacher."""
        return len(self.loads) * self.rounds * (2 if self.warm else 1)

    @property
    def different(self) -> int:
        """Different questions for one teacher."""
        return sum(self.asked(load) for load in self.loads) * self.rounds


@dataclass
class Round:
    """One round of one teacher at one load and pass.

    Attributes:
        uncounted: warm-up questions; the counted `questions` come after them.
        seconds: the time after which the round ends, even with questions left.
    """

    target: str
    load: Load
    pass_: Pass
    number: int
    uncounted: int
    questions: int
    seconds: float | None
    samples: list[Sample] = field(default_factory=list)

    @property
    def window(self) -> Window:
        """The counted samples; of an interrupted round, those so far."""
        if self.load.kind == "concurrency":
            clients = self.load.clients
            return closed_window(self.samples, self.uncounted, self.questions, self.seconds, clients=clients)
        return open_window(self.samples, self.uncounted)

    def enough(self) -> bool:
        """Returns whether all counted questions are answered or the time is over."""
        if len(self.samples) < max(self.uncounted, 1) or self.seconds is None:
            return len(self.samples) >= self.uncounted + self.questions
        began = self.samples[max(self.uncounted, 1) - 1].reply.ended
        overtime = time.perf_counter() - began > self.seconds
        return overtime or len(self.samples) >= self.uncounted + self.questions


class Listener(Protocol):
    """Is called while a measurement runs."""

    def round_started(self, round_: Round) -> None: ...

    def answered(self) -> None: ...


async def measure(
    plan: BenchPlan,
    targets: Mapping[str, Target],
    questions: Sequence[Question],
    rounds: list[Round],
    listener: Listener,
) -> None:
    """Measures all loads, then closes the targets; cold passes send no question twice.

    Args:
        targets: by name; they take turns within each round, in random order.
        questions: `plan.different` for each target, all different.
        rounds: receives each round as it starts, so that an interruption loses no samples.
    """
    if len(questions) < plan.different * len(targets):
        raise ValueError(f"{len(questions)} questions are too few")
    async with AsyncExitStack() as stack:
        for target in targets.values():
            stack.push_async_callback(target.close)
        await _measure(plan, targets, iter(questions), rounds, listener)


async def _measure(
    plan: BenchPlan,
    targets: Mapping[str, Target],
    questions: Iterator[Question],
    rounds: list[Round],
    listener: Listener,
) -> None:
    order = random.Random(plan.seed)
    arrivals = np.random.default_rng(plan.seed)
    for load in plan.loads:
        uncounted, counted = plan.uncounted(load), plan.counted(load)
        for number in range(plan.rounds):
            for name in order.sample(list(targets), len(targets)):
                asked = list(islice(questions, plan.asked(load)))
                cold = Round(name, load, "cold", number, uncounted, counted, plan.seconds)
                rounds.append(cold)
                await _run(cold, targets[name], asked, arrivals, listener)
                answered = {sample.number for sample in cold.samples if sample.reply.answered}
                again = [question for i, question in enumerate(asked) if i in answered]
                if plan.warm and again:
                    before = min(uncounted, len(again) - 1)
                    after = min(counted, whole_waves(len(again) - before, load.clients))
                    warm = replace(cold, pass_="warm", uncounted=before, questions=after, samples=[])  # noqa: S106 - no password
                    rounds.append(warm)
                    await _run(warm, targets[name], again, arrivals, listener)


async def _run(
    round_: Round,
    target: Target,
    questions: Sequence[Question],
    arrivals: np.random.Generator,
    listener: Listener,
) -> None:
    """Sends a round's questions; waits for every reply, including uncounted ones."""
    requests = [target.prepare(question) for question in questions]
    listener.round_started(round_)

    def on_sample(sample: Sample) -> None:
        round_.samples.append(sample)
        listener.answered()

    if round_.load.kind == "concurrency":
        await closed_loop(requests, round_.load.clients, round_.enough, on_sample)
        return
    at = poisson_arrivals(round_.load.value, round_.uncounted + round_.questions, arrivals)
    if round_.seconds is not None:
        end = (at[round_.uncounted - 1] if round_.uncounted else 0.0) + round_.seconds
        at = [each for each in at if each <= end]
    await open_loop(requests[: len(at)], at, on_sample)

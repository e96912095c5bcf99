"""Simulates students that share teachers: how long they take, how long they wait, what is asked.

    python benchmarks/sizing.py record    # about ten minutes: trains eight students, twice
    python benchmarks/sizing.py table --answers-per-second 75
    python benchmarks/sizing.py check     # about ten minutes: the simulation beside three measured points

A discrete-event simulation (SimPy). A student is a recorded run: in each update it acts and learns for as
long as it did then, asks about the states that it met for the first time then, and waits for the answers. A
replica answers `places` questions at once, each in the same time, and has a queue. All replicas share a
store, so a question is asked once; whoever asks while it is in hand waits for that answer.

There can be more students than recorded runs. Each takes the run of one of them, but states that were met by
this run alone are replaced by random ones out of all rare states. How many rare states there are, met or not,
is estimated with Chao's estimator for incidences, f1 + (m - 1) / m * f1^2 / (2 * f2): f1 and f2 states were
met by one and by two of m runs (Chao 1987, https://doi.org/10.2307/2531532).
"""

import argparse
import itertools
import math
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import simpy

from student.labels.asking import TOGETHER
from student.runs.folder import Run
from teacher_api.processes import served_teacher

_FRAMES = 8192
"""Frames of a recorded run: those in which the teacher is asked, and as many again."""
_POINTS = ((1, 1), (2, 1), (4, 1), (8, 2))
"""Students and teachers of the measured points."""
_DELAY_S, _PLACES = 0.4, 8
"""A teacher of the measured points: slow, so that two cores are enough for all processes."""
_STORED_S = 0.005
"""Seconds until a request about stored answers is answered."""


@dataclass(frozen=True)
class Update:
    """One update of a recorded run: its seconds without waiting, and the states met for the first time."""

    seconds: float
    states: tuple[Hashable, ...]


Trace = Sequence[Update]


@dataclass
class Outcome:
    """What a simulation yields.

    Attributes:
        seconds: for each student, from the start to the end of its run.
        waited: for each student, the seconds that it waited for answers.
        asked: when each question reached a replica, in seconds from the start.
        wanted: when each student wanted an answer that it did not have.
    """

    seconds: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    wanted: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Fleet:
    """Replicas that share a store.

    Attributes:
        places: questions that a replica answers at once.
        question_s: seconds that each of them takes.
        cores: cores that the students share; None: one for each student.
    """

    replicas: int
    places: int
    question_s: float
    cores: int | None = None


def simulate(students: Sequence[Trace], fleet: Fleet) -> Outcome:
    """Returns what becomes of students that all start at once."""
    env, outcome = simpy.Environment(), Outcome()
    replicas = [simpy.Resource(env, fleet.places) for _ in range(fleet.replicas)]
    cores = simpy.Resource(env, fleet.cores or len(students))
    answers: dict[Hashable, Any] = {}

    def answer(state: Hashable, replica: Any) -> Generator[Any, Any, None]:
        with replica.request() as place:
            yield place
            outcome.asked.append(env.now)
            yield env.timeout(fleet.question_s)
        answers[state].succeed()

    def request(states: Sequence[Hashable]) -> Generator[Any, Any, None]:
        replica = min(replicas, key=lambda each: each.count + len(each.queue))
        for state in states:
            if state not in answers:
                answers[state] = env.event()
                env.process(answer(state, replica))
        yield env.timeout(_STORED_S) & env.all_of([answers[state] for state in states])

    def student(trace: Trace) -> Generator[Any, Any, None]:
        waited = 0.0
        for update in trace:
            with cores.request() as core:
                yield core
                yield env.timeout(update.seconds)
            if update.states:
                began = env.now
                outcome.wanted.extend([began] * len(update.states))
                parts = range(0, len(update.states), TOGETHER)
                yield env.all_of([env.process(request(update.states[i : i + TOGETHER])) for i in parts])
                waited += env.now - began
        outcome.seconds.append(env.now)
        outcome.waited.append(waited)

    for trace in students:
        env.process(student(trace))
    env.run()
    return outcome


def read_trace(folder: Path) -> Trace:
    """Returns the updates of a finished run that was trained with `--log-every 1`.

    States are compared by their keys, so the runs must be of one environment with one mission.
    """
    run = Run.open(folder)
    keys = [key.numpy().tobytes() for key in run.load_checkpoint()["labels"]["keys"]]
    updates, frames, met = [], 0, 0
    for row in run.metrics():
        states = int(row["states"])  # type: ignore[typeddict-item]
        updates.append(Update((row["frames"] - frames) / row["frames_per_second"], tuple(keys[met:states])))
        frames, met = row["frames"], states
    return updates


def many(traces: Sequence[Trace], students: int, rng: random.Random) -> Iterator[Trace]:
    """Yields the traces of any number of students."""
    met_by = Counter(state for trace in traces for update in trace for state in update.states)
    f1, f2 = (sum(runs == number for runs in met_by.values()) for number in (1, 2))
    m = len(traces)
    rare = f1 + math.ceil((m - 1) / m * f1**2 / (2 * f2)) if f2 else f1
    for i in range(students):
        trace = traces[i % m]
        alone = sum(met_by[state] == 1 for update in trace for state in update.states)
        others = iter(rng.sample(range(rare), alone))
        yield [
            Update(
                update.seconds,
                tuple(next(others) if met_by[state] == 1 else state for state in update.states),
            )
            for update in trace
        ]


def main() -> None:
    """Runs one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=["record", "table", "check"])
    parser.add_argument(
        "--env", default="MiniGrid-LavaGapS7-v0", metavar="ID", help="an environment with one mission"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/sizing"), help="the recorded students")
    parser.add_argument("--answers-per-second", type=float, default=75, help="table: of a replica")
    parser.add_argument("--places", type=int, default=64, help="table: questions that it answers at once")
    arguments = parser.parse_args()
    runs = arguments.runs / arguments.env
    if arguments.command == "record":
        _record(arguments.env, runs)
        return
    folders = sorted(runs.glob("seed-*"))
    if len(folders) < 2:
        parser.error(f"{runs} holds no recorded students: use `record` first")
    traces = [read_trace(folder) for folder in folders]
    if arguments.command == "table":
        _table(traces, arguments.places, arguments.places / arguments.answers_per_second)
    else:
        _check(arguments.env, traces)


def _train(env_id: str, url: str, seed: int, out: Path) -> None:
    command = [sys.executable, "-m", "student", "train", f"--env={env_id}", f"--teacher={url}"]
    command += [f"--seed={seed}", f"--frames={_FRAMES}", f"--out={out}", "--log-every=1", "--threads=1"]
    subprocess.run([*command, f"--evaluate-every={_FRAMES}", "--no-progress"], check=True, stdout=sys.stderr)


def _record(env_id: str, runs: Path) -> None:
    """Trains the students twice: the second time, each question is stored already."""
    with tempfile.TemporaryDirectory() as folder, served_teacher(Path(folder, "answers.sqlite3")) as url:
        for out in (Path(folder), runs):
            for seed in range(1, 9):
                _train(env_id, url, seed, out / f"seed-{seed}")


def _table(traces: Sequence[Trace], places: int, question_s: float) -> None:
    """Prints how students fare for each number of them and of replicas."""
    alone = statistics.fmean(sum(update.seconds for update in trace) for trace in traces)
    print(f"a student without waiting: {alone:.0f} s; a replica: {places / question_s:.0f} answers/s")
    print(f"{'students':>8}{'replicas':>9}{'s, mean':>9}{'waited':>8}{'asked':>9}{'found':>7}{'busy':>6}")
    for students in (1, 10, 100, 1000):
        for replicas in (1, 4, 16, 64):
            crowd = list(many(traces, students, random.Random(1)))
            made = simulate(crowd, Fleet(replicas, places, question_s))
            mean, waited = statistics.fmean(made.seconds), statistics.fmean(made.waited)
            busy = len(made.asked) * question_s / (replicas * places * max(made.seconds))
            print(
                f"{students:8}{replicas:9}{mean:9.1f}{waited / mean:8.2f}{len(made.asked):9,}"
                f"{1 - len(made.asked) / len(made.wanted):7.2f}{busy:6.2f}",
                flush=True,
            )


def _check(env_id: str, traces: Sequence[Trace]) -> None:
    """Prints the simulation beside measurements with students that were not recorded."""
    print(
        f"{'students':>8}{'teachers':>9}{'s':>8}{'simulated':>11}{'ratio':>7}{'asked':>8}{'simulated':>11}{'ratio':>7}"
    )
    for students, teachers in _POINTS:
        crowd = list(many(traces, students, random.Random(1)))
        made = simulate(crowd, Fleet(teachers, _PLACES, _DELAY_S, cores=2))
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            flags = {"delay-ms": _DELAY_S * 1000, "concurrency": _PLACES}
            urls = [
                stack.enter_context(served_teacher(Path(folder, "answers.sqlite3"), flags))
                for _ in range(teachers)
            ]
            seeds = range(101, 101 + students)
            outs = [Path(folder, f"seed-{seed}") for seed in seeds]
            with ThreadPoolExecutor(students) as pool:
                list(pool.map(_train, itertools.repeat(env_id), itertools.cycle(urls), seeds, outs))
            seconds = statistics.fmean(sum(update.seconds for update in read_trace(out)) for out in outs)
            with closing(sqlite3.connect(Path(folder, "answers.sqlite3"))) as database:
                (asked,) = database.execute("SELECT count(*) FROM answers").fetchone()
        simulated = statistics.fmean(made.seconds)
        print(
            f"{students:8}{teachers:9}{seconds:8.1f}{simulated:11.1f}{simulated / seconds:7.2f}"
            f"{asked:8}{len(made.asked):11}{len(made.asked) / asked:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

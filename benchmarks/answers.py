"""Measures how fast the service gives stored and fresh answers: a planner pinned to one core.

Run `python benchmarks/answers.py`; with --out FILE it writes the results as JSON too.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path

import gymnasium
import httpx
import minigrid  # noqa: F401  (registers the environments)

from gridworld.pictures import draw, encode_png
from gridworld.tasks import task_of
from gridworld.views import view_of
from teacher_api.client import TeacherClient
from teacher_api.processes import TeacherProcess
from teacher_api.schemas import Answer, Question

ENV_IDS = (
    "MiniGrid-LavaGapS7-v0",
    "MiniGrid-Dynamic-Obstacles-8x8-v0",
    "MiniGrid-Fetch-8x8-N3-v0",
    "MiniGrid-GoToDoor-8x8-v0",
)


def main() -> None:
    """Runs the benchmark and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--questions", type=int, default=2000, help="distinct questions (default: 2000)")
    parser.add_argument("--batch", type=int, default=64, help="questions in a batch (default: 64)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="passes over the questions; the median counts (default: 5)"
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    arguments = parser.parse_args()

    server_core, client_core = _cores()
    questions = list(islice(_questions(), arguments.questions))
    with (
        tempfile.TemporaryDirectory() as folder,
        _teacher(Path(folder), server_core) as url,
        TeacherClient(url, batch_size=arguments.batch) as client,
        httpx.Client(base_url=url, trust_env=False) as http,
    ):
        if client_core is not None:
            os.sched_setaffinity(0, {client_core})
        client.ask(questions[0])  # the first picture of a size takes the planner 1 to 3 seconds
        fresh_s = _seconds(lambda: _all_answered(client, questions[1:], stored=False))
        rounds_s = [
            _seconds(lambda: _all_answered(client, questions, stored=True)) for _ in range(arguments.rounds)
        ]
        stored_ms = _milliseconds(client.ask, questions)
        floor_ms = _milliseconds(lambda _: http.get("/livez").raise_for_status(), questions)
    n = len(questions)
    results = {
        "stored, questions/s in batches": n / statistics.median(rounds_s),
        "fresh, questions/s in batches": (n - 1) / fresh_s,
        "stored, median ms of a single one": statistics.median(stored_ms),
        "stored, p99 ms of a single one": statistics.quantiles(stored_ms, n=100)[98],
        "/livez, median ms": statistics.median(floor_ms),
    }
    pictures_kb = sum(len(question.image) for question in questions) / n / 1000
    print(f"{n} questions, {pictures_kb:.1f} kB of base64 each, batches of {arguments.batch}")
    print(f"teacher on core {server_core}, client on core {client_core}")
    for name, value in results.items():
        print(f"{name:36} {value:10.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _questions() -> Iterator[Question]:
    """Yields distinct questions about real pictures, from the four tasks in turn."""
    seen = set()
    environments = [(gymnasium.make(env_id), task_of(env_id)) for env_id in ENV_IDS]
    for seed in count():
        for env, task in environments:
            env.reset(seed=seed)
            for _ in range(4):  # LavaGap has few first states: look in each direction
                picture = encode_png(draw(view_of(env)))
                mission: str = env.unwrapped.mission  # type: ignore[attr-defined]
                if (picture, mission) not in seen:
                    seen.add((picture, mission))
                    yield Question.about(picture, mission=mission, task=task.key, actions=task.useful)
                env.unwrapped.agent_dir = (env.unwrapped.agent_dir + 1) % 4  # type: ignore[attr-defined]


def _cores() -> tuple[int | None, int | None]:
    """Returns a core for the teacher and one for the client; None where the system cannot pin processes."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    cores = sorted(os.sched_getaffinity(0))
    return cores[0], cores[-1]


@contextmanager
def _teacher(folder: Path, core: int | None) -> Iterator[str]:
    with TeacherProcess([f"--store={folder / 'answers.sqlite3'}"]) as teacher:
        url = teacher.url  # waits: only the event loop's thread is pinned, not the threads of the start
        if core is not None:
            os.sched_setaffinity(teacher.process.pid, {core})
        yield url


def _all_answered(client: TeacherClient, questions: Sequence[Question], *, stored: bool) -> None:
    outcomes = client.ask_batch(questions)
    assert all(isinstance(outcome, Answer) and outcome.stored == stored for outcome in outcomes)


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _milliseconds(ask: Callable[[Question], object], questions: Sequence[Question]) -> list[float]:
    took = []
    for question in questions:
        began = time.perf_counter()
        ask(question)
        took.append((time.perf_counter() - began) * 1000)
    return took


if __name__ == "__main__":
    main()

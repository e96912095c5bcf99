"""Measures stored answers: from an SQLite file, from PostgreSQL, and from PostgreSQL by way of memory.

    python benchmarks/stores.py --postgres postgresql://teacher@127.0.0.1/empty

Each store gets its own planner and the same answers. The teachers are asked in turn, in batches of 64 and one
question at a time; PostgreSQL without memory fetches each answer from the database each time. A ratio is to
SQLite in the same round, and the table shows the median over the rounds. The database has to be empty;
afterwards it holds the answers.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from teacher_api.client import TeacherClient
from teacher_api.processes import served_teacher
from teacher_api.schemas import Answer, Question
from teacher_tools.bench.questions import distinct_questions

_BATCH = 64


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--postgres", required=True, metavar="URL", help="the address of an empty database")
    parser.add_argument("--questions", type=int, default=2048, help="stored answers (default: 2048)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default: 7)")
    arguments = parser.parse_args()
    questions = distinct_questions(arguments.questions, seed=1)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stores = {
            "SQLite": (Path(folder, "answers.sqlite3"), {}),
            "PostgreSQL, memory": (arguments.postgres, {}),
            "PostgreSQL": (arguments.postgres, {"store-memory-mib": 0}),
        }
        clients = {}
        for name, (store, flags) in stores.items():
            url = stack.enter_context(served_teacher(store, flags))
            clients[name] = stack.enter_context(TeacherClient(url, deadline_s=60, batch_size=_BATCH))
            clients[name].ask_batch(questions)
        rates: dict[str, list[float]] = {name: [] for name in clients}
        singles: dict[str, list[float]] = {name: [] for name in clients}
        for _ in range(arguments.rounds):
            for name, client in clients.items():
                rates[name].append(_rate(client, questions))
                singles[name].append(_single_ms(client, questions[:200]))
    print(f"{'':20}{'answers/s':>11}{'ratio':>8}{'one, ms':>10}{'ratio':>8}")
    for name in clients:
        faster = _median_ratio(rates[name], rates["SQLite"])
        slower = _median_ratio(singles[name], singles["SQLite"])
        print(
            f"{name:20}{statistics.median(rates[name]):11.0f}{faster:8.2f}"
            f"{statistics.median(singles[name]):10.2f}{slower:8.2f}"
        )


def _rate(client: TeacherClient, questions: list[Question]) -> float:
    began = time.perf_counter()
    answers = client.ask_batch(questions)
    seconds = time.perf_counter() - began
    assert all(isinstance(answer, Answer) and answer.stored for answer in answers)
    return len(questions) / seconds


def _single_ms(client: TeacherClient, questions: list[Question]) -> float:
    times = []
    for question in questions:
        began = time.perf_counter()
        client.ask(question)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def _median_ratio(values: list[float], to: list[float]) -> float:
    return statistics.median(value / other for value, other in zip(values, to, strict=True))


if __name__ == "__main__":
    main()

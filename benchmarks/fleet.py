"""Measures how the answers of a fleet grow with its replicas, beside what they would be without any loss.

    ray start --head --num-cpus 8 --disable-usage-stats
    python benchmarks/fleet.py --ray auto

The teacher is a planner that takes 200 ms for a question and answers 8 at once, so that a replica gives 40
answers a second at most. At 1, 2 and 4 replicas, distinct questions are asked in batches of 8, three batches
at a time for each replica. There is no store. All runs on this machine, so its processors are a limit too.
"""

import argparse
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from teacher_api.client import TeacherClient
from teacher_api.schemas import Answer
from teacher_tools.bench.questions import distinct_questions

_DELAY_S, _PLACES = 0.2, 8
_WARM_UP_S = 3.0


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ray", default="auto", metavar="ADDRESS", help="the Ray cluster (default: auto)")
    parser.add_argument("--port", default=8123, type=int, help="where the fleet listens (default: 8123)")
    parser.add_argument("--seconds", default=15.0, type=float, help="of each measurement (default: 15)")
    arguments = parser.parse_args()
    print(f"{'replicas':>8}{'answers/s':>11}{'ideal':>8}{'share':>7}", flush=True)
    for replicas in (1, 2, 4):
        _fleet(
            *("deploy", f"--ray={arguments.ray}", f"--port={arguments.port}", f"--min-replicas={replicas}"),
            *(f"--delay-ms={_DELAY_S * 1000:g}", f"--concurrency={_PLACES}", "--store=none"),
        )
        ideal = replicas * _PLACES / _DELAY_S
        rate = _rate(f"http://127.0.0.1:{arguments.port}", 3 * replicas, ideal, arguments.seconds)
        print(f"{replicas:8}{rate:11.1f}{ideal:8.0f}{rate / ideal:7.2f}", flush=True)
    _fleet("delete", f"--ray={arguments.ray}")


def _fleet(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "teacher_tools", "fleet", *arguments], check=True, stdout=sys.stderr
    )


def _rate(url: str, threads: int, ideal: float, seconds: float) -> float:
    """Returns the answers per second."""
    left = deque(distinct_questions(int(ideal * (seconds + _WARM_UP_S) * 1.2), seed=1))
    stop, answered = threading.Event(), list[float]()

    def ask() -> None:
        with TeacherClient(url, deadline_s=60) as client:
            while not stop.is_set():
                batch = [left.popleft() for _ in range(_PLACES)]
                assert all(isinstance(answer, Answer) for answer in client.ask_batch(batch))
                answered.extend([time.perf_counter()] * len(batch))

    with ThreadPoolExecutor(threads) as pool:
        asking = [pool.submit(ask) for _ in range(threads)]
        time.sleep(_WARM_UP_S)
        began = time.perf_counter()
        time.sleep(seconds)
        ended = time.perf_counter()
        stop.set()
    for each in asking:
        each.result()
    return sum(began < at <= ended for at in answered) / (ended - began)


if __name__ == "__main__":
    main()

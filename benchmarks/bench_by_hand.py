"""Compares `teacher bench` with timing by hand, in alternate rounds with the same teacher on real vLLM.

By hand means what a user would write instead: threads that post one question after another with a plain httpx
client, the median of their times, and the number of answers within some seconds. `teacher bench` runs as
users run it. Both send different pictures of the same tasks. Run it as `python -m benchmarks.bench_by_hand`
where vLLM is installed; it makes a checkpoint with fewer than a million random parameters.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving import start_teacher
from teacher_api.schemas import Question
from teacher_server.prompting.prompt_set import load_prompt_set
from teacher_tools.bench.loops import Reply, Sample, Window
from teacher_tools.bench.questions import questions
from teacher_tools.bench.statistics import Ratio, ratios_of
from tools.random_checkpoint import make_checkpoint, shortened

_AHEAD_S = 3.0
"""The uncounted seconds at the start of each round by hand."""


def main() -> None:
    """Measures, prints a table, and writes the results to --out as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=12, help="rounds of each way (default: 12)")
    parser.add_argument("--seconds", type=float, default=12, help="seconds of a round (default: 12)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/bench_by_hand.json"))
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = make_checkpoint(folder / "tiny")
        prompts = shortened(load_prompt_set("minigrid"), folder / "prompts")
        flags = ["--model", str(model), "--prompts", str(prompts), "--dtype", "float32", "--eager"]
        flags += ["--max-model-len", "16384", "--kv-cache-gib", "1", "--min-label-mass", "0"]
        url = start_teacher(stack, *flags)()
        pictures = questions(seed=10**6)
        for concurrency in arguments.concurrency:
            found: dict[str, list[Window]] = {"bench": [], "hand": []}
            for number in range(arguments.rounds):
                for way in random.Random(number).sample(list(found), 2):
                    if way == "hand":
                        found[way].append(_by_hand(url, pictures, concurrency, arguments.seconds))
                    else:
                        seed = 100 * number + concurrency
                        found[way].append(_by_bench(url, folder, concurrency, arguments.seconds, seed))
                print(f"{concurrency} at once: round {number + 1} of {arguments.rounds}", file=sys.stderr)
            results[str(concurrency)] = _compare(found, concurrency)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"written to {arguments.out}")


def _by_hand(url: str, pictures: Iterator[Question], concurrency: int, seconds: float) -> Window:
    """Runs threads that send one question after another until the time is over."""
    bodies = iter([q.model_dump(mode="json") for q in islice(pictures, int(30 * (seconds + _AHEAD_S)))])
    times: list[tuple[float, float]] = []
    began = time.perf_counter() + _AHEAD_S
    end = began + seconds

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=300) as http:
            while time.perf_counter() < end:
                body = next(bodies)
                sent = time.perf_counter()
                http.post("/policy", json=body).raise_for_status()
                times.append((sent, time.perf_counter()))

    threads = [threading.Thread(target=ask) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = [(sent, ended) for sent, ended in times if began < ended <= end]
    return Window(
        [Sample(i, sent, sent, Reply("200", ended)) for i, (sent, ended) in enumerate(counted)], seconds
    )


def _by_bench(url: str, folder: Path, concurrency: int, seconds: float, seed: int) -> Window:
    """Returns the window that `teacher bench` reports."""
    out = folder / "bench"
    command = [sys.executable, "-m", "teacher_tools", "bench", url, "--concurrency", str(concurrency)]
    command += ["--seconds", str(seconds), "--questions", "300", "--no-warm", "--seed", str(seed)]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    (point,) = json.loads((out / "bench.json").read_text(encoding="utf-8"))["points"]
    latencies = [each["latency_ms"] / 1000 for each in point["samples"] if each["status"] == "200"]
    return Window([Sample(i, 0, 0, Reply("200", s)) for i, s in enumerate(latencies)], point["seconds"])


def _compare(found: dict[str, list[Window]], concurrency: int) -> dict[str, Any]:
    ratios = ratios_of(found["bench"], found["hand"])
    if ratios is None:
        raise SystemExit("too few questions were answered: raise --seconds or --rounds")
    print(f"\n{concurrency} at once {'questions':>13} {'p50 ms':>9} {'answers/s':>10}")
    results: dict[str, Any] = {}
    for way, windows in found.items():
        latencies = sorted(sample.latency_ms for window in windows for sample in window.samples)
        rate = len(latencies) / sum(window.seconds for window in windows)
        results[way] = {
            "p50_ms": latencies[len(latencies) // 2],
            "answers_s": rate,
            "questions": len(latencies),
        }
        print(f"{way:<10} {len(latencies):>13} {results[way]['p50_ms']:>9.1f} {rate:>10.2f}")
    print(f"bench / hand: p50 {_as_text(ratios.p50)}, answers/s {_as_text(ratios.answered_per_s)}")
    return results | {"p50": vars(ratios.p50), "answers_s": vars(ratios.answered_per_s)}


def _as_text(ratio: Ratio) -> str:
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


if __name__ == "__main__":
    main()

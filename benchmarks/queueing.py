"""Compares the open loop of `teacher bench` with queueing theory, for a planner with a fixed delay.

The planner has one place. Arrivals are Poisson and all questions take the same time, so this is an M/D/1
queue: at utilisation rho and service time S, the mean wait is rho * S / (2 * (1 - rho)). S is measured at a
low rate: the delay plus the time for decoding and planning. On a busy machine service times grow and vary
under load, so the Pollaczek-Khinchine formula for the service times under load is given too:
lambda * E[S^2] / (2 * (1 - lambda * E[S])). Three waiting times are compared: the client's (its latency minus
that of an undisturbed question), the service's own, and that of the same arrivals at a server that takes
exactly S (Lindley's recursion). Each is a mean over seeds, with Student's 95 % interval. The mean wait of a
few hundred arrivals differs from the theoretical mean by chance; a comparison over the same arrivals does not
have this error. Run it as `python -m benchmarks.queueing`; it takes 20 minutes.
"""

import argparse
import asyncio
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from teacher_tools.bench.loops import Sample
from teacher_tools.bench.measuring import BenchPlan, Load, Round, measure
from teacher_tools.bench.progress import BenchProgress
from teacher_tools.bench.questions import distinct_questions
from teacher_tools.bench.targets import TeacherTarget
from teacher_tools.bench.teachers import served

_QUIET_RATE = 1.0
"""Questions a second that rarely overlap."""


def main() -> None:
    """Measures, prints a table, and writes the results to --out as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--delay-ms", type=float, default=100)
    parser.add_argument("--utilisation", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument(
        "--questions", type=int, default=300, help="questions of each seed at each utilisation"
    )
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/queueing.json"))
    arguments = parser.parse_args()
    flags = ["--delay-ms", str(arguments.delay_ms), "--concurrency", "1", "--store", "none"]
    with served(flags) as start:
        url = start()
        # The first measurement sets the rates; the reported utilisation uses the service time of all seeds
        _ask(url, [5.0], 20, seed=0)  # for its first picture the planner draws all tiles: 1 to 3 s
        service_s = _mean(_service_ms(_ask(url, [_QUIET_RATE], 12, seed=0)[0].samples)) / 1000
        rates = [rho / service_s for rho in arguments.utilisation]
        quiet, busy = [], []
        for seed in range(arguments.seeds):
            quiet += _ask(url, [_QUIET_RATE], 12, seed)
            busy.append(_ask(url, rates, arguments.questions, seed, warm_up=20))
    undisturbed = [sample for each in quiet for sample in each.samples]
    service_ms = _mean(_service_ms(undisturbed))
    alone_ms = _mean([sample.latency_ms - sample.reply.parts_ms["waiting"] for sample in undisturbed])
    print(
        f"delay {arguments.delay_ms:g} ms, service time {service_ms:.2f} ms (decoding and planning add"
        f" {service_ms - arguments.delay_ms:.2f} ms), latency of an undisturbed question {alone_ms:.2f} ms"
    )
    print(f"mean waiting time in ms over {arguments.seeds} seeds, {arguments.questions} questions each\n")
    points = []
    for rounds in zip(*busy, strict=True):
        points.append(_compare(rounds, service_ms, alone_ms))
        print(_lines(points[-1]))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results = {"service_ms": service_ms, "alone_ms": alone_ms, "points": points}
    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {arguments.out}")


def _ask(url: str, rates: Sequence[float], questions: int, seed: int, warm_up: int = 0) -> list[Round]:
    """Returns a round for each rate."""
    plan = BenchPlan(
        [Load("rate", rate) for rate in rates], questions, warm_up=20, rounds=1, warm=False, seed=seed
    )
    rounds: list[Round] = []
    progress = BenchProgress(len(rates), several=False)
    asked = distinct_questions(plan.different, seed)
    asyncio.run(measure(plan, {"planner": TeacherTarget(url, {}, timeout_s=300)}, asked, rounds, progress))
    failed = [s.reply.status for each in rounds for s in each.samples if not s.reply.answered]
    if failed:
        raise SystemExit(f"{len(failed)} questions were not answered: {failed[0]}")
    return rounds


def _compare(rounds: Sequence[Round], service_ms: float, alone_ms: float) -> dict[str, Any]:
    """Returns the waiting times at one rate over all seeds, and their theoretical values."""
    rho = rounds[0].load.value * service_ms / 1000
    theory = rho * service_ms / (2 * (1 - rho))
    counted = [each.window.samples for each in rounds]
    waits = {
        "client": [_mean([s.latency_ms for s in samples]) - alone_ms for samples in counted],
        "service": [_mean([s.reply.parts_ms["waiting"] for s in samples]) for samples in counted],
        "same arrivals": [_mean(_lindley(each, service_ms)) for each in rounds],
    }
    taken_ms = [taken for samples in counted for taken in _service_ms(samples)]
    per_ms = rounds[0].load.value / 1000
    return {
        "rate": rounds[0].load.value,
        "rho": rho,
        "theory": theory,
        "service_ms_then": _mean(taken_ms),
        "theory_then": per_ms * _mean([s * s for s in taken_ms]) / (2 * (1 - per_ms * _mean(taken_ms))),
        **{name: _interval(values) for name, values in waits.items()},
        "client of same arrivals": _mean(waits["client"]) / _mean(waits["same arrivals"]),
    }


def _lindley(round_: Round, service_ms: float) -> list[float]:
    """Returns the wait of each counted arrival with a constant service time: W' = max(0, W + S - gap)."""
    arrivals = sorted((sample.planned * 1000, sample.number) for sample in round_.samples)
    waits, wait, before = [], 0.0, arrivals[0][0] - service_ms
    for at, number in arrivals:
        wait = max(0.0, wait + service_ms - (at - before))
        before = at
        if number >= round_.uncounted:
            waits.append(wait)
    return waits


def _service_ms(samples: Sequence[Sample]) -> list[float]:
    """Returns how long each question occupies the service's place."""
    return [sample.reply.parts_ms["picture"] + sample.reply.parts_ms["teacher"] for sample in samples]


def _interval(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {"mean": _mean(values), "low": math.nan, "high": math.nan}
    low, high = stats.t.interval(0.95, len(values) - 1, loc=_mean(values), scale=stats.sem(values))
    return {"mean": _mean(values), "low": low, "high": high}


def _lines(found: dict[str, Any]) -> str:
    parts = [f"rho {found['rho']:.3f} ({found['rate']:.2f}/s): theory {found['theory']:.2f}"]
    for name in ("client", "service", "same arrivals"):
        of = found[name]
        ratio = of["mean"] / found["theory"]
        parts.append(f"{name} {of['mean']:.2f} ({of['low']:.2f} to {of['high']:.2f}), {ratio:.3f} of theory")
    parts.append(f"client / same arrivals {found['client of same arrivals']:.3f}")
    parts.append(
        f"service time under this load {found['service_ms_then']:.2f}: theory {found['theory_then']:.2f},"
        f" client {found['client']['mean'] / found['theory_then']:.3f} of it"
    )
    return "\n    ".join(parts)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


if __name__ == "__main__":
    main()

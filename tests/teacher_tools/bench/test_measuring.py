"""Measuring: when questions are sent, which of them count, their statistics, and the report."""

import asyncio
import io
import math
from collections.abc import Sequence
from itertools import islice, pairwise

import numpy as np
import pytest

from gridworld.tasks import TASKS
from teacher_tools.bench import questions as drawing
from teacher_tools.bench.loops import (
    Reply,
    Request,
    Sample,
    Window,
    closed_loop,
    closed_window,
    open_loop,
    open_window,
    poisson_arrivals,
)
from teacher_tools.bench.measuring import BenchPlan, Load, Pass, Round
from teacher_tools.bench.progress import BenchProgress
from teacher_tools.bench.questions import distinct_questions, questions
from teacher_tools.bench.report import as_json, as_markdown, report_of, warnings
from teacher_tools.bench.statistics import LatencyStatistics, point_statistics, ratios_of

pytestmark = pytest.mark.unit


def _sample(
    number: int, planned: float, ended: float, *, sent: float | None = None, **reply: object
) -> Sample:
    fields: dict[str, object] = {"status": "200"} | reply
    return Sample(number, planned, planned if sent is None else sent, Reply(ended=ended, **fields))  # type: ignore[arg-type]


def _window(latencies_ms: Sequence[float], seconds: float) -> Window:
    return Window([_sample(i, 0, ms / 1000) for i, ms in enumerate(latencies_ms)], seconds)


# When questions are sent


def test_poisson_arrivals_are_determined_by_the_seed() -> None:
    arrivals = poisson_arrivals(5, 100, np.random.default_rng(3))
    assert arrivals == poisson_arrivals(5, 100, np.random.default_rng(3))
    assert arrivals != poisson_arrivals(5, 100, np.random.default_rng(4))
    assert arrivals == sorted(arrivals)


def test_gaps_between_poisson_arrivals_are_exponential() -> None:
    number, rate = 20_000, 8.0
    gaps = np.diff([0, *poisson_arrivals(rate, number, np.random.default_rng(0))])
    assert gaps.mean() * rate == pytest.approx(1, abs=4 / math.sqrt(number))
    assert gaps.std() * rate == pytest.approx(1, abs=0.05)
    for share in (0.1, 0.5, 0.9):  # the quantiles of the exponential distribution
        assert np.quantile(gaps, share) * rate == pytest.approx(-math.log(1 - share), abs=0.04)


@pytest.mark.parametrize("rho", [0.5, 0.7])
def test_poisson_arrivals_queue_as_theory_says(rho: float) -> None:
    """M/D/1 with a service time of 1 s: the mean wait is rho / (2 (1 - rho)) seconds."""
    number = 400_000
    waits, wait = np.zeros(number), 0.0
    for i, gap in enumerate(np.diff(poisson_arrivals(rho, number, np.random.default_rng(1)))):
        wait = max(0.0, wait + 1 - gap)
        waits[i + 1] = wait
    assert waits.mean() == pytest.approx(rho / (2 * (1 - rho)), rel=0.03)


def test_an_open_loop_sends_without_waiting_for_answers() -> None:
    async def run() -> list[Sample]:
        samples: list[Sample] = []
        all_asked = asyncio.Event()
        waiting = 0

        async def ask() -> Reply:
            nonlocal waiting
            waiting += 1
            if waiting == 50:
                all_asked.set()
            await asyncio.wait_for(all_asked.wait(), 30)  # answers come after the last question
            return Reply("200", asyncio.get_running_loop().time())

        at = poisson_arrivals(1000, 50, np.random.default_rng(0))
        await open_loop([ask] * 50, at, samples.append)
        gaps = [b.planned - a.planned for a, b in pairwise(sorted(samples, key=lambda s: s.number))]
        assert gaps == pytest.approx(np.diff(at), abs=1e-6)
        return samples

    samples = asyncio.run(run())
    assert len(samples) == 50
    assert all(sample.sent >= sample.planned for sample in samples)


def test_latency_counts_from_the_planned_time() -> None:
    late = _sample(0, planned=10.0, sent=12.0, ended=12.5)
    assert late.latency_ms == pytest.approx(2500)
    assert late.late_ms == pytest.approx(2000)


@pytest.mark.parametrize("clients", [1, 3])
def test_a_closed_loop_keeps_all_clients_busy_until_enough_is_answered(clients: int) -> None:
    async def run() -> tuple[int, int, list[Sample]]:
        samples: list[Sample] = []
        at_once = most = asked = 0

        async def ask() -> Reply:
            nonlocal at_once, most, asked
            asked, at_once = asked + 1, at_once + 1
            most = max(most, at_once)
            await asyncio.sleep(0)
            at_once -= 1
            return Reply("200", 0.0)

        requests: list[Request] = [ask] * 100
        await closed_loop(requests, clients, lambda: len(samples) >= 20, samples.append)
        return most, asked, samples

    most, asked, samples = asyncio.run(run())
    assert most == clients
    assert asked == len(samples)
    assert 20 <= asked <= 20 + clients - 1
    assert sorted(sample.number for sample in samples) == list(range(asked))


# Which questions count


def test_a_closed_window_starts_when_the_warm_up_is_answered() -> None:
    samples = [_sample(i, planned=0, ended=float(i)) for i in range(1, 11)]
    window = closed_window(samples[::-1], 4, 5)
    assert [sample.reply.ended for sample in window.samples] == [5, 6, 7, 8, 9]
    assert window.seconds == 5.0


def test_a_closed_window_can_be_limited_in_time() -> None:
    samples = [_sample(i, planned=0, ended=float(i)) for i in range(1, 11)]
    assert [s.number for s in closed_window(samples, 2, 100, seconds=3.5).samples] == [3, 4, 5]
    assert closed_window(samples, 2, 100, seconds=0.5) == Window([], 0.0)
    assert closed_window(samples, 10, 5) == Window([], 0.0)


@pytest.mark.parametrize("questions", [1, 20, 64, 65, 200])
@pytest.mark.parametrize("together", [16, 64])
@pytest.mark.parametrize("seconds", [None, 47.0])
def test_answers_in_waves_give_the_true_rate(questions: int, together: int, seconds: float | None) -> None:
    plan = BenchPlan([], questions=questions, warm_up=8, rounds=1, warm=False, seed=0, seconds=seconds)
    load = Load("concurrency", 64)
    # `together` are computed at once in 8 seconds, for 64 clients
    samples = [_sample(i, planned=0, ended=8.0 * (1 + i // together)) for i in range(400)]
    asked = samples[: plan.asked(load)]
    window = Round(
        "teacher", load, "cold", 0, plan.uncounted(load), plan.counted(load), seconds, asked
    ).window
    assert len(window.samples) >= questions or seconds
    assert len(window.samples) / window.seconds == together / 8


def test_a_closed_window_without_warm_up_starts_with_the_first_question() -> None:
    samples = [_sample(0, planned=3, ended=5), _sample(1, planned=4, ended=7)]
    assert closed_window(samples, 0, 2).seconds == 4


def test_an_open_window_lasts_from_the_first_arrival_to_the_last_answer() -> None:
    samples = [_sample(0, 1, 20), _sample(2, 3, 4), _sample(1, 2, 9), _sample(3, 5, 6)]
    window = open_window(samples, 1)
    assert [sample.number for sample in window.samples] == [1, 2, 3]
    assert window.seconds == 7


def test_a_round_ends_after_its_seconds_or_its_questions() -> None:
    round_ = Round("teacher", Load("concurrency", 1), "cold", 0, uncounted=1, questions=2, seconds=None)
    round_.samples += [_sample(0, 0, 0), _sample(1, 0, 0)]
    assert not round_.enough()
    round_.seconds = 0.001  # time 0 of the clock is longer ago than that
    assert round_.enough()
    round_.seconds = None
    round_.samples.append(_sample(2, 0, 0))
    assert round_.enough()


def test_a_plan_counts_its_questions_and_rounds() -> None:
    loads = [Load("concurrency", 1), Load("concurrency", 16), Load("rate", 5)]
    plan = BenchPlan(loads, questions=20, warm_up=8, rounds=3, warm=True, seed=0)
    assert [plan.asked(load) for load in loads] == [8 + 20, 16 + 32 + 15, 8 + 20]
    assert plan.different == 3 * (28 + 63 + 28)
    assert plan.rounds_per_teacher == 3 * 3 * 2


# Statistics


def test_percentiles() -> None:
    assert LatencyStatistics.of(range(101)) == LatencyStatistics(
        mean=50, p50=50, p90=90, p95=95, p99=99, maximum=100
    )
    assert LatencyStatistics.of([3.0, 1.0]) == LatencyStatistics(
        mean=2, p50=2, p90=2.8, p95=2.9, p99=2.98, maximum=3
    )
    assert LatencyStatistics.of([]) is None


def test_goodput_counts_answers_within_the_target() -> None:
    samples = [_sample(i, 0, seconds) for i, seconds in enumerate((0.1, 0.2, 0.5, 0.9))]
    samples.append(_sample(4, 0, 0.1, status="503"))
    found = point_statistics([Window(samples, 2.0)], target_ms=500, planned=False)
    assert (found.asked, found.answered, found.errors) == (5, 4, {"503": 1})
    assert found.answered_per_s == 2
    assert found.good_per_s == 1.5
    assert found.latency_ms is not None
    assert found.latency_ms.maximum == pytest.approx(900)  # without the failed question


def test_tokens_parts_and_stored_answers() -> None:
    parts = {"waiting": 1.0, "total": 60.0}
    reply = {"parts_ms": parts, "tokens": {"analysis": 100, "action": 1}}
    fresh = [_sample(i, 0, 0.1, sent=0.02, **reply) for i in range(2)]
    stored = _sample(2, 0, 0.01, stored=True, parts_ms={"total": 4.0})
    found = point_statistics([Window([*fresh, stored], 0.5)], target_ms=1, planned=True)
    assert found.stored == 1
    assert found.tokens == pytest.approx({"analysis": 200 / 3, "action": 2 / 3})
    assert found.tokens_per_s == 404
    assert found.parts_ms["outside"].maximum == pytest.approx(20)  # 80 ms after sending, minus 60
    assert found.parts_ms["outside"].p50 == pytest.approx(20)
    assert found.late_ms is not None
    assert found.late_ms.maximum == pytest.approx(20)


def test_ratios_of_teachers_that_differ_by_a_known_factor() -> None:
    rng = np.random.default_rng(1)
    drifts = rng.uniform(1, 3, 10)  # a round may be up to three times slower, for both teachers
    rounds = [rng.lognormal(5, 0.2, 40) * drift for drift in drifts]
    first = [_window(latencies * 1.5, seconds=latencies.sum() * 1.5 / 1000) for latencies in rounds]
    other = [_window(latencies, seconds=latencies.sum() / 1000) for latencies in rounds]
    ratios = ratios_of(first, other)
    assert ratios is not None
    for ratio, expected in ((ratios.p50, 1.5), (ratios.answered_per_s, 1 / 1.5)):
        assert (ratio.value, ratio.low, ratio.high) == pytest.approx((expected,) * 3)  # the drift cancels


def test_intervals_of_ratios_have_their_coverage() -> None:
    rng = np.random.default_rng(2)
    runs, covered = 10, 0
    for _ in range(runs):
        first, other = (
            [_window(rng.normal(mean, 30, 20) + rng.normal(0, 10), seconds=1) for _ in range(10)]
            for mean in (240, 200)
        )
        ratios = ratios_of(first, other)
        assert ratios is not None
        assert ratios.p50.low < ratios.p50.value < ratios.p50.high
        covered += ratios.p50.low <= 1.2 <= ratios.p50.high
    assert covered >= 0.8 * runs  # nominally 0.95, but there are few rounds


def test_ratios_need_two_rounds_of_both_teachers() -> None:
    one, none = _window([1.0, 2.0], 1), Window([_sample(0, 0, 1, status="503")], 1)
    assert ratios_of([one], [one]) is None
    assert ratios_of([one, none], [one, one]) is None
    assert ratios_of([one, one], [one, one]) is not None


# Questions and reports


def test_questions_are_different_and_determined_by_the_seed() -> None:
    asked = distinct_questions(40, seed=3)
    assert asked == distinct_questions(40, seed=3)
    assert len({question.image for question in asked}) == 40
    assert [question.task for question in asked[:8]] == [*TASKS, *TASKS]
    assert {question.task for question in islice(questions(["go_to_object"]), 8)} == {"go_to_object"}
    other = distinct_questions(40, seed=4)
    assert len({question.image for question in asked + other}) > 70  # small grids: a few occur in both


def test_a_task_drops_out_when_its_pictures_are_exhausted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(drawing._ENV_IDS, "lava_gap", "MiniGrid-LavaGapS5-v0")
    asked = list(islice(questions(["lava_gap", "fetch"], seed=0), 150))
    assert len({question.image for question in asked}) == 150
    # Three positions of the gap, six free cells (with the gap), four headings
    assert [question.task for question in asked].count("lava_gap") == 3 * 6 * 4
    assert [question.task for question in asked[-6:]] == ["fetch"] * 6


_ABOUT = {"target_ms": 100, "machine": "a", "questions": 2, "task": ["fetch"], "seed": 1, "began": "now"}


def _report(rounds: Sequence[Round], *names: str, interrupted: bool = False) -> str:
    targets = {name: {"address": f"http://{name}"} for name in names}
    return as_markdown(report_of(rounds, about=_ABOUT, targets=targets, interrupted=interrupted))


def _round(target: str, number: int, latency_s: float, pass_: Pass = "cold", **reply: object) -> Round:
    samples = [_sample(i, i, i + latency_s, **reply) for i in range(3)]
    return Round(target, Load("concurrency", 1), pass_, number, 1, 2, None, samples)


def test_a_report_compares_the_first_teacher_to_the_others() -> None:
    rounds = [_round(name, i, s) for i in range(2) for name, s in (("vs", 0.2), ("teacher", 0.05))]
    targets = {name: {"address": f"http://{name}"} for name in ("teacher", "vs")}
    report = report_of(rounds, about=_ABOUT, targets=targets, interrupted=False)
    (comparison,) = report.comparisons
    assert comparison.other == "vs"
    assert comparison.ratios.p50.value == pytest.approx(0.25)
    assert [point.target for point in report.points] == ["teacher", "vs"]
    assert [point.statistics.good_per_s > 0 for point in report.points] == [True, False]
    ratio = as_json(report)["ratios"][0]
    assert (ratio["of"], ratio["to"], ratio["concurrency"], ratio["pass"]) == ("teacher", "vs", 1, "cold")
    assert "| vs | 1 at once | cold | 0.250 (0.250 to 0.250) |" in as_markdown(report)


def test_a_report_warns_of_misleading_numbers() -> None:
    known = _round("teacher", 0, 0.1, stored=True)
    refused = _round("teacher", 0, 0.1, pass_="warm", status="503")
    late = Round("teacher", Load("rate", 5), "cold", 0, 0, 1, None, [_sample(0, 0, 1, sent=0.5)])
    short = Round("teacher", Load("concurrency", 4), "cold", 0, 1, 4, 1.5, [_sample(0, 0, i) for i in (1, 2)])
    found = warnings(
        report_of([known, refused, late, short], about=_ABOUT, targets={"teacher": {}}, interrupted=False)
    )
    assert found == [
        "1 at once, cold: the store had answers to 2 of 2 questions: use another --seed, or a teacher with an"
        " empty store",
        "1 at once, warm: not answered: 2 x 503",
        "4 at once, cold: 1 of 1 rounds ended before each client had an answer: answers/s are unreliable;"
        " raise --seconds",
        "5/s, cold: 100% of the time was after the last arrivals, so answers/s are too low: raise"
        " --questions, or lower --rounds",
        "5/s, cold: the client itself was late by 500 ms (p99), which counts as latency",
    ]


def test_a_report_says_that_it_was_interrupted() -> None:
    assert "Interrupted" in _report([_round("teacher", 0, 0.1)], "teacher", interrupted=True)
    assert "Interrupted" not in _report([_round("teacher", 0, 0.1)], "teacher")
    started = Round("teacher", Load("rate", 5), "cold", 0, 8, 10, None, [_sample(0, 0, 1)])
    assert "5/s" not in _report([_round("teacher", 0, 0.1), started], "teacher", interrupted=True)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_rewrites_a_line_on_a_terminal_and_writes_few_lines_elsewhere() -> None:
    first, again = _round("teacher", 0, 0.05), _round("teacher", 1, 0.05, status="503")
    terminal, file = _Terminal(), io.StringIO()
    for stream in (terminal, file):
        progress = BenchProgress(4, several=False, stream=stream)
        progress.round_started(first)
        progress.round_started(again)
        progress.close()
    written = terminal.getvalue()
    assert "\n" not in written
    assert "1/4 1 at once, cold: 3/3, last 50 ms" in written
    assert "2/4 1 at once, cold: 3/3, last 50 ms, 3 failed" in written
    assert file.getvalue() == "teacher bench: 1 at once\n"

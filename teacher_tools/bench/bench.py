"""`teacher bench`: plans, measures, and writes the report."""

import asyncio
import importlib.metadata
import json
import math
import os
import platform
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from teacher_api.command_line import CannotStart, fail
from teacher_api.files import writing
from teacher_api.schemas import Question
from teacher_tools.bench.measuring import BenchPlan, Load, Round, measure
from teacher_tools.bench.progress import BenchProgress
from teacher_tools.bench.questions import questions
from teacher_tools.bench.report import Report, as_json, as_markdown, report_of
from teacher_tools.bench.settings import BenchSettings
from teacher_tools.bench.teachers import common_tasks, find_teachers


def main(settings: BenchSettings, serve_flags: list[str]) -> int:
    """Runs the command.

    Args:
        serve_flags: the flags of teachers that the command starts.

    Returns:
        0; 1 if no question was answered; 130 if interrupted.

    Raises:
        CannotStart: a setting or a teacher cannot be used.
    """
    seed = secrets.randbelow(2**31) if settings.seed is None else settings.seed
    if settings.out is not None:
        with writing("out", settings.out):
            settings.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        found = find_teachers(settings, serve_flags, stack)
        tasks = common_tasks(settings, found.values())
        targets = {name: each.target for name, each in found.items()}
        plan = _plan(settings, seed)
        about = _about(settings, plan, tasks)
        rounds: list[Round] = []
        progress = BenchProgress(plan.rounds_per_teacher * len(targets), several=len(targets) > 1)
        drawn = _draw(tasks, seed, plan.different * len(targets), progress)
        interrupted = False
        try:
            asyncio.run(measure(plan, targets, drawn, rounds, progress))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            progress.close()
    teachers = {name: target.about for name, target in targets.items()}
    report = report_of(rounds, about=about, targets=teachers, interrupted=interrupted)
    return _finish(report, settings.out)


def _draw(tasks: Sequence[str], seed: int, number: int, progress: BenchProgress) -> list[Question]:
    """Returns all questions, so that no picture is drawn during the measurement."""
    progress.write(f"drawing {number} pictures")
    drawn = list(islice(questions(tasks, seed), number))
    if len(drawn) < number:
        raise CannotStart(
            f"{number} different pictures are needed, but {', '.join(tasks)} have only about {len(drawn)}:"
            " reduce `questions`, measure fewer loads, or use more tasks"
        )
    return drawn


def _plan(settings: BenchSettings, seed: int) -> BenchPlan:
    rounds = settings.rounds or (10 if settings.several else 1)
    loads = [Load("concurrency", value) for value in settings.concurrency]
    loads += [Load("rate", value) for value in settings.rate]
    return BenchPlan(
        loads=loads,
        questions=math.ceil(settings.questions / rounds),
        warm_up=settings.warm_up,
        rounds=rounds,
        warm=settings.warm,
        seed=seed,
        seconds=settings.seconds,
    )


def _about(settings: BenchSettings, plan: BenchPlan, tasks: Sequence[str]) -> dict[str, Any]:
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"client on {os.cpu_count()} cores, {platform.machine()}",
        "lvlm2p": importlib.metadata.version("lvlm2p"),
        "questions": plan.questions * plan.rounds,
        "rounds": plan.rounds,
        "warm_up": plan.warm_up,
        "seconds": plan.seconds,
        "task": list(tasks),
        "seed": plan.seed,
        "target_ms": settings.target_ms,
        "timeout_s": settings.timeout_s,
    }


def _finish(report: Report, out: Path | None) -> int:
    """Prints and writes the report; returns the exit code."""
    answered = any(point.statistics.answered for point in report.points)
    print(as_markdown(report), end="")
    if out is not None:
        print(f"\nWritten: {', '.join(str(file) for file in _write(report, out, plots=answered))}")
    if report.interrupted:
        return fail(f"interrupted; the measurements so far are {f'in {out}' if out else 'above'}", 130)
    if not answered:
        return fail("no question was answered", 1)
    return 0


def _write(report: Report, out: Path, *, plots: bool) -> list[Path]:
    files = [out / "bench.json", out / "bench.md"]
    files[0].write_text(json.dumps(as_json(report), indent=1) + "\n", encoding="utf-8")
    text = as_markdown(report)
    if plots:
        from teacher_tools.bench.plots import draw_distribution, draw_latency  # noqa: PLC0415 - takes seconds

        drawn = {"latency.png": draw_latency, "distribution.png": draw_distribution}
        for name, draw in drawn.items():
            draw(report, out / name)
            text += f"\n![{name.removesuffix('.png')}]({name})\n"
            files.append(out / name)
    files[1].write_text(text, encoding="utf-8")
    return files

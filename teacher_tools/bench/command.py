"""The `teacher bench` command: plans, measures, and writes down what it found."""

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
from teacher_api.schemas import Question
from teacher_tools.bench.measuring import Block, Load, Plan, measure
from teacher_tools.bench.progress import Progress
from teacher_tools.bench.questions import questions
from teacher_tools.bench.report import Report, as_json, as_markdown, report_of
from teacher_tools.bench.settings import BenchSettings
from teacher_tools.bench.teachers import find_teachers, known_tasks


def main(settings: BenchSettings, serve_flags: list[str]) -> int:
    """Runs the command.

    Args:
        serve_flags: for teachers that it starts.

    Returns:
        0; 1 where not a single question was answered; 130 where it was interrupted.

    Raises:
        CannotStart: a setting or a teacher that cannot be used.
    """
    seed = secrets.randbelow(2**31) if settings.seed is None else settings.seed
    _make_folder(settings.out)
    with ExitStack() as stack:
        found = find_teachers(settings, serve_flags, stack)
        tasks = known_tasks(settings, list(found.values()))
        targets = {name: target for name, (target, _) in found.items()}
        plan = _plan(settings, seed)
        about = _about(settings, plan, tasks)
        blocks: list[Block] = []
        progress = Progress(plan.blocks * len(targets), several=len(targets) > 1)
        asked = _draw(tasks, seed, plan.different * len(targets), progress)
        interrupted = False
        try:
            asyncio.run(measure(plan, targets, asked, blocks, progress))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            progress.close()
    whos = {name: target.about for name, target in targets.items()}
    report = report_of(blocks, about=about, targets=whos, interrupted=interrupted)
    return _finish(report, settings.out)


def _draw(tasks: Sequence[str], seed: int, number: int, progress: Progress) -> list[Question]:
    """All questions there will be, so that nothing is drawn while teachers are asked."""
    progress.says(f"drawing {number} pictures")
    drawn = list(islice(questions(tasks, seed), number))
    if len(drawn) < number:
        raise CannotStart(
            f"{number} different pictures are needed, and there are about {len(drawn)} of {', '.join(tasks)}:"
            " ask fewer --questions, at fewer points, or about more tasks"
        )
    return drawn


def _plan(settings: BenchSettings, seed: int) -> Plan:
    rounds = settings.rounds or (10 if settings.several else 1)
    loads = [Load("concurrency", value) for value in settings.concurrency]
    loads += [Load("rate", value) for value in settings.rate]
    return Plan(
        loads=loads,
        questions=math.ceil(settings.questions / rounds),
        warm_up=settings.warm_up,
        rounds=rounds,
        warm=settings.warm,
        seed=seed,
        seconds=settings.seconds,
    )


def _about(settings: BenchSettings, plan: Plan, tasks: Sequence[str]) -> dict[str, Any]:
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"asked from {os.cpu_count()} cores, {platform.machine()}",
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


def _make_folder(out: Path | None) -> None:
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"--out: cannot write to {out}: {error.strerror or error}") from error


def _finish(report: Report, out: Path | None) -> int:
    """Prints and writes the report; returns the exit code."""
    answered = any(point.figures.answered for point in report.points)
    print(as_markdown(report), end="")
    if out is not None:
        print(f"\nWritten: {', '.join(str(file) for file in _write(report, out, plots=answered))}")
    if report.interrupted:
        kept = f"what was measured is in {out}" if out else "what was measured stands above"
        return fail(f"interrupted; {kept}", 130)
    if not answered:
        return fail("not a single question was answered", 1)
    return 0


def _write(report: Report, out: Path, *, plots: bool) -> list[Path]:
    files = [out / "bench.json", out / "bench.md"]
    files[0].write_text(json.dumps(as_json(report), indent=1) + "\n", encoding="utf-8")
    text = as_markdown(report)
    if plots:
        from teacher_tools.bench.plots import draw_distribution, draw_latency  # noqa: PLC0415 - seconds

        drawn = {"latency.png": draw_latency, "distribution.png": draw_distribution}
        for name, draw in drawn.items():
            draw(report, out / name)
            text += f"\n![{name.removesuffix('.png')}]({name})\n"
            files.append(out / name)
    files[1].write_text(text, encoding="utf-8")
    return files

"""`student report`: figures, tables and one page that needs nothing beside it, of a sweep or of any runs."""

import base64
import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from student.experiments.comparison import Comparison, named_arms
from student.experiments.figures import draw_ablations, draw_samples, draw_success, short
from student.experiments.plans import SWEEP_FILE
from student.experiments.results import BadSweep, Sweep, read_runs, read_sweep
from student.experiments.settings import ReportSettings
from student.experiments.tables import (
    curves_csv,
    final_csv,
    final_table,
    questions_csv,
    questions_table,
    settings_table,
    shared_settings,
    speed_up_table,
    speed_ups_csv,
    teachers_table,
)
from teacher_api.terminal import say

_PAGES = {"report.html", "report.md"}
_FIGURES = ("success.png", "samples.png", "ablations.png")
_FORMER = {"figure3.png", "figure4.png"}
"""Names of figures in reports of older versions."""
_TABLES = {"curves.csv", "speedups.csv", "final.csv", "questions.csv"}
_FOR_A_CLAIM = 10
"""Seeds; with fewer the page says that intervals are too narrow."""


def main(settings: ReportSettings) -> int:
    """Runs the command; returns 0."""
    out, notes = report(settings)
    for note in notes:
        say(f"note: {note}")
    print(f"Written: {out}/report.html, and its figures and tables beside it")
    return 0


def report(settings: ReportSettings) -> tuple[Path, list[str]]:
    """Writes the report, as a whole or not at all.

    Returns:
        The report's folder, and what could not be counted, a line each.

    Raises:
        BadSweep: there is no finished run, no such baseline, or no place to write to.
    """
    out = settings.out or _common_folder(settings.runs) / "report"
    _refuse_other_content(out)
    sweep = _read(settings)
    _write(out, _files(Comparison(sweep, settings.threshold, settings.resamples, settings.seed), settings))
    return out, sweep.notes


def _is_sweep(folders: Sequence[Path]) -> bool:
    return len(folders) == 1 and (folders[0] / SWEEP_FILE).is_file()


def _read(settings: ReportSettings) -> Sweep:
    folders = settings.runs
    sweep = read_sweep(folders[0]) if _is_sweep(folders) else read_runs(folders, named_arms)
    if settings.baseline is None:
        return sweep
    if settings.baseline not in sweep.plan.arms:
        raise BadSweep(
            f"--baseline {settings.baseline!r} is none of the arms; they are"
            f" {', '.join(map(repr, sweep.plan.arms))}"
        )
    return replace(sweep, plan=sweep.plan.model_copy(update={"baseline": settings.baseline}))


def _common_folder(folders: Sequence[Path]) -> Path:
    """The folder that is named, or the one that holds all that are named."""
    return folders[0] if len(folders) == 1 else Path(os.path.commonpath([each.resolve() for each in folders]))


def _files(comparison: Comparison, settings: ReportSettings) -> dict[str, bytes]:
    """Every file of the report by its name."""
    drawn = (draw_success(comparison), draw_samples(comparison), draw_ablations(comparison))
    figures = {name: png for name, png in zip(_FIGURES, drawn, strict=True) if png is not None}
    content = _content(comparison, settings)
    content |= {"figures": {name: base64.b64encode(png).decode() for name, png in figures.items()}}
    templates = Environment(
        loader=PackageLoader("student"),
        autoescape=lambda name: name == "report.html",  # noqa: S701 - the Markdown is text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages = {name: templates.get_template(name).render(content) for name in _PAGES}
    tables = {
        "curves.csv": curves_csv(comparison.sweep),
        "speedups.csv": speed_ups_csv(comparison),
        "final.csv": final_csv(comparison),
        "questions.csv": questions_csv(comparison),
    }
    return figures | {name: text.encode() for name, text in (pages | tables).items()}


def _content(comparison: Comparison, settings: ReportSettings) -> dict[str, Any]:
    """What the templates show."""
    sweep = comparison.sweep
    runs = [run for cell in sweep.cells() for run in sweep.runs[cell]]
    plan = sweep.plan
    versions = Counter(
        ", ".join(f"{name} {version}" for name, version in run.config.get("versions", {}).items())
        for run in runs
    )
    teachers = {
        run.identity: run.config["teacher"] for run in runs if run.identity and run.config.get("teacher")
    }
    return {
        "plan": plan,
        "algos": ", ".join(algo.upper() for algo in plan.algos),
        "envs": ", ".join(map(short, plan.envs)),
        "measure": comparison.measure,
        "settings": settings,
        "finished": len(runs),
        "planned": sweep.planned,
        "few_seeds": min(len(seeds) for seeds in sweep.runs.values()) < _FOR_A_CLAIM,
        "notes": sweep.notes,
        "speed_ups": speed_up_table(comparison),
        "finals": final_table(comparison),
        "questions": questions_table(comparison),
        "settings_table": settings_table(sweep),
        "shared": json.dumps(shared_settings(sweep), indent=2),
        "whole_plan": json.dumps(plan.model_dump(), indent=2) if _is_sweep(settings.runs) else None,
        "teachers": teachers_table(sweep),
        "identities": json.dumps(teachers, indent=2),
        "versions": dict(versions),
        "episodes": sorted({run.settings.get("evaluation_episodes", "unknown") for run in runs}, key=str),
        "commands": _commands(settings),
    }


def _commands(settings: ReportSettings) -> list[str]:
    """What repeats the sweep, if the runs are one's, and the report."""
    flags = ["--threshold", settings.threshold, "--resamples", settings.resamples, "--seed", settings.seed]
    if settings.baseline is not None:
        flags += ["--baseline", settings.baseline]
    sweep = [f"student sweep PLAN --out {settings.runs[0]}"] if _is_sweep(settings.runs) else []
    return [*sweep, shlex.join(["student", "report", *map(str, [*settings.runs, *flags])])]


def _refuse_other_content(out: Path) -> None:
    """A report may be replaced; anything else stays."""
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise BadSweep(f"{out} is no folder: choose another --out")
    others = sorted({path.name for path in out.iterdir()} - _PAGES - set(_FIGURES) - _TABLES - _FORMER)
    if others:
        raise BadSweep(
            f"{out} holds {others[0]}, and a report takes a folder of its own: choose another --out"
        )


def _write(out: Path, files: dict[str, bytes]) -> None:
    """Writes a folder beside its place, then moves it there."""
    part, old = (out.with_name(f".{out.name}.{what}-{os.getpid()}") for what in ("new", "old"))
    try:
        try:
            part.mkdir(parents=True)
            for name, content in files.items():
                (part / name).write_bytes(content)
            if out.exists():
                out.rename(old)
            part.rename(out)
        finally:
            if old.exists() and not out.exists():
                old.rename(out)
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise BadSweep(f"cannot write to {out}: {error.strerror}") from error

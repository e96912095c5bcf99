"""`student report`: compares the arms of a sweep, or of any runs, in figures, tables and a page."""

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

from student.experiments.comparison import HARM, ArmComparison, name_arms
from student.experiments.figures import draw_ablations, draw_samples, draw_success, short_env
from student.experiments.plans import SWEEP_FILE, as_stored
from student.experiments.results import BadSweep, Results, read_runs, read_sweep
from student.experiments.settings import ReportSettings
from student.experiments.tables import (
    curves_csv,
    final_csv,
    final_table,
    harm_csv,
    harm_tables,
    questions_csv,
    questions_table,
    settings_table,
    shared_settings,
    speed_up_table,
    speed_ups_csv,
    teachers_table,
)
from teacher_api.files import writing
from teacher_api.terminal import say

_PAGES = {"report.html", "report.md"}
_FIGURES = ("success.png", "samples.png", "ablations.png")
_FORMER = {"figure3.png", "figure4.png"}
"""Figures in reports of older versions."""
_TABLES = {"curves.csv", "speedups.csv", "final.csv", "harm.csv", "questions.csv"}
_SEEDS_FOR_A_CLAIM = 10
"""With fewer seeds the page says that intervals are too narrow."""


def main(settings: ReportSettings) -> int:
    """Runs the command; returns 0."""
    out, notes = report(settings)
    for note in notes:
        say(f"note: {note}")
    print(f"Wrote {out}/report.html, and its figures and tables in the same folder")
    return 0


def report(settings: ReportSettings) -> tuple[Path, list[str]]:
    """Writes the report as a whole, or leaves an older report unchanged.

    Returns:
        The report's folder, and the notes: what was left out and what limits the comparison.

    Raises:
        BadPlan: sweep.json cannot be read.
        BadSweep: no run is finished, the baseline is not an arm, or the folder holds other files.
        CannotStart: the folder cannot be written.
    """
    out = settings.out or _common_folder(settings.runs) / "report"
    _refuse_other_content(out)
    results = _read(settings)
    comparison = ArmComparison(results, settings.threshold, settings.resamples, settings.seed)
    _write(out, _files(comparison, settings))
    return out, results.notes


def _read(settings: ReportSettings) -> Results:
    folders = settings.runs
    is_sweep = len(folders) == 1 and (folders[0] / SWEEP_FILE).is_file()
    results = read_sweep(folders[0]) if is_sweep else read_runs(folders, name_arms)
    asked = [("baseline", settings.baseline), *(("arms", arm) for arm in settings.arms or ())]
    for field, arm in asked:
        if arm is not None and arm not in results.design.arms:
            arms = ", ".join(map(repr, results.design.arms))
            raise BadSweep(f"`{field}` {arm!r} is not an arm; the arms are {arms}")
    if settings.baseline is not None:
        results = replace(results, design=replace(results.design, baseline=settings.baseline))
    return results if settings.arms is None else _of_arms(results, {results.design.baseline, *settings.arms})


def _of_arms(results: Results, arms: set[str]) -> Results:
    """Returns the results of some arms alone; without a plan, what was planned are the folders found."""
    design = replace(results.design, arms=tuple(arm for arm in results.design.arms if arm in arms))
    runs = {cell: found for cell, found in results.runs.items() if cell.arm in arms}
    others = tuple(f"{arm}/" for arm in results.design.arms if arm not in arms)
    notes = [note for note in results.notes if not note.startswith(others)]
    left_out = [run for cell, found in results.runs.items() if cell.arm not in arms for run in found]
    planned = len(design.cells()) * len(design.seeds) if results.plan else results.planned - len(left_out)
    if not runs:
        raise BadSweep(f"no run of {', '.join(design.arms)} is finished")
    return replace(results, design=design, runs=runs, notes=notes, planned=planned)


def _common_folder(folders: Sequence[Path]) -> Path:
    """Returns the folder, or of several folders the one that contains all of them."""
    return folders[0] if len(folders) == 1 else Path(os.path.commonpath([each.resolve() for each in folders]))


def _files(comparison: ArmComparison, settings: ReportSettings) -> dict[str, bytes]:
    """Returns the files of the report, by name."""
    drawn = (draw_success(comparison), draw_samples(comparison), draw_ablations(comparison))
    figures = {name: png for name, png in zip(_FIGURES, drawn, strict=True) if png is not None}
    content = _content(comparison, settings)
    content |= {"figures": {name: base64.b64encode(png).decode() for name, png in figures.items()}}
    templates = Environment(
        loader=PackageLoader("student.experiments"),
        autoescape=lambda name: name == "report.html",  # noqa: S701 - Markdown is not escaped
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages = {name: templates.get_template(name).render(content) for name in _PAGES}
    tables = {
        "curves.csv": curves_csv(comparison.results),
        "speedups.csv": speed_ups_csv(comparison),
        "final.csv": final_csv(comparison),
        "harm.csv": harm_csv(comparison),
        "questions.csv": questions_csv(comparison),
    }
    return figures | {name: text.encode() for name, text in (pages | tables).items()}


def _content(comparison: ArmComparison, settings: ReportSettings) -> dict[str, Any]:
    """Returns the variables of the templates."""
    results, design = comparison.results, comparison.design
    runs = [run for cell in results.cells() for run in results.runs[cell]]
    versions = Counter(
        ", ".join(f"{name} {version}" for name, version in run.config.get("versions", {}).items())
        for run in runs
    )
    teachers = {
        run.identity: run.config["teacher"] for run in runs if run.identity and run.config.get("teacher")
    }
    return {
        "design": design,
        "algos": ", ".join(algo.upper() for algo in design.algos),
        "envs": ", ".join(map(short_env, design.envs)),
        "criterion": comparison.criterion,
        "settings": settings,
        "finished": len(runs),
        "planned": results.planned,
        "few_seeds": min(len(seeds) for seeds in results.runs.values()) < _SEEDS_FOR_A_CLAIM,
        "notes": results.notes,
        "speed_ups": speed_up_table(comparison),
        "finals": final_table(comparison),
        "harms": harm_tables(comparison),
        "harm": HARM,
        "questions": questions_table(comparison),
        "settings_table": settings_table(results),
        "shared": json.dumps(shared_settings(results), indent=2),
        "whole_plan": json.dumps(as_stored(results.plan), indent=2) if results.plan else None,
        "teachers": teachers_table(results),
        "identities": json.dumps(teachers, indent=2),
        "versions": dict(versions),
        "episodes": sorted({run.settings.get("evaluation_episodes", "unknown") for run in runs}, key=str),
        "commands": _commands(results, settings),
    }


def _commands(results: Results, settings: ReportSettings) -> list[str]:
    """Returns the commands that repeat the sweep, if there is one, and the report."""
    flags = ["--threshold", settings.threshold, "--resamples", settings.resamples, "--seed", settings.seed]
    if settings.baseline is not None:
        flags += ["--baseline", settings.baseline]
    sweep = [f"student sweep PLAN --out {settings.runs[0]}"] if results.plan else []
    return [*sweep, shlex.join(["student", "report", *map(str, [*settings.runs, *flags])])]


def _refuse_other_content(out: Path) -> None:
    """Refuses to replace anything but a report."""
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise BadSweep(f"{out} is not a folder: choose another `out`")
    others = sorted({path.name for path in out.iterdir()} - _PAGES - set(_FIGURES) - _TABLES - _FORMER)
    if others:
        raise BadSweep(
            f"{out} holds {others[0]}, and a report needs a folder of its own: choose another `out`"
        )


def _write(out: Path, files: dict[str, bytes]) -> None:
    """Writes the files into a new folder, which then replaces the old one."""
    part, old = (out.with_name(f".{out.name}.{what}-{os.getpid()}") for what in ("new", "old"))
    with writing("out", out):
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

"""The files of a score and of a comparison: tables, a page, reliability diagrams, pictures of mistakes."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from teacher_api.files import writing
from teacher_api.plot_style import COLOURS
from teacher_tools.score.measures import BINS
from teacher_tools.score.results import Calibration, Mean, Score, TaskScore
from teacher_tools.score.tables import ScoreTable, short, table, verdicts, with_interval

_MARKERS = "osD^vPX"
"""Distinguish the lines in print."""


@dataclass(frozen=True)
class ComparedTeacher:
    """A teacher in a comparison: its short name, the source of its score, and the score."""

    name: str
    source: str
    score: Score

    @property
    def verdicts(self) -> list[str]:
        """The comparison with chance."""
        return verdicts(self.score)


def score_table(score: Score) -> ScoreTable:
    """Returns a table with a column for each environment."""
    return table({short(env): task for env, task in score.tasks.items()})


def write_score(out: Path, score: Score) -> None:
    """Writes score.md, reliability.png, confidence.png and mistakes/*.png beside score.json.

    Raises:
        CannotStart: a file cannot be written.
    """
    of_all = {short(env): {score.identity: task} for env, task in score.tasks.items()}
    diagrams = {f"{name}.png": (title, file) for name, title, file in _diagrams(of_all)}
    content = {
        "score": score,
        "verdicts": verdicts(score),
        "table": score_table(score),
        "diagrams": {name: title for name, (title, _) in diagrams.items()},
    }
    files = {"score.md": _rendered("score.md", content)}
    files |= {name: file for name, (_, file) in diagrams.items()}
    for env, task in score.tasks.items():
        for number, mistake in enumerate(task.mistakes, 1):
            files[f"mistakes/{env}-{number}.png"] = base64.b64decode(mistake.picture)
    _write(out, files)


def write_comparison(out: Path, teachers: Sequence[ComparedTeacher]) -> dict[str, ScoreTable]:
    """Writes compare.md and the self-contained compare.html; returns the tables by environment.

    Raises:
        CannotStart: a file cannot be written.
    """
    envs = list(dict.fromkeys(env for teacher in teachers for env in teacher.score.tasks))
    tables, of_all = {}, {}
    for env in envs:
        scored = [teacher for teacher in teachers if env in teacher.score.tasks]
        tasks = {teacher.name: teacher.score.tasks[env] for teacher in scored}
        tables[env] = _with_differences(table(tasks), scored, env)
        of_all[short(env)] = tasks
    content = {
        "teachers": teachers,
        "notes": _notes(teachers, envs),
        "tables": tables,
        "diagrams": [(title, base64.b64encode(file).decode("ascii")) for _, title, file in _diagrams(of_all)],
    }
    _write(out, {name: _rendered(name, content) for name in ("compare.md", "compare.html")})
    return tables


def _with_differences(of: ScoreTable, teachers: Sequence[ComparedTeacher], env: str) -> ScoreTable:
    """Adds a row: each teacher's agreement minus the first teacher's, state by state."""
    if len(teachers) < 2:
        return of
    row = (
        f"difference to {teachers[0].name}",
        tuple(with_interval(_difference(each, teachers[0], env)) for each in teachers),
    )
    sections = [
        (section, [*rows, row] if section == "agreement with the planner" else rows)
        for section, rows in of.sections
    ]
    return replace(of, sections=sections)


def _difference(teacher: ComparedTeacher, first: ComparedTeacher, env: str) -> Mean | None:
    """Returns the difference of agreements over states that both answered; None if their states differ."""
    if teacher is first or _states_of(teacher) != _states_of(first):
        return None
    own, other = (each.score.tasks[env].agreement for each in (teacher, first))
    if own is None or other is None:
        return None
    both = [pair for pair in zip(own.by_state, other.by_state, strict=True) if "-" not in pair]
    return Mean.over(np.array([int(a) - int(b) for a, b in both], np.float64))


def _states_of(teacher: ComparedTeacher) -> tuple[int, int]:
    return teacher.score.asked_with["states"], teacher.score.asked_with["seed"]


def _notes(teachers: Sequence[ComparedTeacher], envs: Sequence[str]) -> list[str]:
    """Returns what limits the comparison."""
    notes = []
    if len({tuple(teacher.score.asked_with.items()) for teacher in teachers}) > 1:
        notes.append("The teachers were scored with different settings, so the scores also differ by chance.")
    for teacher in teachers:
        if missing := [short(env) for env in envs if env not in teacher.score.tasks]:
            notes.append(f"{teacher.name} was not scored in {', '.join(missing)}.")
    return notes


def _diagrams(of_all: Mapping[str, Mapping[str, TaskScore]]) -> Iterable[tuple[str, str, bytes]]:
    """Yields (name, title, PNG) of the reliability diagrams that there are figures for.

    Args:
        of_all: environment -> teacher -> results.
    """
    for name, title, axis in (
        (
            "reliability",
            "How often the arg-max is optimal, by the largest probability",
            "largest probability",
        ),
        ("confidence", "How often the arg-max is optimal, by confidence", "confidence"),
    ):
        panels: dict[str, dict[str, Calibration]] = {
            env: {
                teacher: found
                for teacher, task in tasks.items()
                if (found := task.calibration if name == "reliability" else task.confidence)
            }
            for env, tasks in of_all.items()
        }
        file = _draw_reliability(panels, axis)
        if file is not None:
            yield name, title, file


def _draw_reliability(panels: Mapping[str, Mapping[str, Calibration]], axis: str) -> bytes | None:
    """Returns a PNG with a panel for each environment and a line for each teacher; None without panels.

    Each point is a bin: its mean confidence and its share of optimal arg-maxes with the 95 % interval. The
    bars below show the share of answers in each bin.
    """
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        return None
    figure = Figure(figsize=(3.2 * len(panels), 3.9), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, sharex=True, height_ratios=[4, 1])
    for column, (title, lines) in enumerate(panels.items()):
        upper, lower = axes[:, column]
        upper.set_title(title, fontsize=9.5)
        upper.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
        for number, (name, calibration) in enumerate(lines.items()):
            colour, marker = COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]
            confidence = [each.confidence for each in calibration.bins]
            right = [each.optimal.value for each in calibration.bins]
            below = [max(each.optimal.value - each.optimal.low, 0) for each in calibration.bins]
            above = [max(each.optimal.high - each.optimal.value, 0) for each in calibration.bins]
            upper.errorbar(
                confidence,
                right,
                [below, above],
                color=colour,
                marker=marker,
                markersize=4,
                capsize=2,
                label=name,
            )
            width = 1 / BINS / len(lines)
            left = [each.above + number * width for each in calibration.bins]
            share = [each.optimal.of / calibration.of for each in calibration.bins]
            lower.bar(left, share, width, align="edge", color=colour)
        upper.set(xlim=(0, 1), ylim=(-0.03, 1.03))
        lower.set(ylim=(0, 1), xlabel=axis)
        for panel in (upper, lower):
            panel.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("arg-max is optimal")
    axes[1, 0].set_ylabel("share")
    named = {
        label: handle
        for panel in axes[0]
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if len(named) > 1:
        figure.legend(
            named.values(), named, loc="outside lower center", ncols=len(named), frameon=False, fontsize=8
        )
    written = io.BytesIO()
    figure.savefig(written, dpi=150, format="png", metadata={"Software": None})
    return written.getvalue()


def _rendered(name: str, content: Mapping[str, Any]) -> bytes:
    templates = Environment(
        loader=PackageLoader("teacher_tools.score"),
        autoescape=lambda name: name is not None and name.endswith(".html"),  # noqa: S701 - Markdown is plain text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(name).render(content).encode()


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    with writing("out", out):
        for name, content in files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

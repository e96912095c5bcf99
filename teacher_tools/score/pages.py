"""The files that a score or a comparison leaves behind: tables, a page, diagrams, pictures of mistakes."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from teacher_tools.score.figures import Mean, Score
from teacher_tools.score.reliability import draw_reliability
from teacher_tools.score.scoring import BadScore
from teacher_tools.score.words import Table, short, table, verdicts, with_interval


@dataclass(frozen=True)
class Compared:
    """One of several teachers: a short name, and where its score is from."""

    name: str
    source: str
    score: Score

    @property
    def verdicts(self) -> list[str]:
        """How it stands against chance."""
        return verdicts(self.score)


def score_table(score: Score) -> Table:
    """A column for each environment."""
    return table({short(env): task for env, task in score.tasks.items()})


def write_score(out: Path, score: Score) -> None:
    """Writes score.md, reliability.png and mistakes/*.png beside score.json.

    Raises:
        BadScore: they cannot be written.
    """
    reliability = draw_reliability(
        {
            short(env): {score.identity: task.calibration}
            for env, task in score.tasks.items()
            if task.calibration
        }
    )
    content = {
        "score": score,
        "verdicts": verdicts(score),
        "table": score_table(score),
        "reliability": reliability is not None,
    }
    files = {"score.md": _rendered("score.md", content)}
    if reliability is not None:
        files["reliability.png"] = reliability
    for env, task in score.tasks.items():
        for number, mistake in enumerate(task.mistakes, 1):
            files[f"mistakes/{env}-{number}.png"] = base64.b64decode(mistake.picture)
    _write(out, files)


def write_comparison(out: Path, teachers: Sequence[Compared]) -> dict[str, Table]:
    """Writes compare.md and compare.html, which needs nothing beside it; returns the tables by environment.

    Raises:
        BadScore: they cannot be written.
    """
    envs = list(dict.fromkeys(env for teacher in teachers for env in teacher.score.tasks))
    tables, panels = {}, {}
    for env in envs:
        scored = [teacher for teacher in teachers if env in teacher.score.tasks]
        tasks = {teacher.name: teacher.score.tasks[env] for teacher in scored}
        tables[env] = _with_differences(table(tasks), scored, env)
        panels[short(env)] = {name: task.calibration for name, task in tasks.items() if task.calibration}
    reliability = draw_reliability(panels)
    content = {
        "teachers": teachers,
        "notes": _notes(teachers, envs),
        "tables": tables,
        "reliability": base64.b64encode(reliability).decode("ascii") if reliability else None,
    }
    _write(out, {name: _rendered(name, content) for name in ("compare.md", "compare.html")})
    return tables


def _with_differences(of: Table, teachers: Sequence[Compared], env: str) -> Table:
    """The table with each agreement less the first teacher's, state by state."""
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


def _difference(teacher: Compared, first: Compared, env: str) -> Mean | None:
    """Of their agreements, over the states that both answered; None where they had other states."""
    if teacher is first or _states_of(teacher) != _states_of(first):
        return None
    mine, its = (each.score.tasks[env].agreement for each in (teacher, first))
    if mine is None or its is None:
        return None
    both = [pair for pair in zip(mine.by_state, its.by_state, strict=True) if "-" not in pair]
    return Mean.over(np.array([int(a) - int(b) for a, b in both], np.float64))


def _states_of(teacher: Compared) -> tuple[int, int]:
    return teacher.score.asked_with["states"], teacher.score.asked_with["seed"]


def _notes(teachers: Sequence[Compared], envs: Sequence[str]) -> list[str]:
    """What makes a comparison less than even."""
    notes = []
    if len({tuple(teacher.score.asked_with.items()) for teacher in teachers}) > 1:
        notes.append("The teachers were scored with different settings: their figures differ by chance too.")
    for teacher in teachers:
        if missing := [short(env) for env in envs if env not in teacher.score.tasks]:
            notes.append(f"{teacher.name} was not scored in {', '.join(missing)}.")
    return notes


def _rendered(name: str, content: Mapping[str, Any]) -> bytes:
    templates = Environment(
        loader=PackageLoader("teacher_tools.score"),
        autoescape=lambda name: name is not None and name.endswith(".html"),  # noqa: S701 - the Markdown is text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(name).render(content).encode()


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    try:
        for name, content in files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise BadScore(f"--out: cannot write to {out}: {error.strerror}") from error

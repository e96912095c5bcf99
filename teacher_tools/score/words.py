"""A score in words: the rows of its table, and how the teacher stands against chance."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from teacher_tools.score.figures import Mean, Score, Share, Spread, TaskScore

_NOTHING = "–"
_FIELDS = {
    "row": "agent's row",
    "column": "agent's column",
    "heading": "agent's heading",
    "agent": "agent, all three",
    "target": "target's cell",
    "target_name": "target's name",
    "hazards": "hazards, all and no others",
    "direction": "direction of the target",
    "all": "agent, target and hazards",
}
_STANDINGS = ("better than chance", "cannot be told from chance", "worse than chance")


@dataclass(frozen=True)
class Table:
    """Rows under headings: (section, rows of (label, one cell a column))."""

    columns: tuple[str, ...]
    sections: list[tuple[str, list[tuple[str, tuple[str, ...]]]]]


def table(columns: Mapping[str, TaskScore]) -> Table:
    """The figures of several scores side by side; a row that is empty in all of them is left out."""
    told = [_sections(score) for score in columns.values()]
    sections = []
    for section in told[0]:
        rows = [
            (label, tuple(each[section].get(label, _NOTHING) for each in told))
            for label in dict.fromkeys(label for each in told for label in each[section])
            if any(each[section].get(label, _NOTHING) != _NOTHING for each in told)
        ]
        if rows:
            sections.append((section, rows))
    return Table(tuple(columns), sections)


def as_text(of: Table) -> str:
    """The table in columns, for a terminal."""
    rows: list[tuple[str, ...]] = [("", *of.columns)]
    for section, inside in of.sections:
        rows += [(section,), *(("  " + label, *cells) for label, cells in inside)]
    full = [row for row in rows if len(row) > 1]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    return "\n".join(
        row[0]
        if len(row) == 1
        else "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def short(env_id: str) -> str:
    """An environment's id without what all have in common."""
    return env_id.removeprefix("MiniGrid-").removesuffix("-v0")


def verdicts(score: Score) -> list[str]:
    """A line or more for each environment: how the teacher stands against chance, and what is missing."""
    return [line for task in score.tasks.values() for line in _verdict(task)]


def _verdict(task: TaskScore) -> Iterable[str]:
    ways = {"success (sampled)": task.sampled, "success (arg-max)": task.argmax}
    standings = {name: _standing(way.success, task.chance.success) for name, way in ways.items() if way}
    if task.agreement:
        low, high = sorted((task.agreement.uniform, task.agreement.reshuffled))
        chance = task.agreement.optimal.model_copy(update={"low": low, "high": high})
        standings = {"agreement with the planner": _standing(task.agreement.optimal, chance)} | standings
    place = short(task.env)
    if not standings:
        yield f"{place}: this teacher answered about none of {task.states} states, and was not played."
    elif set(standings.values()) == {1}:
        yield f"{place}: this teacher cannot be told from chance, in {_listed(standings)}."
    else:
        groups = [
            f"{words} in {_listed(name for name, standing in standings.items() if standing == number)}"
            for number, words in enumerate(_STANDINGS)
            if number in standings.values()
        ]
        yield f"{place}: {'; '.join(groups)}."
    if task.costs.failures:
        why = ", ".join(f"{fault}: {count}" for fault, count in task.costs.failures.items())
        missing = sum(task.costs.failures.values())
        yield f"{place}: {missing} of {task.costs.questions} questions got no answer ({why})."
    if task.agreement and not task.perception:
        yield f"{place}: its analyses have no fields: perception and reasoning are not measured."


def _standing(share: Share, chance: Share) -> int:
    """Above, overlapping or below: an index of `_STANDINGS`."""
    if share.low > chance.high:
        return 0
    return 2 if share.high < chance.low else 1


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _sections(task: TaskScore) -> dict[str, dict[str, str]]:
    """Every figure by section and label."""
    return {
        "as a policy": _policy(task),
        "agreement with the planner": _agreement(task),
        "perception (stage 1)": _perception(task),
        "reasoning (stage 2): the action is optimal": _reasoning(task),
        "calibration": _calibration(task),
        "answers": _answers(task),
    }


def _policy(task: TaskScore) -> dict[str, str]:
    ways = {"sampled": task.sampled, "arg-max": task.argmax, "chance": task.chance}
    played = {name: way for name, way in ways.items() if way}
    return {
        **{f"success, {name}": with_interval(way.success) for name, way in played.items()},
        **{f"return, {name}": with_interval(way.mean_return) for name, way in played.items()},
        **{f"length, {name}": f"{way.length:.1f}" for name, way in played.items()},
        "steps without an answer": str(sum(way.steps_without_answer for way in played.values()) or _NOTHING),
    }


def _agreement(task: TaskScore) -> dict[str, str]:
    of, states = task.agreement, {"states asked about": str(task.states)}
    if of is None:
        return states | {"states answered": "0"}
    return {
        **states,
        "states answered": str(of.optimal.of),
        "arg-max is optimal": with_interval(of.optimal),
        "mistake rate": with_interval(of.mistakes),
        "probability on optimal actions": with_interval(of.probability_on_optimal),
        "chance, any useful action": f"{of.uniform:.3f}",
        "chance, its actions reshuffled": f"{of.reshuffled:.3f}",
    }


def _perception(task: TaskScore) -> dict[str, str]:
    of = task.perception
    if of is None:
        return {}
    return {
        **{_FIELDS[field]: with_interval(share) for field, share in of.fields.items()},
        "hazards that are seen": with_interval(of.hazards_found),
        "hazards said that are there": with_interval(of.hazards_said_are_there),
    }


def _reasoning(task: TaskScore) -> dict[str, str]:
    of = task.reasoning
    if of is None:
        return {}
    chance = of.chance_given_said
    return {
        "given the truth": with_interval(of.given_truth),
        "... where stage 1 is right": with_interval(of.seen_right),
        "... where it is not": with_interval(of.seen_wrong),
        "given what stage 1 said": with_interval(of.given_said),
        "chance of that": _NOTHING if chance is None else f"{chance:.3f}",
        "said what cannot be planned in": str(sum(of.unplannable.values()) or _NOTHING),
        **{f"... {why}": str(count) for why, count in of.unplannable.items()},
    }


def _calibration(task: TaskScore) -> dict[str, str]:
    of = task.calibration
    if of is None:
        return {}
    return {
        "states with one optimal action": str(of.of),
        "mean confidence": f"{of.confidence:.3f}",
        "arg-max is optimal there": f"{of.optimal:.3f}",
        "expected calibration error": f"{of.error:.3f}",
    }


def _answers(task: TaskScore) -> dict[str, str]:
    of = task.costs
    return {
        "questions": str(of.questions),
        "from the teacher's store": str(of.stored or _NOTHING),
        "without an answer": str(sum(of.failures.values()) or _NOTHING),
        "questions/s": f"{of.questions / of.seconds:.1f}" if of.seconds else _NOTHING,
        "analysis, ms: median, 95 %": _spread(of.analysis_ms),
        "action, ms: median, 95 %": _spread(of.action_ms),
        "analysis, tokens": f"{of.analysis_tokens:.0f}" if of.analysis_tokens else _NOTHING,
        "action, tokens": f"{of.action_tokens:.0f}" if of.action_tokens else _NOTHING,
        "label mass: mean, least": f"{of.label_mass.mean:.3f}, {of.least_label_mass:.3f}"
        if of.label_mass
        else _NOTHING,
    }


def with_interval(figure: Share | Mean | None) -> str:
    """The figure with its interval."""
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]" if figure else _NOTHING


def _spread(of: Spread | None) -> str:
    return f"{of.median:.1f}, {of.p95:.1f}" if of else _NOTHING

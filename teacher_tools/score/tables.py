"""A score as text: its table, and sentences that compare the teacher with chance."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from teacher_tools.score.results import Mean, PolicyResult, Score, Share, Summary, TaskScore

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
_VERDICTS = ("better than chance", "not distinguishable from chance", "worse than chance")


@dataclass(frozen=True)
class ScoreTable:
    """Rows in sections: (section, rows of (label, a cell for each column))."""

    columns: tuple[str, ...]
    sections: list[tuple[str, list[tuple[str, tuple[str, ...]]]]]


def table(columns: Mapping[str, TaskScore]) -> ScoreTable:
    """Returns several scores side by side, without rows that are empty in all of them."""
    all_sections = [_sections(score) for score in columns.values()]
    sections = []
    for section in all_sections[0]:
        rows = [
            (label, tuple(each[section].get(label, _NOTHING) for each in all_sections))
            for label in dict.fromkeys(label for each in all_sections for label in each[section])
            if any(each[section].get(label, _NOTHING) != _NOTHING for each in all_sections)
        ]
        if rows:
            sections.append((section, rows))
    return ScoreTable(tuple(columns), sections)


def as_text(of: ScoreTable) -> str:
    """Returns the table as aligned text for a terminal."""
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
    """Returns an environment's id without the common prefix and suffix."""
    return env_id.removeprefix("MiniGrid-").removesuffix("-v0")


def verdicts(score: Score) -> list[str]:
    """Returns sentences for each environment: the comparison with chance, and what is missing."""
    return [line for task in score.tasks.values() for line in _verdict(task)]


def _verdict(task: TaskScore) -> Iterable[str]:
    policies = {"success (sampled)": task.sampled, "success (arg-max)": task.argmax}
    found = {name: _compared(each.success, task.chance.success) for name, each in policies.items() if each}
    if task.agreement:
        low, high = sorted((task.agreement.uniform, task.agreement.reshuffled))
        chance = task.agreement.optimal.model_copy(update={"low": low, "high": high})
        found = {"agreement with the planner": _compared(task.agreement.optimal, chance)} | found
    env = short(task.env)
    if not found:
        yield f"{env}: the teacher answered about none of {task.states} states, so no episodes were played."
    else:
        groups = [
            f"{verdict} in {_listed(name for name, each in found.items() if each == number)}"
            for number, verdict in enumerate(_VERDICTS)
            if number in found.values()
        ]
        yield f"{env}: {'; '.join(groups)}."
    if task.costs.failures:
        why = ", ".join(f"{fault}: {count}" for fault, count in task.costs.failures.items())
        missing = sum(task.costs.failures.values())
        yield f"{env}: {missing} of {task.costs.questions} questions have no answer ({why})."
    if task.agreement and not task.perception:
        yield f"{env}: the analyses have no fields, so perception and reasoning are not measured."


def _compared(share: Share, chance: Share) -> int:
    """Returns the index in `_VERDICTS`: the interval is above, overlaps or is below that of chance."""
    if share.low > chance.high:
        return 0
    return 2 if share.high < chance.low else 1


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _sections(task: TaskScore) -> dict[str, dict[str, str]]:
    """Returns every cell by section and label."""
    return {
        "as a policy": _policy(task),
        "agreement with the planner": _agreement(task),
        "perception (stage 1)": _perception(task),
        "reasoning (stage 2): the action is optimal": _reasoning(task),
        "calibration of the largest probability": _calibration(task),
        "calibration of the confidence": _confidence(task),
        "answers": _answers(task),
    }


def _policy(task: TaskScore) -> dict[str, str]:
    policies: dict[str, PolicyResult | None] = {
        "sampled": task.sampled,
        "arg-max": task.argmax,
        "chance": task.chance,
    }
    played = {name: each for name, each in policies.items() if each}
    return {
        **{f"success, {name}": with_interval(each.success) for name, each in played.items()},
        **{f"return, {name}": with_interval(each.mean_return) for name, each in played.items()},
        **{f"length, {name}": f"{each.length:.1f}" for name, each in played.items()},
        "steps without an answer": str(
            sum(each.steps_without_answer for each in played.values()) or _NOTHING
        ),
    }


def _agreement(task: TaskScore) -> dict[str, str]:
    of, states = task.agreement, {"states": str(task.states)}
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
        "hazards found": with_interval(of.hazards_found),
        "hazards named that exist": with_interval(of.hazards_said_are_there),
    }


def _reasoning(task: TaskScore) -> dict[str, str]:
    of = task.reasoning
    if of is None:
        return {}
    chance = of.chance_given_said
    return {
        "given the truth": with_interval(of.given_truth),
        "... where stage 1 is right": with_interval(of.seen_right),
        "... where stage 1 is wrong": with_interval(of.seen_wrong),
        "given the analysis": with_interval(of.given_said),
        "chance, given the analysis": _NOTHING if chance is None else f"{chance:.3f}",
        "analyses that cannot be planned in": str(sum(of.unplannable.values()) or _NOTHING),
        **{f"... {why}": str(count) for why, count in of.unplannable.items()},
    }


def _calibration(task: TaskScore) -> dict[str, str]:
    of = task.calibration
    if of is None:
        return {}
    return {
        "states with one optimal action": str(of.of),
        "mean largest probability": f"{of.confidence:.3f}",
        "arg-max is optimal there": f"{of.optimal:.3f}",
        "expected calibration error": f"{of.error:.3f}",
    }


def _confidence(task: TaskScore) -> dict[str, str]:
    of = task.confidence
    if of is None:
        return {}
    cells = {
        "answers with a confidence": str(of.of),
        "mean confidence": f"{of.confidence:.3f}",
        "arg-max is optimal there": f"{of.optimal:.3f}",
        "expected calibration error": f"{of.error:.3f}",
    }
    for level in of.levels:
        cells[f"confidence {level.least:g} or more, share"] = with_interval(level.answers)
        cells[f"... arg-max is optimal, {level.least:g}"] = with_interval(level.optimal)
    return cells


def _answers(task: TaskScore) -> dict[str, str]:
    of = task.costs
    return {
        "questions": str(of.questions),
        "from the teacher's store": str(of.stored or _NOTHING),
        "without an answer": str(sum(of.failures.values()) or _NOTHING),
        "questions/s": f"{of.questions / of.seconds:.1f}" if of.seconds else _NOTHING,
        "analysis, ms: median, 95 %": _summary(of.analysis_ms),
        "action, ms: median, 95 %": _summary(of.action_ms),
        "analysis, tokens": f"{of.analysis_tokens:.0f}" if of.analysis_tokens else _NOTHING,
        "action, tokens": f"{of.action_tokens:.0f}" if of.action_tokens else _NOTHING,
        "label mass: mean, minimum": f"{of.label_mass.mean:.3f}, {of.least_label_mass:.3f}"
        if of.label_mass
        else _NOTHING,
    }


def with_interval(of: Share | Mean | None) -> str:
    """Returns the value with its interval."""
    return f"{of.value:.3f} [{of.low:.3f}, {of.high:.3f}]" if of else _NOTHING


def _summary(of: Summary | None) -> str:
    return f"{of.median:.1f}, {of.p95:.1f}" if of else _NOTHING

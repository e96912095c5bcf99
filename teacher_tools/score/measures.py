"""From answers about held-out states to figures: agreement, perception, reasoning, calibration, costs."""

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gridworld.pictures import draw, encode_png
from gridworld.tasks import ALL_TASKS
from teacher_api.schemas import Answer, ErrorBody
from teacher_tools.score.asking import Outcome
from teacher_tools.score.figures import (
    Agreement,
    Bin,
    Calibration,
    Costs,
    Mean,
    Mistake,
    Perception,
    Reasoning,
    Share,
    Spread,
)
from teacher_tools.score.perception import CannotDescribe, Said, judge, optimal_as_said, read_analysis
from teacher_tools.score.world import State

BINS = 10
"""Of equal width, from 0 to 1, in the reliability diagram and the expected calibration error."""
_MISTAKES = 6
"""Shown, the most confident ones."""


@dataclass(frozen=True)
class Judged:
    """A state, and a teacher's answer about it."""

    state: State
    answer: Answer

    @property
    def probabilities(self) -> dict[str, float]:
        """Over the actions of the environment."""
        return self.answer.probabilities or {}

    @property
    def action(self) -> str:
        """The arg-max."""
        return str(self.answer.action)

    @property
    def optimal(self) -> bool:
        """Whether the arg-max is an optimal action."""
        return self.action in self.state.optimal

    @property
    def confidence(self) -> float:
        """The largest probability."""
        return self.probabilities[self.action]

    @cached_property
    def said(self) -> Said | None:
        """The analysis, where it has fields."""
        return read_analysis(self.answer.analysis)

    @cached_property
    def seen(self) -> dict[str, bool]:
        """Which of the fields are right."""
        return judge(self.said, self.state.scene) if self.said else {}


def judged(states: Sequence[State], outcomes: Sequence[Outcome]) -> list[Judged]:
    """The states that were answered."""
    return [
        Judged(state, outcome)
        for state, outcome in zip(states, outcomes, strict=True)
        if isinstance(outcome, Answer)
    ]


def agreement(states: Sequence[State], outcomes: Sequence[Outcome]) -> Agreement | None:
    """The teacher's arg-max against the planner; None where no state was answered."""
    answers = judged(states, outcomes)
    optimal, on_optimal = Share.among(each.optimal for each in answers), Mean.over(map(_on_optimal, answers))
    if optimal is None or on_optimal is None:
        return None
    useful = _useful(answers[0])
    said = Counter(each.action for each in answers)
    return Agreement(
        optimal=optimal,
        mistakes=Share.among(not each.optimal for each in answers if len(each.state.optimal) < len(useful)),
        probability_on_optimal=on_optimal,
        uniform=_mean(len(each.state.optimal) / len(useful) for each in answers),
        reshuffled=sum(
            count * _mean(action in each.state.optimal for each in answers) for action, count in said.items()
        )
        / len(answers),
        by_state="".join(
            str(int(outcome.action in state.optimal)) if isinstance(outcome, Answer) else "-"
            for state, outcome in zip(states, outcomes, strict=True)
        ),
    )


def perception(answers: Sequence[Judged]) -> Perception | None:
    """How often each field of the analyses is right; None where none has fields."""
    told = [each for each in answers if each.said]
    if not told:
        return None
    shares = {
        field: Share.among(each.seen[field] for each in told if field in each.seen)
        for field in dict.fromkeys(field for each in told for field in each.seen)
    }
    there = [(set(each.state.scene.hazards), set(each.said.hazards)) for each in told if each.said]
    return Perception(
        fields={field: share for field, share in shares.items() if share},
        hazards_found=Share.among(cell in said for real, said in there for cell in real),
        hazards_said_are_there=Share.among(cell in real for real, said in there for cell in said),
    )


def reasoning(answers: Sequence[Judged]) -> Reasoning | None:
    """Whether actions are optimal given the truth and given the analysis; None where none has fields."""
    told = [(each, each.said) for each in answers if each.said]
    given_truth = Share.among(each.optimal for each, _ in told)
    if given_truth is None:
        return None
    unplannable: Counter[str] = Counter()
    right, chances = [], []
    for each, said in told:
        try:
            optimal = optimal_as_said(said, each.state.scene)
        except CannotDescribe as why:
            unplannable[str(why)] += 1
        else:
            right.append(each.action in optimal)
            chances.append(len(optimal) / len(_useful(each)))
    return Reasoning(
        given_truth=given_truth,
        seen_right=Share.among(each.optimal for each, _ in told if each.seen["all"]),
        seen_wrong=Share.among(each.optimal for each, _ in told if not each.seen["all"]),
        given_said=Share.among(right),
        chance_given_said=float(np.mean(chances)) if chances else None,
        unplannable=dict(unplannable.most_common()),
    )


def calibration(answers: Sequence[Judged]) -> Calibration | None:
    """Confidence against being right, over states with one optimal action; None where there are none.

    error = sum over the bins of |share optimal - mean confidence| * the bin's share of the answers.
    """
    counted = [each for each in answers if len(each.state.optimal) == 1]
    if not counted:
        return None
    binned: dict[int, list[Judged]] = {}
    for each in counted:  # (above, above + 1 / BINS]
        binned.setdefault(max(int(np.ceil(each.confidence * BINS - 1e-9)) - 1, 0), []).append(each)
    bins = []
    for number, inside in sorted(binned.items()):
        optimal = Share.among(each.optimal for each in inside)
        assert optimal is not None
        confidence = _mean(each.confidence for each in inside)
        bins.append(Bin(above=number / BINS, confidence=confidence, optimal=optimal))
    return Calibration(
        of=len(counted),
        error=sum(abs(each.optimal.value - each.confidence) * each.optimal.of for each in bins)
        / len(counted),
        confidence=_mean(each.confidence for each in counted),
        optimal=_mean(each.optimal for each in counted),
        bins=bins,
    )


def costs(outcomes: Sequence[Outcome], seconds: float) -> Costs:
    """What all questions took, and which were not answered; `seconds` were spent waiting."""
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    looked = [answer.stages.analysis for answer in answers]
    acted = [answer.stages.action for answer in answers if answer.stages.action]
    masses = [stage.label_mass for stage in acted if stage.label_mass is not None]
    failures = Counter(_fault(outcome) for outcome in outcomes if isinstance(outcome, ErrorBody))
    return Costs(
        questions=len(outcomes),
        stored=sum(answer.stored for answer in answers),
        seconds=seconds,
        failures=dict(failures.most_common()),
        analysis_ms=Spread.over([stage.milliseconds for stage in looked]),
        action_ms=Spread.over([stage.milliseconds for stage in acted]),
        analysis_tokens=_mean(stage.tokens for stage in looked) if looked else None,
        action_tokens=_mean(stage.tokens for stage in acted) if acted else None,
        label_mass=Spread.over(masses),
        least_label_mass=min(masses, default=None),
    )


def worst_mistakes(answers: Sequence[Judged]) -> list[Mistake]:
    """The most confident wrong answers."""
    wrong = sorted((each for each in answers if not each.optimal), key=lambda each: -each.confidence)
    return [
        Mistake(
            picture=base64.b64encode(encode_png(draw(each.state.scene.view))).decode("ascii"),
            mission=each.state.scene.mission,
            analysis=each.answer.analysis,
            probabilities=each.probabilities,
            action=each.action,
            optimal=list(each.state.optimal),
        )
        for each in wrong[:_MISTAKES]
    ]


def _on_optimal(each: Judged) -> float:
    return sum(each.probabilities[action] for action in each.state.optimal)


def _useful(each: Judged) -> tuple[str, ...]:
    return ALL_TASKS[each.state.scene.task].useful


def _fault(error: ErrorBody) -> str:
    if error.status == 502 and error.stage:
        return f"{error.stage}, {error.fault}"
    return f"status {error.status}"


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))

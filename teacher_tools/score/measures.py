"""Computes agreement, perception, reasoning, calibration and costs from answers about held-out states."""

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gridworld.pictures import draw, encode_png
from gridworld.tasks import ALL_TASKS
from teacher_api.schemas import Answer, ErrorBody
from teacher_tools.score.answers import Outcome
from teacher_tools.score.episodes import State
from teacher_tools.score.perception import (
    DescribedScene,
    ImpossibleScene,
    judge,
    optimal_as_described,
    read_analysis,
)
from teacher_tools.score.results import (
    Agreement,
    Bin,
    Calibration,
    ConfidenceCalibration,
    Costs,
    Level,
    Mean,
    Mistake,
    Perception,
    Reasoning,
    Share,
    Summary,
)

LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)
"""The levels of confidence above which answers are counted."""
BINS = 10
"""Bins of equal width from 0 to 1, in the reliability diagram and the expected calibration error."""
_MISTAKES = 6
"""The number of mistakes that a score keeps: the most confident ones."""


@dataclass(frozen=True)
class JudgedAnswer:
    """A state and a teacher's answer about it."""

    state: State
    answer: Answer

    @property
    def probabilities(self) -> dict[str, float]:
        """The probabilities of the environment's actions."""
        return self.answer.probabilities or {}

    @property
    def action(self) -> str:
        """The most probable action."""
        return str(self.answer.action)

    @property
    def optimal(self) -> bool:
        """Whether the most probable action is optimal."""
        return self.action in self.state.optimal

    @property
    def largest(self) -> float:
        """The largest probability."""
        return self.probabilities[self.action]

    @cached_property
    def described(self) -> DescribedScene | None:
        """The analysis, if it has fields."""
        return read_analysis(self.answer.analysis)

    @cached_property
    def right(self) -> dict[str, bool]:
        """Which fields of the analysis are right."""
        return judge(self.described, self.state.scene) if self.described else {}


def judged(states: Sequence[State], outcomes: Sequence[Outcome]) -> list[JudgedAnswer]:
    """Returns the answered states with their answers."""
    return [
        JudgedAnswer(state, outcome)
        for state, outcome in zip(states, outcomes, strict=True)
        if isinstance(outcome, Answer)
    ]


def agreement(states: Sequence[State], outcomes: Sequence[Outcome]) -> Agreement | None:
    """Compares the teacher's arg-max with the planner; None if no state was answered."""
    answers = judged(states, outcomes)
    optimal, on_optimal = Share.among(each.optimal for each in answers), Mean.over(map(_on_optimal, answers))
    if optimal is None or on_optimal is None:
        return None
    useful = _useful(answers[0])
    counts = Counter(each.action for each in answers)
    return Agreement(
        optimal=optimal,
        mistakes=Share.among(not each.optimal for each in answers if len(each.state.optimal) < len(useful)),
        probability_on_optimal=on_optimal,
        uniform=_mean(len(each.state.optimal) / len(useful) for each in answers),
        reshuffled=sum(
            count * _mean(action in each.state.optimal for each in answers)
            for action, count in counts.items()
        )
        / len(answers),
        by_state="".join(
            str(int(outcome.action in state.optimal)) if isinstance(outcome, Answer) else "-"
            for state, outcome in zip(states, outcomes, strict=True)
        ),
    )


def perception(answers: Sequence[JudgedAnswer]) -> Perception | None:
    """Returns how often each field of the analyses is right; None if no analysis has fields."""
    with_fields = [each for each in answers if each.described]
    if not with_fields:
        return None
    shares = {
        field: Share.among(each.right[field] for each in with_fields if field in each.right)
        for field in dict.fromkeys(field for each in with_fields for field in each.right)
    }
    hazards = [
        (set(each.state.scene.hazards), set(each.described.hazards)) for each in with_fields if each.described
    ]
    return Perception(
        fields={field: share for field, share in shares.items() if share},
        hazards_found=Share.among(cell in described for real, described in hazards for cell in real),
        hazards_said_are_there=Share.among(cell in real for real, described in hazards for cell in described),
    )


def reasoning(answers: Sequence[JudgedAnswer]) -> Reasoning | None:
    """Returns how often actions are optimal in the true and in the described state; None without fields."""
    with_fields = [(each, each.described) for each in answers if each.described]
    given_truth = Share.among(each.optimal for each, _ in with_fields)
    if given_truth is None:
        return None
    unplannable: Counter[str] = Counter()
    right, chances = [], []
    for each, described in with_fields:
        try:
            optimal = optimal_as_described(described, each.state.scene)
        except ImpossibleScene as why:
            unplannable[str(why)] += 1
        else:
            right.append(each.action in optimal)
            chances.append(len(optimal) / len(_useful(each)))
    return Reasoning(
        given_truth=given_truth,
        seen_right=Share.among(each.optimal for each, _ in with_fields if each.right["all"]),
        seen_wrong=Share.among(each.optimal for each, _ in with_fields if not each.right["all"]),
        given_said=Share.among(right),
        chance_given_said=float(np.mean(chances)) if chances else None,
        unplannable=dict(unplannable.most_common()),
    )


def calibration(answers: Sequence[JudgedAnswer]) -> Calibration | None:
    """Compares the largest probability with correctness, over the states with one optimal action.

    Returns:
        None if there is no such state.
    """
    counted = [(each.largest, each.optimal) for each in answers if len(each.state.optimal) == 1]
    return _calibration(counted) if counted else None


def confidence(answers: Sequence[JudgedAnswer]) -> ConfidenceCalibration | None:
    """Compares the answers' `confidence` with correctness; None if no answer has a confidence."""
    counted = [
        (each.answer.confidence, each.optimal) for each in answers if each.answer.confidence is not None
    ]
    if not counted:
        return None
    levels = []
    for least in LEVELS:
        answered = Share.among(sure >= least for sure, _ in counted)
        assert answered is not None
        optimal = Share.among(optimal for sure, optimal in counted if sure >= least)
        levels.append(Level(least=least, answers=answered, optimal=optimal))
    return ConfidenceCalibration(**dict(_calibration(counted)), levels=levels)


def _calibration(counted: Sequence[tuple[float, bool]]) -> Calibration:
    """Returns the calibration of pairs (confidence, whether the arg-max is optimal).

    error = sum over the bins of |share optimal - mean confidence| * the bin's share of the answers.
    """
    binned: dict[int, list[tuple[float, bool]]] = {}
    for sure, optimal in counted:  # (above, above + 1 / BINS]
        binned.setdefault(max(int(np.ceil(sure * BINS - 1e-9)) - 1, 0), []).append((sure, optimal))
    bins = []
    for number, inside in sorted(binned.items()):
        share = Share.among(optimal for _, optimal in inside)
        assert share is not None
        bins.append(Bin(above=number / BINS, confidence=_mean(sure for sure, _ in inside), optimal=share))
    return Calibration(
        of=len(counted),
        error=sum(abs(each.optimal.value - each.confidence) * each.optimal.of for each in bins)
        / len(counted),
        confidence=_mean(sure for sure, _ in counted),
        optimal=_mean(optimal for _, optimal in counted),
        bins=bins,
    )


def costs(outcomes: Sequence[Outcome], seconds: float) -> Costs:
    """Returns times, tokens and failures of all questions; `seconds` is the time spent waiting."""
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    analyses = [answer.stages.analysis for answer in answers]
    actions = [answer.stages.action for answer in answers if answer.stages.action]
    masses = [stage.label_mass for stage in actions if stage.label_mass is not None]
    failures = Counter(_fault(outcome) for outcome in outcomes if isinstance(outcome, ErrorBody))
    return Costs(
        questions=len(outcomes),
        stored=sum(answer.stored for answer in answers),
        seconds=seconds,
        failures=dict(failures.most_common()),
        analysis_ms=Summary.of([stage.milliseconds for stage in analyses]),
        action_ms=Summary.of([stage.milliseconds for stage in actions]),
        analysis_tokens=_mean(stage.tokens for stage in analyses) if analyses else None,
        action_tokens=_mean(stage.tokens for stage in actions) if actions else None,
        label_mass=Summary.of(masses),
        least_label_mass=min(masses, default=None),
    )


def worst_mistakes(answers: Sequence[JudgedAnswer]) -> list[Mistake]:
    """Returns the most confident wrong answers."""
    wrong = sorted((each for each in answers if not each.optimal), key=lambda each: -each.largest)
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


def _on_optimal(each: JudgedAnswer) -> float:
    return sum(each.probabilities[action] for action in each.state.optimal)


def _useful(each: JudgedAnswer) -> tuple[str, ...]:
    return ALL_TASKS[each.state.scene.task].useful


def _fault(error: ErrorBody) -> str:
    if error.status == 502 and error.stage:
        return f"{error.stage}, {error.fault}"
    return f"status {error.status}"


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))

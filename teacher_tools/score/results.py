"""The contents of score.json: metrics with their intervals."""

from collections.abc import Iterable
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from gridworld.intervals import mean_interval, success_interval

FORMAT = 1
"""The format of score.json."""


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Share(_Result):
    """`count` out of `of`, with Wilson's 95 % interval."""

    count: int
    of: int
    value: float
    low: float
    high: float

    @classmethod
    def among(cls, truths: Iterable[bool]) -> Self | None:
        """Returns the share of true values; None of no values."""
        all_ = list(truths)
        if not all_:
            return None
        low, high = success_interval(sum(all_), len(all_))
        return cls(count=sum(all_), of=len(all_), value=sum(all_) / len(all_), low=low, high=high)


class Mean(_Result):
    """A mean with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float] | NDArray[np.float64]) -> Self | None:
        """Returns the mean; None of no values."""
        array = np.asarray(list(values), np.float64)
        if not len(array):
            return None
        low, high = mean_interval(array)
        return cls(value=float(array.mean()), low=low, high=high)


class Failure(_Result):
    """A held-out episode without success, with all that a replay needs.

    Attributes:
        end: failure if the environment ended the episode, time_out if it ran out of steps.
    """

    seed: int
    actions: list[str]
    episode_return: float
    end: Literal["failure", "time_out"]


class PolicyResult(_Result):
    """A policy's results in the held-out episodes, and its failures; those of chance are not listed."""

    success: Share
    mean_return: Mean
    length: float
    steps_without_answer: int = 0
    failures: list[Failure] = []


class Agreement(_Result):
    """The teacher's arg-max compared with the planner, over held-out states.

    Attributes:
        optimal: the arg-max is an optimal action.
        mistakes: it is not; over the states in which some useful action is not optimal.
        uniform: the expected share of a random useful action.
        reshuffled: the expected share of the teacher's own actions, assigned to the states at random.
        by_state: for each state 1 (optimal), 0 (not optimal) or - (no answer).
    """

    optimal: Share
    mistakes: Share | None
    probability_on_optimal: Mean
    uniform: float
    reshuffled: float
    by_state: str


class Perception(_Result):
    """The analysis (stage 1) compared with the state: how often each field is right."""

    fields: dict[str, Share]
    hazards_found: Share | None
    hazards_said_are_there: Share | None


class Reasoning(_Result):
    """The action (stage 2) compared with the planner, over the answers whose analysis has fields.

    Attributes:
        given_truth: the action is optimal in the true state.
        seen_right, seen_wrong: the same, where agent, target and hazards of the analysis are right, and where
            one of them is wrong.
        given_said: the action is optimal in the state that the analysis describes, where a plan exists.
        chance_given_said: the expected share of a random useful action there.
        unplannable: the number of other analyses by reason.
    """

    given_truth: Share
    seen_right: Share | None
    seen_wrong: Share | None
    given_said: Share | None
    chance_given_said: float | None
    unplannable: dict[str, int]


class Bin(_Result):
    """The answers with a confidence above `above`, up to a bin's width more."""

    above: float
    confidence: float
    optimal: Share


class Calibration(_Result):
    """How sure a teacher is, and how often its arg-max is optimal. `error`: expected calibration error."""

    of: int
    error: float
    confidence: float
    optimal: float
    bins: list[Bin]


class Level(_Result):
    """The answers with a confidence of at least `least`: their share of all, and how many are optimal."""

    least: float
    answers: Share
    optimal: Share | None


class ConfidenceCalibration(Calibration):
    """The calibration of the answers' `confidence`, and the answers above each level."""

    levels: list[Level]


class Summary(_Result):
    """Median, 95th percentile and mean of some values."""

    median: float
    p95: float
    mean: float

    @classmethod
    def of(cls, values: list[float]) -> Self | None:
        """Returns the summary; None of no values."""
        if not values:
            return None
        median, p95 = np.percentile(values, (50, 95))
        return cls(median=float(median), p95=float(p95), mean=float(np.mean(values)))


class Costs(_Result):
    """Times and tokens of all questions of a task, and the failures.

    Attributes:
        stored: answers from the teacher's store; their times are those of the first request.
        failures: by stage and fault for an unreadable answer, else by HTTP status.
    """

    questions: int
    stored: int
    seconds: float
    failures: dict[str, int]
    analysis_ms: Summary | None
    action_ms: Summary | None
    analysis_tokens: float | None
    action_tokens: float | None
    label_mass: Summary | None
    least_label_mass: float | None


class Mistake(_Result):
    """A wrong answer: the picture (PNG in base64), the answer, and the optimal actions."""

    picture: str
    mission: str
    analysis: str
    probabilities: dict[str, float]
    action: str
    optimal: list[str]


class TaskScore(_Result):
    """All results of one environment; None where the teacher's answers allow no measurement.

    A teacher that answers about none of the states does not play.

    Attributes:
        calibration: of the largest probability, over the states with one optimal action.
        confidence: of the answers' `confidence`, over the answers that have one.
    """

    env: str
    task: str
    states: int
    sampled: PolicyResult | None
    argmax: PolicyResult | None
    chance: PolicyResult
    agreement: Agreement | None
    perception: Perception | None
    reasoning: Reasoning | None
    calibration: Calibration | None
    confidence: ConfidenceCalibration | None = None
    costs: Costs
    mistakes: list[Mistake]


class Score(_Result):
    """A teacher's score: its identity, the settings, and its results by environment."""

    format: int = FORMAT
    identity: str
    teacher: dict[str, Any]
    asked_with: dict[str, int]
    tasks: dict[str, TaskScore] = {}

"""What a score is made of: figures with their intervals, as score.json holds them."""

from collections.abc import Iterable
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from gridworld.intervals import mean_interval, success_interval

FORMAT = 1
"""Of score.json."""


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Share(_Figures):
    """`count` out of `of`, with the ends of Wilson's 95 % interval."""

    count: int
    of: int
    value: float
    low: float
    high: float

    @classmethod
    def among(cls, truths: Iterable[bool]) -> Self | None:
        """The share of those that are true; None where there are none."""
        all_ = list(truths)
        if not all_:
            return None
        low, high = success_interval(sum(all_), len(all_))
        return cls(count=sum(all_), of=len(all_), value=sum(all_) / len(all_), low=low, high=high)


class Mean(_Figures):
    """A mean with the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float] | NDArray[np.float64]) -> Self | None:
        """The mean of these; None where there are none."""
        array = np.asarray(list(values), np.float64)
        if not len(array):
            return None
        low, high = mean_interval(array)
        return cls(value=float(array.mean()), low=low, high=high)


class Failure(_Figures):
    """A held-out episode without success: all that it takes to play it again.

    end: failure where the environment ended it, time_out where it ran out of steps.
    """

    seed: int
    actions: list[str]
    episode_return: float
    end: Literal["failure", "time_out"]


class Played(_Figures):
    """How a policy does in the held-out episodes, and those without success; chance's are not listed."""

    success: Share
    mean_return: Mean
    length: float
    steps_without_answer: int = 0
    failures: list[Failure] = []


class Agreement(_Figures):
    """The teacher's arg-max against the planner, over held-out states.

    optimal: its arg-max is an optimal action. mistakes: it is not, where some useful action is not.
    by_state: for each state 1 optimal, 0 not, - no answer.
    uniform, reshuffled: what chance would get, by drawing from the useful actions alike, and by giving the
    teacher's own actions to other states than those that it said them about.
    """

    optimal: Share
    mistakes: Share | None
    probability_on_optimal: Mean
    uniform: float
    reshuffled: float
    by_state: str


class Perception(_Figures):
    """Stage 1 against the state: how often each field is right, over answers that have fields."""

    fields: dict[str, Share]
    hazards_found: Share | None
    hazards_said_are_there: Share | None


class Reasoning(_Figures):
    """Stage 2: whether the action is optimal, given the truth and given what stage 1 said.

    All over the answers whose analysis has fields. seen_right, seen_wrong: those of them whose stage 1 has
    agent, target and hazards right, and the others. given_said: in the state as stage 1 described it, where
    that can be planned in; unplannable counts the others by why. chance_given_said: of an action drawn from
    the useful ones.
    """

    given_truth: Share
    seen_right: Share | None
    seen_wrong: Share | None
    given_said: Share | None
    chance_given_said: float | None
    unplannable: dict[str, int]


class Bin(_Figures):
    """Answers with a confidence above `above` and at most 1 / BINS more."""

    above: float
    confidence: float
    optimal: Share


class Calibration(_Figures):
    """Confidence, the largest probability, against how often the arg-max is optimal.

    Over the states with one optimal action. error: the expected calibration error.
    """

    of: int
    error: float
    confidence: float
    optimal: float
    bins: list[Bin]


class Spread(_Figures):
    """Median, 95th percentile and mean."""

    median: float
    p95: float
    mean: float

    @classmethod
    def over(cls, values: list[float]) -> Self | None:
        """Of these; None where there are none."""
        if not values:
            return None
        median, p95 = np.percentile(values, (50, 95))
        return cls(median=float(median), p95=float(p95), mean=float(np.mean(values)))


class Costs(_Figures):
    """What answering took, over all questions of a task, and what was not answered.

    stored: answers that came from the teacher's store, whose times are those of when they were given.
    failures: by stage and fault where an answer could not be read, else by HTTP status.
    label_mass: median, 95th percentile and mean; least_label_mass: the smallest.
    """

    questions: int
    stored: int
    seconds: float
    failures: dict[str, int]
    analysis_ms: Spread | None
    action_ms: Spread | None
    analysis_tokens: float | None
    action_tokens: float | None
    label_mass: Spread | None
    least_label_mass: float | None


class Mistake(_Figures):
    """A wrong answer: what was asked, as a PNG in base64, what was said, what would have been right."""

    picture: str
    mission: str
    analysis: str
    probabilities: dict[str, float]
    action: str
    optimal: list[str]


class TaskScore(_Figures):
    """All figures of one environment; what the teacher's answers do not allow is None.

    A teacher that answers about none of the states is not played.
    """

    env: str
    task: str
    states: int
    sampled: Played | None
    argmax: Played | None
    chance: Played
    agreement: Agreement | None
    perception: Perception | None
    reasoning: Reasoning | None
    calibration: Calibration | None
    costs: Costs
    mistakes: list[Mistake]


class Score(_Figures):
    """A teacher's score: who it is, how it was asked, and its figures by environment."""

    format: int = FORMAT
    identity: str
    teacher: dict[str, Any]
    asked_with: dict[str, int]
    tasks: dict[str, TaskScore] = {}

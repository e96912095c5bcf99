"""The vision check: a model has to tell apart two pictures that differ in one tile."""

import math
from collections.abc import Sequence
from itertools import starmap

from gridworld.pictures import draw
from gridworld.views import code
from teacher_api.schemas import VisionCheck
from teacher_server.teachers.base import ModelTeacher, Observation, UnreadableAnswer
from teacher_server.teachers.prompted import trial_grid

_MIN_DIFFERENCE = 1e-4
"""Nats. In float32, rounding causes up to 1e-5."""
_TIMES_REPEATED = 3.0
_TOLERANCE = 1e-3


class VisionCheckFailed(Exception):
    """The model does not see, or gives no probabilities or no answer; the message says which."""


async def check_vision(teacher: ModelTeacher, *, allow_unreadable: bool = False) -> VisionCheck:
    """Checks that a started teacher sees a change of one tile: lava in front of the agent instead of nothing.

    The check reads the labels' log-probabilities directly after each picture, twice. They have to be
    log-probabilities, and between the pictures one of them has to differ by more than 0.0001 nats and by more
    than three times the difference between two readings of one picture, which rounding causes. Random weights
    pass: the check asks only that the picture's content reaches the labels. It also asks for two whole
    answers, of which at least one has to be readable.

    Args:
        allow_unreadable: pass a teacher of which no answer is readable.

    Returns:
        The differences, in nats, and the number of readable answers.

    Raises:
        VisionCheckFailed: the teacher does not pass.
        EngineError: the engine failed.
    """
    tile = teacher.prompts.preparation.drawn
    pictures = [draw(trial_grid(5), tile), draw(trial_grid(5, ahead=code("lava", "red")), tile)]
    task, actions = next(iter(teacher.tasks.items()))
    readable, why = 0, ""
    for picture in pictures:
        try:
            await teacher.answer(Observation(picture, "", task, actions))
            readable += 1
        except UnreadableAnswer as error:
            if error.fault in ("engine", "scores"):
                raise VisionCheckFailed(f"vision check: no answer to a picture: {error}") from error
            why = str(error)
    if not readable and not allow_unreadable:
        raise VisionCheckFailed(
            f"vision check: neither of two answers is readable ({why}); set `allow_unreadable` to serve the"
            " checkpoint anyway"
        )
    # One after another, so that all are computed alike
    first, second = [[await teacher.label_scores(picture) for picture in pictures] for _ in range(2)]
    for scores in (*first, *second):
        _check(scores)
    difference = min(starmap(_difference, (first, second)))
    repeated = max(map(_difference, first, second))
    if not difference > max(_MIN_DIFFERENCE, _TIMES_REPEATED * repeated):
        raise VisionCheckFailed(
            "vision check: changing one tile moves the label log-probabilities by"
            f" {difference:.2g} nats, and asking twice about one picture by {repeated:.2g}: check that the"
            " vision weights belong to this checkpoint"
        )
    return VisionCheck(apart=difference, repeat=repeated, readable=readable)


def _check(scores: Sequence[float]) -> None:
    if not all(map(math.isfinite, scores)):
        raise VisionCheckFailed(
            "vision check: the label scores are not numbers: check the weights, and `dtype`"
        )
    if math.fsum(map(math.exp, scores)) > 1 + _TOLERANCE:
        raise VisionCheckFailed(f"vision check: the label scores are not log-probabilities: {list(scores)}")


def _difference(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))

"""Two pictures that differ in one tile: whoever sees must tell them apart."""

import math
from collections.abc import Sequence
from itertools import starmap

from gridworld.pictures import draw
from gridworld.views import code
from teacher_api.schemas import Sight
from teacher_server.teachers.base import ModelTeacher, Observation, UnreadableAnswer
from teacher_server.teachers.prompted import room

_LEAST_APART = 1e-4
"""Nats. Rounding makes up to 1e-5 of it in float32."""
_TIMES_REPEAT = 3.0
_TOLERANCE = 1e-3


class Blind(Exception):
    """A checkpoint that does not see, gives no probabilities, or no answer; the message says which."""


async def tell_apart(teacher: ModelTeacher, *, unreadable: bool = False) -> Sight:
    """Asks a started teacher about a room, and about the same room with lava in front of the agent.

    The labels' log-probabilities are read straight after the picture, twice for each. They have to be those
    of probabilities, and between the pictures they have to differ by more than 0.0001 nats and three times as
    much as between two askings about one picture: that is what rounding makes. This asks no more of the
    weights than that what is in the picture reaches the labels, which random ones do too. Whole answers are
    asked for as well, and one of them at least has to be readable.

    Args:
        unreadable: a teacher of which no answer can be read passes too.

    Raises:
        Blind: it failed.
        EngineError: the engine failed.
    """
    pictures = [draw(room(5)), draw(room(5, ahead=code("lava", "red")))]
    task, actions = next(iter(teacher.tasks.items()))
    readable, why = 0, ""
    for picture in pictures:
        try:
            await teacher.answer(Observation(picture, "", task, actions))
            readable += 1
        except UnreadableAnswer as error:
            if error.fault in ("engine", "scores"):
                raise Blind(f"asked about a picture, it gives no answer: {error}") from error
            why = str(error)
    if not readable and not unreadable:
        raise Blind(
            f"neither of two answers can be read ({why}); --allow-unreadable (allow_unreadable over HTTP) has"
            " it served all the same"
        )
    # One after the other, so that all are computed alike
    first, second = [[await teacher.label_scores(picture) for picture in pictures] for _ in range(2)]
    for scores in (*first, *second):
        _check(scores)
    apart = min(starmap(_difference, (first, second)))
    repeat = max(map(_difference, first, second))
    if not apart > max(_LEAST_APART, _TIMES_REPEAT * repeat):
        raise Blind(
            "it does not tell two pictures apart that differ in one tile: its scores differ by"
            f" {apart:.2g} nats, and by {repeat:.2g} when it is asked twice about one picture; do its vision"
            " weights belong to it?"
        )
    return Sight(apart=apart, repeat=repeat, readable=readable)


def _check(scores: Sequence[float]) -> None:
    if not all(map(math.isfinite, scores)):
        raise Blind("its scores are not numbers: look at the weights, and at --dtype")
    if math.fsum(map(math.exp, scores)) > 1 + _TOLERANCE:
        raise Blind(f"its scores are no log-probabilities: {list(scores)}")


def _difference(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))

"""A teacher of your own: a rule for CartPole, which pushes the cart to the side that the pole leans to.

It sees one picture, and so no velocities: it keeps the pole up for about 40 steps, and a student outgrows it.
`PYTHONPATH=examples teacher serve --port 8000 --teacher cart_pole:LeanRule`, and
`student train --env CartPole-v1 --task cart_pole --teacher http://127.0.0.1:8000 --teacher-budget 2000`
"""

from typing import ClassVar

import numpy as np

from teacher_server.teachers.base import CannotAnswer, Observation

_POLE, _AXLE = (202, 152, 101), (129, 132, 203)
"""Colours of CartPole's drawing."""
_SHARPNESS = 30.0


class LeanRule:
    """Finds the pole and its axle by their colours."""

    identity: ClassVar = {"rule": "lean", "sharpness": _SHARPNESS}
    tasks: ClassVar = {"cart_pole": ("left", "right")}

    def answer(self, observation: Observation) -> tuple[dict[str, float], str]:
        """Returns a logistic function of the sine of the pole's angle, and the angle in words."""
        pole_N2, axle_N2 = (np.argwhere((observation.picture == colour).all(2)) for colour in (_POLE, _AXLE))
        if not len(pole_N2) or not len(axle_N2):
            raise CannotAnswer("image", "the picture shows no pole")
        down, right = pole_N2.mean(0) - axle_N2.mean(0)
        lean = float(right / np.hypot(right, down))
        to_right = 1 / (1 + np.exp(-_SHARPNESS * lean))
        return {"left": 1 - to_right, "right": to_right}, f"The pole leans by {lean:+.2f} to the right."

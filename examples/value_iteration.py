"""A teacher of your own: the optimal policy of a table, by value iteration, found by looking the picture up.

`PYTHONPATH=examples teacher serve --port 8000 --teacher value_iteration:FrozenLake`, and
`student train --env FrozenLake-v1@is_slippery=false --task frozen_lake --teacher http://127.0.0.1:8000`
"""

from typing import Any, ClassVar

import numpy as np

from teacher_server.teachers.base import CannotAnswer, Observation
from worlds.general import make
from worlds.registry import world_of

_DISCOUNT, _TEMPERATURE = 0.95, 0.01


class ValueIteration:
    """Gives the optimal actions of one of Gymnasium's toy_text environments, whose table is `unwrapped.P`."""

    task: ClassVar[str]
    env_id: ClassVar[str]

    def __init__(self) -> None:
        actions = world_of(self.env_id).actions
        self.identity = {"env": self.env_id, "discount": _DISCOUNT, "temperature": _TEMPERATURE}
        self.tasks = {self.task: actions}
        env = make(self.env_id)
        env.reset(seed=0)
        inner: Any = env.unwrapped
        self._values_SA = _values(inner.P)
        self._states: dict[bytes, int] = {}
        for state in range(len(inner.P)):
            for last in (None, *range(len(actions))):  # the picture shows the last action too
                inner.s, inner.lastaction = state, last
                self._states[inner.render().tobytes()] = state

    def answer(self, observation: Observation) -> dict[str, float]:
        """Returns a softmax of the values, which is sharp."""
        state = self._states.get(observation.picture.tobytes())
        if state is None:
            raise CannotAnswer("image", f"this is no picture of {self.identity['env']}")
        values_A = self._values_SA[state]
        weights_A = np.exp((values_A - values_A.max()) / _TEMPERATURE)
        (actions,) = self.tasks.values()
        return dict(zip(actions, (weights_A / weights_A.sum()).tolist(), strict=True))


def _values(table: Any) -> Any:
    """Returns the value of each action in each state, [S, A]; `table` is as FrozenLake's P."""
    values_SA = np.zeros((len(table), len(table[0])))
    while True:
        before_SA = values_SA.copy()
        for state, action in np.ndindex(values_SA.shape):
            values_SA[state, action] = sum(
                p * (reward + _DISCOUNT * values_SA[after].max() * (not ended))
                for p, after, reward, ended in table[state][action]
            )
        if np.abs(values_SA - before_SA).max() < 1e-9:
            return values_SA


class FrozenLake(ValueIteration):
    """The 4 x 4 lake that is not slippery."""

    task, env_id = "frozen_lake", "FrozenLake-v1@is_slippery=false"


class FrozenLake8x8(ValueIteration):
    """The 8 x 8 lake that is not slippery."""

    task, env_id = "frozen_lake", "FrozenLake8x8-v1@is_slippery=false"


class SlipperyFrozenLake(ValueIteration):
    """The 4 x 4 lake that is slippery."""

    task, env_id = "frozen_lake", "FrozenLake-v1"


class CliffWalking(ValueIteration):
    """The cliff."""

    task, env_id = "cliff_walking", "CliffWalking-v1"


class Taxi(ValueIteration):
    """The taxi."""

    task, env_id = "taxi", "Taxi-v4"

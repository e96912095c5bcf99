"""A teacher of your own: the optimal policy of a table, by value iteration, found by looking the picture up.

`PYTHONPATH=examples teacher serve --port 8000 --teacher value_iteration:FrozenLake`, and
`student train --env FrozenLake-v1@is_slippery=false --task frozen_lake --teacher http://127.0.0.1:8000`
"""

from typing import Any, ClassVar

from teacher_server.teachers.base import CannotAnswer, Observation
from worlds.general import make
from worlds.registry import world_of
from worlds.tables import action_values, optimal_policy


class ValueIteration:
    """Gives the optimal actions of one of Gymnasium's toy_text environments, whose table is `unwrapped.P`."""

    task: ClassVar[str]
    env_id: ClassVar[str]

    def __init__(self) -> None:
        actions = world_of(self.env_id).actions
        self.identity = {"env": self.env_id, "version": 1}
        self.tasks = {self.task: actions}
        env = make(self.env_id)
        env.reset(seed=0)
        inner: Any = env.unwrapped
        self._values_SA = action_values(inner.P)
        self._states: dict[bytes, int] = {}
        for state in range(len(inner.P)):
            for last in (None, *range(len(actions))):  # the picture shows the last action too
                inner.s, inner.lastaction = state, last
                self._states[inner.render().tobytes()] = state

    def answer(self, observation: Observation) -> dict[str, float]:
        """Returns the optimal actions, with equal probabilities."""
        state = self._states.get(observation.picture.tobytes())
        if state is None:
            raise CannotAnswer("image", f"this is no picture of {self.identity['env']}")
        (actions,) = self.tasks.values()
        return dict(zip(actions, optimal_policy(self._values_SA[state]).tolist(), strict=True))


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

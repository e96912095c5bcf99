"""Worked examples of Gymnasium's toy_text environments: states after given actions, exactly analysed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gridworld.pictures import Picture
from worlds.general import make
from worlds.registry import world_of
from worlds.tables import action_values, optimal_policy
from worlds.toy_text import ToyScene, toy_scene

_STEPS = {
    **{"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)},
    **{"west": (0, -1), "east": (0, 1), "north": (-1, 0), "south": (1, 0)},
}
_HAZARDS = {"frozen_lake": "a hole", "cliff_walking": "the cliff"}


def best_of(probabilities: Mapping[str, float]) -> str:
    """Returns the most probable action.

    Raises:
        ValueError: two actions are equally good, so the example would teach neither.
    """
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    if ranked[0][1] - ranked[1][1] < 0.1:
        raise ValueError(f"{ranked[0][0]} and {ranked[1][0]} are equally good; choose another state")
    return ranked[0][0]


@dataclass(frozen=True)
class Example:
    """A state; `probabilities` are those of its actions, by name: equally good ones are equally probable."""

    task: str
    scene: ToyScene
    probabilities: dict[str, float]
    picture: Picture
    mission: str = ""

    def analysis(self) -> dict[str, Any]:
        """Returns a perfect analysis."""
        return self.scene.analysis() | {"reasoning": self._reasoning()}

    def _reasoning(self) -> str:
        best, (row, column) = best_of(self.probabilities), self.scene.agent
        if best == "pickup":
            return "The taxi is at the passenger's stop, so I pick the passenger up."
        if best == "dropoff":
            return "The passenger is in the taxi and this is the destination, so I drop the passenger off."
        beside = {name: (row + dy, column + dx) for name, (dy, dx) in _STEPS.items()}
        remarks = [
            f"The next cell {action} is {_HAZARDS[self.task]}: I must not go there."
            for action in self.probabilities
            if beside.get(action) in self.scene.hazards
        ]
        to_row, to_column = beside[best]
        way = f"The shortest way to the {self.scene.name} goes {best}, to row {to_row}, column {to_column}."
        return " ".join([*remarks[:1], way])


def scene_of(task: str, environment: str, seed: int, steps: list[str]) -> Example:
    """Returns the state after these actions.

    Raises:
        ValueError: the episode ends before the last action, or the environment is not known.
    """
    env, actions = make(environment), world_of(environment).actions
    env.reset(seed=seed)
    for step in steps:
        _, _, terminated, truncated, _ = env.step(actions.index(step))
        if terminated or truncated:
            raise ValueError(f"{environment}, seed {seed}: the episode ends after {step}")
    inner: Any = env.unwrapped
    policy = optimal_policy(action_values(inner.P)[inner.s]).tolist()
    picture = np.asarray(env.render(), np.uint8)
    return Example(task, toy_scene(inner), dict(zip(actions, policy, strict=True)), picture)

"""Worked examples of Gymnasium's toy_text environments: states after given actions, exactly analysed."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gridworld.pictures import Picture
from worlds.general import make
from worlds.registry import world_of
from worlds.tables import action_values, optimal_policy

Cell = tuple[int, int]
"""Row and column."""

_STEPS = {
    **{"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)},
    **{"west": (0, -1), "east": (0, 1), "north": (-1, 0), "south": (1, 0)},
}
_STOPS = ("red", "green", "yellow", "blue")
_IN_TAXI = 4
"""The passenger's place, where it is not the number of a stop."""


@dataclass(frozen=True)
class Scene:
    """A state of an environment.

    Attributes:
        probabilities: of its actions, by name; equally good actions are equally probable.
    """

    agent: Cell
    target: Cell
    name: str
    hazards: tuple[Cell, ...]
    hazard: str
    probabilities: dict[str, float]
    picture: Picture
    mission: str = ""

    def best(self) -> str:
        """Returns the best action.

        Raises:
            ValueError: two actions are equally good, so the example would teach neither.
        """
        ranked = sorted(self.probabilities.items(), key=lambda item: -item[1])
        if ranked[0][1] - ranked[1][1] < 0.1:
            raise ValueError(f"{ranked[0][0]} and {ranked[1][0]} are equally good; choose another state")
        return ranked[0][0]

    def analysis(self) -> dict[str, Any]:
        """Returns a perfect analysis."""
        (row, column), (to_row, to_column) = self.agent, self.target
        vertical = ("up", "", "down")[int(np.sign(to_row - row)) + 1]
        horizontal = ("left", "", "right")[int(np.sign(to_column - column)) + 1]
        return {
            "agent": {"row": row, "column": column},
            "target": {"name": self.name, "row": to_row, "column": to_column},
            "hazards": [list(cell) for cell in self.hazards],
            "direction": "-".join(part for part in (vertical, horizontal) if part) or "here",
            "reasoning": self._reasoning(),
        }

    def _reasoning(self) -> str:
        best, (row, column) = self.best(), self.agent
        if best == "pickup":
            return "The taxi is at the passenger's stop, so I pick the passenger up."
        if best == "dropoff":
            return "The passenger is in the taxi and this is the destination, so I drop the passenger off."
        beside = {name: (row + dy, column + dx) for name, (dy, dx) in _STEPS.items()}
        remarks = [
            f"The next cell {action} is {self.hazard}: I must not go there."
            for action in self.probabilities
            if beside.get(action) in self.hazards
        ]
        to_row, to_column = beside[best]
        way = f"The shortest way to the {self.name} goes {best}, to row {to_row}, column {to_column}."
        return " ".join([*remarks[:1], way])


def scene_of(environment: str, seed: int, steps: list[str]) -> Scene:
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
    values_SA = action_values(inner.P)
    policy = dict(zip(actions, optimal_policy(values_SA[inner.s]).tolist(), strict=True))
    return Scene(**_described(inner), probabilities=policy, picture=np.asarray(env.render(), np.uint8))


def _described(inner: Any) -> dict[str, Any]:
    """Returns the scene's cells and names, from the environment's own state."""
    kind = type(inner).__name__
    if kind == "FrozenLakeEnv":
        ((goal_row, goal_column),) = np.argwhere(inner.desc == b"G").tolist()
        holes = tuple((row, column) for row, column in np.argwhere(inner.desc == b"H").tolist())
        agent = divmod(int(inner.s), inner.ncol)
        return {"agent": agent, "target": (goal_row, goal_column), "name": "flag"} | _hazards(holes, "a hole")
    if kind == "CliffWalkingEnv":
        agent = divmod(int(inner.s), inner.shape[1])
        last = (inner.shape[0] - 1, inner.shape[1] - 1)
        cliff = tuple((last[0], column) for column in range(1, last[1]))
        return {"agent": agent, "target": last, "name": "flag"} | _hazards(cliff, "the cliff")
    if kind == "TaxiEnv":
        row, column, passenger, destination = map(int, inner.decode(inner.s))
        stop = destination if passenger == _IN_TAXI else passenger
        what = "destination" if passenger == _IN_TAXI else "passenger"
        found = {"agent": (row, column), "target": inner.locs[stop], "name": f"{what} at {_STOPS[stop]}"}
        return found | _hazards((), "")
    raise ValueError(f"no example is made of a {kind}")


def _hazards(cells: tuple[Cell, ...], name: str) -> dict[str, Any]:
    return {"hazards": cells, "hazard": name}

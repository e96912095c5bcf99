"""What a state of Gymnasium's toy_text environments shows: FrozenLake, CliffWalking and Taxi."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gridworld.scenes import Cell
from gridworld.views import EMPTY, View, code

_STOPS = ("red", "green", "yellow", "blue")
_IN_TAXI = 4
"""The passenger's place, where it is not the number of a stop."""


@dataclass(frozen=True)
class ToyScene:
    """What there is to see in a state.

    Attributes:
        target, name: the cell that the agent has to reach next, and what is there.
        hazards: cells, row by row.
        shape: rows and columns of the grid.
        walled: whether there are walls between cells, which no cell shows.
    """

    agent: Cell
    target: Cell
    name: str
    hazards: tuple[Cell, ...]
    shape: tuple[int, int]
    walled: bool = False

    def analysis(self) -> dict[str, Any]:
        """Returns agent, target, hazards and direction, as the prompt set `toy-text` asks for them."""
        (row, column), (to_row, to_column) = self.agent, self.target
        vertical = ("up", "", "down")[int(np.sign(to_row - row)) + 1]
        horizontal = ("left", "", "right")[int(np.sign(to_column - column)) + 1]
        return {
            "agent": {"row": row, "column": column},
            "target": {"name": self.name, "row": to_row, "column": to_column},
            "hazards": [list(cell) for cell in self.hazards],
            "direction": "-".join(part for part in (vertical, horizontal) if part) or "here",
        }

    def view(self) -> View | None:
        """Returns the scene in MiniGrid's cells: hazards are lava, the target is a goal; None with walls."""
        if self.walled:
            return None
        cells_HW = np.full(self.shape, EMPTY, np.uint8)
        cells_HW[self.target] = code("goal", "green")
        for cell in self.hazards:
            cells_HW[cell] = code("lava")
        return View(cells_HW, self.agent[1], self.agent[0], 0)


def toy_scene(inner: Any) -> ToyScene:
    """Returns the scene of an environment's present state.

    Args:
        inner: the environment without wrappers.

    Raises:
        ValueError: the environment is another one.
    """
    kinds = {kind.__name__ for kind in type(inner).__mro__}
    if "FrozenLakeEnv" in kinds:
        ((row, column),) = np.argwhere(inner.desc == b"G").tolist()
        holes = tuple((y, x) for y, x in np.argwhere(inner.desc == b"H").tolist())
        return ToyScene(divmod(int(inner.s), inner.ncol), (row, column), "flag", holes, inner.desc.shape)
    if "CliffWalkingEnv" in kinds:
        rows, columns = inner.shape
        cliff = tuple((rows - 1, column) for column in range(1, columns - 1))
        return ToyScene(divmod(int(inner.s), columns), (rows - 1, columns - 1), "flag", cliff, inner.shape)
    if "TaxiEnv" in kinds:
        row, column, passenger, destination = map(int, inner.decode(inner.s))
        stop = destination if passenger == _IN_TAXI else passenger
        what = "destination" if passenger == _IN_TAXI else "passenger"
        name = f"{what} at {_STOPS[stop]}"
        return ToyScene((row, column), inner.locs[stop], name, (), (5, 5), walled=True)
    raise ValueError(f"a {type(inner).__name__} is none of FrozenLake, CliffWalking and Taxi")

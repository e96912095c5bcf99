"""A full view of a grid as plain numbers: what a picture shows, and all that a student sees."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.world_object import WorldObj
from numpy.typing import NDArray

N_KINDS, N_COLOURS, N_STATES = len(OBJECT_TO_IDX), len(COLOR_TO_IDX), 3
N_CELL_CODES = N_KINDS * N_COLOURS * N_STATES
"""Cell codes are 0 .. N_CELL_CODES - 1, one for each (object, colour, state) of MiniGrid's encoding."""

HEADINGS = ("right", "down", "left", "up")
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""(dx, dy) of one step forward, by heading; y grows downwards."""


def code(kind: str, colour: str = "red", state: int = 0) -> int:
    """The cell code of an object by MiniGrid's names; state is 0 open, 1 closed, 2 locked for doors."""
    return (OBJECT_TO_IDX[kind] * N_COLOURS + COLOR_TO_IDX[colour]) * N_STATES + state


def uncode(cell: int) -> tuple[int, int, int]:
    """MiniGrid's (object, colour, state) of a cell code."""
    rest, state = divmod(cell, N_STATES)
    kind, colour = divmod(rest, N_COLOURS)
    return kind, colour, state


def names_of(cell: int) -> tuple[str, str]:
    """MiniGrid's names of a cell's kind and colour."""
    kind, colour, _ = uncode(cell)
    return _KINDS[kind], _COLOURS[colour]


_KINDS, _COLOURS = tuple(OBJECT_TO_IDX), tuple(COLOR_TO_IDX)
NAMES = (*_KINDS, *_COLOURS)
"""The words for what a cell can hold, as missions use them."""

EMPTY = code("empty")

_STATELESS = {(kind, colour): code(kind, colour) for kind in OBJECT_TO_IDX for colour in COLOR_TO_IDX}


def _code_of(thing: WorldObj) -> int:
    cell = _STATELESS[thing.type, thing.color]
    return cell + int(thing.encode()[2]) if thing.type == "door" else cell


def encode_cells(grid: Grid) -> bytes:
    """One cell code a byte, row by row from the top left: height x width bytes."""
    return bytes([EMPTY if thing is None else _code_of(thing) for thing in grid.grid])


@dataclass(frozen=True, eq=False)
class View:
    """cells_HW: uint8 cell codes, without the agent; the agent's column x, row y and heading 0..3."""

    cells_HW: NDArray[np.uint8]
    x: int
    y: int
    heading: int

    @property
    def front(self) -> tuple[int, int]:
        """(x, y) of the cell in front of the agent; it may lie outside the grid."""
        dx, dy = STEPS[self.heading]
        return self.x + dx, self.y + dy

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, View):
            return NotImplemented
        pose = (self.x, self.y, self.heading)
        return pose == (other.x, other.y, other.heading) and np.array_equal(self.cells_HW, other.cells_HW)

    __hash__ = None  # type: ignore[assignment]


def view_of(env: Any) -> View:
    """The full view of a (possibly wrapped) MiniGrid environment in its present state."""
    world = env.unwrapped
    cells_C = np.frombuffer(encode_cells(world.grid), np.uint8)
    x, y = world.agent_pos
    return View(cells_C.reshape(world.grid.height, world.grid.width), int(x), int(y), int(world.agent_dir))

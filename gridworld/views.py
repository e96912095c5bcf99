"""Full views of a grid as numbers: what a picture shows, and what a student observes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Box, Door, Floor, Goal, Key, Lava, Wall, WorldObj
from numpy.typing import NDArray

KINDS = ("unseen", "empty", "wall", "floor", "door", "key", "ball", "box", "goal", "lava", "agent")
COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
"""MiniGrid's kinds and colours by their numbers, copied because other packages add to MiniGrid's tables."""
NAMES = (*KINDS, *COLOURS)
"""The words that missions use for the contents of cells."""
N_KINDS, N_COLOURS, N_STATES = len(KINDS), len(COLOURS), 3
N_CELL_CODES = N_KINDS * N_COLOURS * N_STATES
"""Cell codes are 0 .. N_CELL_CODES - 1: one for each (kind, colour, state) of MiniGrid's encoding."""

HEADINGS = ("right", "down", "left", "up")
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""(dx, dy) of one step forward, by heading; y grows downwards."""

CLASSES: dict[str, type[WorldObj]] = {
    "wall": Wall,
    "floor": Floor,
    "door": Door,
    "key": Key,
    "ball": Ball,
    "box": Box,
    "goal": Goal,
    "lava": Lava,
}
"""MiniGrid's classes of objects."""


class Unobservable(ValueError):
    """A view cannot show a state: the grid has another size, or an object that is none of MiniGrid's."""


def code(kind: str, colour: str = "red", state: int = 0) -> int:
    """Returns the cell code of an object by MiniGrid's names; a door's state: 0 open, 1 closed, 2 locked."""
    return (KINDS.index(kind) * N_COLOURS + COLOURS.index(colour)) * N_STATES + state


def uncode(cell: int) -> tuple[int, int, int]:
    """Returns the numbers (kind, colour, state) of a cell code."""
    rest, state = divmod(cell, N_STATES)
    kind, colour = divmod(rest, N_COLOURS)
    return kind, colour, state


def names_of(cell: int) -> tuple[str, str]:
    """Returns the names of a cell's kind and colour."""
    kind, colour, _ = uncode(cell)
    return KINDS[kind], COLOURS[colour]


EMPTY = code("empty")
PICKABLE = tuple(code(kind, colour) for kind in ("key", "ball", "box") for colour in COLOURS)
"""The codes of what the agent can carry."""

_codes: dict[tuple[type[WorldObj], str, str], int] = {}
"""The codes in state 0 of objects met so far, by class, type and colour."""


def encode_thing(thing: WorldObj) -> int:
    """Returns the code of an object.

    Raises:
        Unobservable: see `encode_cells`.
    """
    try:
        cell = _codes[type(thing), thing.type, thing.color]
    except KeyError:
        cell = _codes[type(thing), thing.type, thing.color] = _new_code(thing)
    if thing.type != "door":
        return cell
    # By the attributes that draw a door: a subclass may encode more states
    return cell + (0 if thing.is_open else 2 if thing.is_locked else 1)  # type: ignore[attr-defined]


def _new_code(thing: WorldObj) -> int:
    kind, colour = thing.type, thing.color
    if kind not in CLASSES or colour not in COLOURS:
        a = "an" if colour[:1] in "aeiou" else "a"
        raise Unobservable(
            f"{a} {colour} {kind} is none of MiniGrid's objects: {', '.join(CLASSES)} in"
            f" {', '.join(COLOURS[:-1])} and {COLOURS[-1]}"
        )
    if type(thing).render is not CLASSES[kind].render:
        raise Unobservable(
            f"{type(thing).__name__}, a {colour} {kind}, has its own render(), so that its picture is not"
            f" MiniGrid's: remove render() to inherit that of {CLASSES[kind].__name__}"
        )
    return code(kind, "red" if kind == "lava" else colour)  # lava looks the same in all colours


def encode_cells(grid: Grid) -> bytes:
    """Returns one byte per cell, its code, row by row from the top left: height x width bytes.

    Raises:
        Unobservable: an object in the grid is not drawn as one of MiniGrid's.
    """
    return bytes([EMPTY if thing is None else encode_thing(thing) for thing in grid.grid])


@dataclass(frozen=True, eq=False)
class View:
    """A grid and its agent.

    Attributes:
        cells_HW: uint8 cell codes, without the agent.
        x: the agent's column.
        y: the agent's row.
        heading: the agent's heading, an index of HEADINGS.
        carried: the code of what the agent carries; None: nothing.
    """

    cells_HW: NDArray[np.uint8]
    x: int
    y: int
    heading: int
    carried: int | None = None

    @property
    def front(self) -> tuple[int, int]:
        """(x, y) of the cell in front of the agent; it may lie outside the grid."""
        dx, dy = STEPS[self.heading]
        return self.x + dx, self.y + dy

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, View):
            return NotImplemented
        agents = [(view.x, view.y, view.heading, view.carried) for view in (self, other)]
        return agents[0] == agents[1] and np.array_equal(self.cells_HW, other.cells_HW)

    __hash__ = None  # type: ignore[assignment]


def view_of(env: Any) -> View:
    """Returns the full view of a (possibly wrapped) MiniGrid environment in its present state.

    Raises:
        Unobservable: see `encode_cells`.
    """
    world = env.unwrapped
    cells_C = np.frombuffer(encode_cells(world.grid), np.uint8)
    x, y = world.agent_pos
    carried = None if world.carrying is None else encode_thing(world.carrying)
    cells_HW = cells_C.reshape(world.grid.height, world.grid.width)
    return View(cells_HW, int(x), int(y), int(world.agent_dir), carried)

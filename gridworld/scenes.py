"""What there is to see in a view: the agent, the target and the hazards of a task, by their names."""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gridworld.views import COLOURS, HEADINGS, N_CELL_CODES, STEPS, View, code, names_of

Cell = tuple[int, int]
"""Row, column."""


def _name(kind: str, colour: str) -> str:
    if kind in ("empty", "lava"):
        return "free floor" if kind == "empty" else "lava"
    if kind == "goal":
        return f"{colour} goal square"
    return "wall" if (kind, colour) == ("wall", "grey") else f"{colour} {kind}"


_NAMES = tuple(_name(*names_of(cell)) for cell in range(N_CELL_CODES))
"""Of what is in a cell, by its code: the words of the mission and of the rules."""
_HAZARDS = {
    "lava_gap": ("lava",),
    "dynamic_obstacles": ("ball",),
    "fetch": ("key", "ball"),
    "go_to_door": ("door",),
    "go_to_object": ("key", "ball", "box"),
}
"""How the names of a task's hazards end; what the mission asks for is none."""
_DIRECTIONS = {
    (1, 0): "ahead",
    (1, -1): "ahead-left",
    (0, -1): "left",
    (-1, -1): "behind-left",
    (-1, 0): "behind",
    (-1, 1): "behind-right",
    (0, 1): "right",
    (1, 1): "ahead-right",
    (0, 0): "here",
}
"""By the signs of how far the target lies ahead and to the right."""


def goal_colour(view: View, mission: str) -> str | None:
    """The colour of the goal that a mission is about: as it says, else green, else of the only one there is.

    None: it names goals of several colours; or there are several, none is green, and it names none.
    """
    colours = set(re.findall(rf"\b({'|'.join(COLOURS)}) (?:goal|square)\b", mission.lower()))
    if not colours:
        colours = {colour for colour in COLOURS if (view.cells_HW == code("goal", colour)).any()}
        if "green" in colours or not colours:
            return "green"
    return colours.pop() if len(colours) == 1 else None


@dataclass(frozen=True)
class Scene:
    """A view, the task that is set in it and the mission's text."""

    task: str
    mission: str
    view: View

    @property
    def key(self) -> Hashable:
        """Equal for scenes that are equal."""
        view = self.view
        return (
            self.task,
            self.mission,
            view.cells_HW.tobytes(),
            view.cells_HW.shape,
            view.x,
            view.y,
            view.heading,
        )

    @property
    def here(self) -> Cell:
        """The agent's cell."""
        return self.view.y, self.view.x

    @property
    def heading(self) -> str:
        """Up, down, left or right."""
        return HEADINGS[self.view.heading]

    def name(self, cell: Cell) -> str:
        """What is in a cell: the words of the mission and of the rules."""
        return _NAMES[int(self.view.cells_HW[cell])]

    def cells(self, *words: str) -> list[Cell]:
        """The cells whose name ends with one of the words, row by row."""
        found_HW = _ending_with(words)[self.view.cells_HW]
        return [(y, x) for y, x in np.argwhere(found_HW).tolist()]

    @property
    def front(self) -> str:
        """What is in front of the agent."""
        x, y = self.view.front
        return self.name((y, x))

    @property
    def sought(self) -> str:
        """The name of what the mission asks for."""
        if named := re.search(r"\w+ (?:key|ball|box|door)$", self.mission):
            return named.group()
        return f"{goal_colour(self.view, self.mission) or 'green'} goal square"

    @property
    def targets(self) -> list[Cell]:
        """What the mission asks for, row by row: one cell, or several that are alike."""
        return self.cells(self.sought)

    @property
    def hazards(self) -> list[Cell]:
        """What the rules call so, row by row."""
        return [cell for cell in self.cells(*_HAZARDS[self.task]) if self.name(cell) != self.sought]

    def direction(self, target: Cell) -> str:
        """Where a target lies as the agent sees it."""
        dx, dy = STEPS[self.view.heading]
        down, right = target[0] - self.here[0], target[1] - self.here[1]
        ahead, aside = np.sign(right * dx + down * dy), np.sign(down * dx - right * dy)
        return _DIRECTIONS[int(ahead), int(aside)]


@lru_cache(maxsize=256)
def _ending_with(words: tuple[str, ...]) -> NDArray[np.bool_]:
    """Whether the name of a cell ends with one of the words: bool [N_CELL_CODES]."""
    return np.array([name.endswith(words) for name in _NAMES])

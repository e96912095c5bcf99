"""Names what a view shows for a task: the agent, the target, the hazards and where they are."""

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
"""The name of each cell code, in the words of missions and rules."""
_HAZARDS = {
    "lava_gap": ("lava",),
    "dynamic_obstacles": ("ball",),
    "fetch": ("key", "ball"),
    "go_to_door": ("door",),
    "go_to_object": ("key", "ball", "box"),
}
"""The last words of the names of a task's hazards, of tasks with hazards; the target is never a hazard."""
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
"""By the signs of the target's distances ahead and to the right."""


def goal_colour(view: View, mission: str) -> str | None:
    """Returns the colour of the goal that a mission names, else green, else the colour of the only goal.

    Returns None if the mission names goals of several colours, or names none while the view has several and
    no green one.
    """
    colours = set(re.findall(rf"\b({'|'.join(COLOURS)}) (?:goal|square)\b", mission.lower()))
    if not colours:
        colours = {colour for colour in COLOURS if (view.cells_HW == code("goal", colour)).any()}
        if "green" in colours or not colours:
            return "green"
    return colours.pop() if len(colours) == 1 else None


@dataclass(frozen=True)
class Scene:
    """A view with its task and its mission."""

    task: str
    mission: str
    view: View

    @property
    def key(self) -> Hashable:
        """Equal for equal scenes."""
        view = self.view
        return (
            self.task,
            self.mission,
            view.cells_HW.tobytes(),
            view.cells_HW.shape,
            view.x,
            view.y,
            view.heading,
            view.carried,
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
        """Returns the name of what a cell holds, in the words of missions and rules."""
        return _NAMES[int(self.view.cells_HW[cell])]

    def cells(self, *words: str) -> list[Cell]:
        """Returns the cells whose name ends with one of the words, row by row."""
        found_HW = _ending_with(words)[self.view.cells_HW]
        return [(y, x) for y, x in np.argwhere(found_HW).tolist()]

    @property
    def front(self) -> str:
        """The name of what is in front of the agent."""
        x, y = self.view.front
        return self.name((y, x))

    @property
    def sought(self) -> str:
        """The name of the mission's target."""
        if named := re.search(r"\w+ (?:key|ball|box|door)$", self.mission):
            return named.group().removeprefix("the ")
        return f"{goal_colour(self.view, self.mission) or 'green'} goal square"

    @property
    def targets(self) -> list[Cell]:
        """The cells that hold the mission's target, row by row."""
        return self.cells(self.sought)

    @property
    def hazards(self) -> list[Cell]:
        """The cells that hold a hazard of the task, row by row."""
        return [cell for cell in self.cells(*_HAZARDS.get(self.task, ())) if self.name(cell) != self.sought]

    def direction(self, target: Cell) -> str:
        """Returns where a target lies from the agent's point of view."""
        dx, dy = STEPS[self.view.heading]
        down, right = target[0] - self.here[0], target[1] - self.here[1]
        ahead, aside = np.sign(right * dx + down * dy), np.sign(down * dx - right * dy)
        return _DIRECTIONS[int(ahead), int(aside)]


@lru_cache(maxsize=256)
def _ending_with(words: tuple[str, ...]) -> NDArray[np.bool_]:
    """Returns for each cell code whether its name ends with one of the words: bool [N_CELL_CODES]."""
    return np.array([name.endswith(words) for name in _NAMES])

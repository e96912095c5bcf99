"""What each task asks for in a view: the target, the action that ends the episode there, and the way."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gridworld.scenes import goal_colour
from gridworld.search import STEP
from gridworld.views import COLOURS, EMPTY, View, code

_GOALS = {colour: code("goal", colour) for colour in COLOURS}
LAVA = code("lava", "red")
_FREE = (EMPTY, *(code("floor", colour) for colour in COLOURS))
_OBJECTS = ("key", "ball", "box")
_WAIT = STEP // 4
"""Expected extra time for a ball in the path: little, since balls move at every step."""


class NoPlan(ValueError):
    """No plan exists.

    Attributes:
        field: the field of the question that is the cause: image, mission or actions.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


@dataclass(frozen=True, eq=False)
class Aim:
    """What a task asks for in a view, and where the agent can go before it opens or carries anything.

    Cells are numbered row by row.

    Attributes:
        enter_HW: quarter steps to enter a cell, 0 where the agent cannot: uint8.
        deadly_HW: whether a step forward into the cell ends the episode in failure.
        target: the target's name.
        cells: the target's cells.
        finish: the action that ends the episode in success at the target; None: being on it does.
        moved: the code of the thing that has to be put within one cell of the target.
        opened: the cells of doors that have to be open before.
    """

    enter_HW: NDArray[np.uint8]
    deadly_HW: NDArray[np.bool_]
    target: str
    cells: tuple[int, ...]
    finish: str | None
    moved: int | None = None
    opened: tuple[int, ...] = ()


def aim_of(view: View, task: str, mission: str) -> Aim:
    """Returns what a task asks for in a view.

    Raises:
        NoPlan: the mission names nothing in the view, or the episode is over.
    """
    return _AIMS[task](view, mission)


def cells_of(view: View, *codes: int) -> tuple[int, ...]:
    """Returns the numbers of the cells with one of these codes, row by row for one code after another."""
    return tuple(cell for each in codes for cell in np.flatnonzero(view.cells_HW == each).tolist())


def _lava_gap(view: View, mission: str) -> Aim:
    goal = _goal(view, mission)
    enter_HW = np.where(np.isin(view.cells_HW, (*_FREE, _GOALS[goal])), STEP, 0)
    others = [cell for colour, cell in _GOALS.items() if colour != goal]
    # On the edge, cells that look like goals are walls
    deadly_HW = (view.cells_HW == LAVA) | (np.isin(view.cells_HW, others) & ~_edge(view.cells_HW))
    return _to_goal(view, goal, enter_HW, deadly_HW)


def _dynamic_obstacles(view: View, mission: str) -> Aim:
    # MiniGrid judges a step by the cell in front before the balls move. Floor tiles count as obstacles
    goal = _goal(view, mission)
    free_HW = np.isin(view.cells_HW, (EMPTY, _GOALS[goal]))
    balls_HW = view.cells_HW == code("ball", "blue")
    return _to_goal(view, goal, np.select([free_HW, balls_HW], [STEP, STEP + _WAIT], 0), ~free_HW)


def _goal(view: View, mission: str) -> str:
    """Returns the colour of the mission's goal.

    Raises:
        NoPlan: the view does not show that goal, or shows several goals.
    """
    colour = goal_colour(view, mission)
    if colour is None:
        there = " and ".join(each for each, cell in _GOALS.items() if (view.cells_HW == cell).any())
        raise NoPlan("mission", f"the mission {mission!r} does not say which goal: the picture shows {there}")
    goals_HW = view.cells_HW == _GOALS[colour]
    if not goals_HW.any():
        raise NoPlan("image", f"the picture shows no {colour} goal square")
    if (goals_HW & _edge(view.cells_HW)).any():
        raise NoPlan(
            "image",
            f"the picture shows {colour} squares on the edge of the grid: MiniGrid draws walls and goals of"
            " one colour alike, so the goal cannot be distinguished from the walls",
        )
    return colour


def _edge(cells_HW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Returns for each cell whether it is one of the outermost: bool [H, W]."""
    edge_HW = np.ones(cells_HW.shape, np.bool_)
    edge_HW[1:-1, 1:-1] = False
    return edge_HW


def _to_goal(view: View, colour: str, enter_HW: NDArray[np.intp], deadly_HW: NDArray[np.bool_]) -> Aim:
    goals = cells_of(view, _GOALS[colour])
    return Aim(enter_HW.astype(np.uint8), deadly_HW, f"the {colour} goal square", goals, None)


def _fetch(view: View, mission: str) -> Aim:
    return _to_object(view, _named(mission, ("key", "ball")), "pickup")


def _go_to_door(view: View, mission: str) -> Aim:
    return _to_object(view, _named(mission, ("door",)), "done")


def _go_to_object(view: View, mission: str) -> Aim:
    return _to_object(view, _named(mission, _OBJECTS), "done")


def _pick_up(view: View, mission: str) -> Aim:
    return _among_lava(view, _to_object(view, _named(mission, _OBJECTS), "pickup"))


def _put_near(view: View, mission: str) -> Aim:
    thing, _, target = mission.partition(" near ")
    colour, kind = _named(thing, _OBJECTS)
    moved = code(kind, colour)
    if view.carried not in (None, moved):
        raise NoPlan("image", "the episode is over: the agent carries another thing")
    if view.carried is None and not cells_of(view, moved):
        raise NoPlan("mission", f"the mission asks for the '{colour} {kind}', and the picture shows none")
    return replace(_among_lava(view, _to_object(view, _named(target, _OBJECTS), "drop")), moved=moved)


def _open_door(view: View, mission: str) -> Aim:
    colour = re.search(rf"\b({'|'.join(COLOURS)}) door\b", mission)
    return _to_door(view, colour.group(1) if colour else None)


def _red_blue_doors(view: View, mission: str) -> Aim:
    first, _, second = mission.partition(" then ")
    aim = _to_door(view, _named(second, ("door",))[0])
    before = _to_object(view, _named(first, ("door",)), None)
    if len(before.cells) > 1:
        raise NoPlan("mission", f"the picture shows several doors that can be {before.target}")
    return replace(aim, opened=before.cells)


def _to_door(view: View, colour: str | None) -> Aim:
    """Returns the aim to open a door; None: of any colour."""
    name = "the door" if colour is None else f"the {colour} door"
    open_doors, closed, locked = (
        cells_of(view, *(code("door", each, state) for each in COLOURS if colour in (None, each)))
        for state in range(3)
    )
    if open_doors:
        raise NoPlan("image", f"the episode is over: {name} is open")
    if not closed + locked:
        raise NoPlan("mission", f"the mission asks for {name}, and the picture shows none")
    return _among_lava(view, _to_cells(view, name, closed + locked, "toggle"))


def _to_object(view: View, named: tuple[str, str], finish: str | None) -> Aim:
    """Returns the aim to act beside an object, given by colour and kind."""
    colour, kind = named
    states = range(3) if kind == "door" else (0,)
    cells = cells_of(view, *(code(kind, colour, state) for state in states))
    if not cells:
        raise NoPlan("mission", f"the mission asks for the '{colour} {kind}', and the picture shows none")
    return _to_cells(view, f"the {colour} {kind}", cells, finish)


def _to_cells(view: View, target: str, cells: tuple[int, ...], finish: str | None) -> Aim:
    enter_HW = np.where(np.isin(view.cells_HW, _FREE), STEP, 0).astype(np.uint8)
    return Aim(enter_HW, np.zeros_like(enter_HW, np.bool_), target, cells, finish)


def _among_lava(view: View, aim: Aim) -> Aim:
    return replace(aim, deadly_HW=view.cells_HW == LAVA)


def _named(mission: str, kinds: Sequence[str]) -> tuple[str, str]:
    """Returns the colour and the kind of the object that a mission names."""
    match = re.search(rf"\b({'|'.join(COLOURS)}) ({'|'.join(kinds)})\b", mission)
    if match is None:
        raise NoPlan("mission", f"the mission {mission!r} names no coloured {' or '.join(kinds)}")
    return match.group(1), match.group(2)


_AIMS: dict[str, Callable[[View, str], Aim]] = {
    "lava_gap": _lava_gap,
    "dynamic_obstacles": _dynamic_obstacles,
    "fetch": _fetch,
    "go_to_door": _go_to_door,
    "go_to_object": _go_to_object,
    "door_key": _lava_gap,
    "multi_room": _lava_gap,
    "unlock": _open_door,
    "unlock_pickup": _pick_up,
    "key_corridor": _pick_up,
    "put_near": _put_near,
    "red_blue_doors": _red_blue_doors,
}

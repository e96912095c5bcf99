"""The optimal planner: probabilities over actions in a view, with an analysis in words."""

import heapq
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gridworld.scenes import goal_colour
from gridworld.tasks import ALL_TASKS
from gridworld.views import COLOURS, EMPTY, HEADINGS, STEPS, View, code, uncode

PLANNER_VERSION = "2"
"""Part of the planner teacher's identity: increase it when any answer changes."""

TEMPERATURE = 1 / 3
"""Temperature of the softmax over steps: one step more than the best leaves 0.05 of the weight."""

_GOALS = {colour: code("goal", colour) for colour in COLOURS}
_LAVA = code("lava", "red")
_WALL = code("wall", "grey")
_FREE = (EMPTY, *(code("floor", colour) for colour in COLOURS))
_WAIT = 0.25
"""Expected extra steps for a ball in the path: few, since balls move at every step."""

Place = tuple[int, int]
"""x, y."""
Pose = tuple[int, int, int]
"""x, y, heading."""


class NoPlan(ValueError):
    """No plan exists.

    Attributes:
        field: the field of the question that is the cause: image, mission or actions.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


@dataclass(frozen=True)
class Plan:
    """Probabilities over the given actions, in their order, and the analysis in words."""

    probabilities: dict[str, float]
    analysis: str

    @property
    def best(self) -> tuple[str, ...]:
        """The most probable actions: several where they are equally good."""
        highest = max(self.probabilities.values())
        return tuple(action for action, p in self.probabilities.items() if p == highest)


@dataclass(frozen=True)
class _Problem:
    """A family's rules in one view.

    Attributes:
        enter_HW: steps to enter a cell, infinite where the agent cannot.
        deadly_HW: whether a step forward into the cell ends the episode in failure.
        poses: where the episode can end in success.
        finish: the action that ends the episode in success at one of the `poses`; None: being there does.
        misfires: whether `finish` elsewhere ends the episode in failure.
        target: the target's name.
        places: the target's (x, y).
    """

    enter_HW: NDArray[np.float64]
    deadly_HW: NDArray[np.bool_]
    poses: frozenset[Pose]
    finish: str | None
    misfires: bool
    target: str
    places: tuple[Place, ...]


def plan(view: View, task: str, mission: str, actions: Iterable[str]) -> Plan:
    """Plans with the given actions alone.

    An action's cost is the number of steps to success with this action first and optimal ones after it.
    p(a) is proportional to exp(-cost(a) / TEMPERATURE). An action that ends the episode in failure, or that
    is useless in the family, gets 0.

    Args:
        view: a full view of the grid.
        task: a family's key.
        mission: the mission's text.
        actions: MiniGrid's action names, each once.

    Raises:
        NoPlan: the mission names nothing in the view, the episode is over, or no sequence of the actions
            leads to success.
    """
    actions = tuple(actions)
    problem = _PROBLEMS[task](view, mission)
    here = (view.x, view.y, view.heading)
    if problem.finish is None and here in problem.poses:
        raise NoPlan("image", "the episode is over: the agent stands on the goal already")
    if _at(view.cells_HW, view.x, view.y) == _LAVA:
        raise NoPlan("image", "the episode is over: the agent stands in lava")
    allowed = [action for action in actions if action in ALL_TASKS[task].useful]
    to_go = _costs_to_go(problem, allowed)
    costs = {action: _cost(problem, to_go, view, action) for action in allowed}
    least = min(costs.values(), default=math.inf)
    if math.isinf(least):
        if set(ALL_TASKS[task].useful) - set(allowed):
            raise NoPlan(
                "actions",
                f"{task} cannot be solved from here with {', '.join(actions)};"
                f" it needs {', '.join(ALL_TASKS[task].useful)}",
            )
        raise NoPlan("image", f"no path leads to {problem.target}")
    weights = {action: math.exp((least - cost) / TEMPERATURE) for action, cost in costs.items()}
    total = sum(weights.values())
    probabilities = {action: weights.get(action, 0.0) / total for action in actions}
    return Plan(probabilities, _describe(view, problem, least))


def _costs_to_go(problem: _Problem, allowed: list[str]) -> dict[Pose, float]:
    """Returns the steps to success from each pose that can reach it (Dijkstra, backwards from the end)."""
    if problem.finish is not None and problem.finish not in allowed:
        return {}
    last = 0.0 if problem.finish is None else 1.0
    costs: dict[Pose, float] = {}
    queue = [(last, pose) for pose in problem.poses]
    heapq.heapify(queue)
    turns = [1 if action == "left" else -1 for action in allowed if action in ("left", "right")]
    while queue:
        cost, pose = heapq.heappop(queue)
        if pose in costs:
            continue
        costs[pose] = cost
        x, y, heading = pose
        for turn in turns:
            turned = (x, y, (heading + turn) % 4)
            if turned not in costs:
                heapq.heappush(queue, (cost + 1, turned))
        if "forward" in allowed:
            dx, dy = STEPS[heading]
            behind = (x - dx, y - dy, heading)
            entering = float(problem.enter_HW[y, x])
            if behind not in costs and math.isfinite(entering) and _inside(problem.enter_HW, *behind[:2]):
                heapq.heappush(queue, (cost + entering, behind))
    return costs


def _cost(problem: _Problem, to_go: dict[Pose, float], view: View, action: str) -> float:
    """Returns the steps to success with this action first; infinite if the action ends in failure."""
    here = (view.x, view.y, view.heading)
    stay = 1 + to_go.get(here, math.inf)
    if action in ("left", "right"):
        turn = -1 if action == "left" else 1
        return 1 + to_go.get((view.x, view.y, (view.heading + turn) % 4), math.inf)
    if action == "forward":
        x, y = view.front
        if not _inside(problem.enter_HW, x, y):
            return stay
        if problem.deadly_HW[y, x]:
            return math.inf
        entering = float(problem.enter_HW[y, x])
        return stay if math.isinf(entering) else entering + to_go.get((x, y, view.heading), math.inf)
    if here in problem.poses:
        return 1.0
    return math.inf if problem.misfires else stay


def _lava_gap(view: View, mission: str) -> _Problem:
    cells_HW, goal = view.cells_HW, _goal(view, mission)
    enter_HW = np.where(np.isin(cells_HW, (*_FREE, _GOALS[goal])), 1.0, math.inf)
    others = [cell for colour, cell in _GOALS.items() if colour != goal]
    # On the edge, cells that look like goals are walls
    deadly_HW = (cells_HW == _LAVA) | (np.isin(cells_HW, others) & ~_edge(cells_HW))
    return _to_goal(view, goal, enter_HW, deadly_HW)


def _dynamic_obstacles(view: View, mission: str) -> _Problem:
    # MiniGrid judges a step by the cell in front before the balls move. Floor tiles count as obstacles
    goal = _goal(view, mission)
    free_HW = np.isin(view.cells_HW, (EMPTY, _GOALS[goal]))
    balls_HW = view.cells_HW == code("ball", "blue")
    enter_HW = np.select([free_HW, balls_HW], [1.0, 1.0 + _WAIT], math.inf)
    return _to_goal(view, goal, enter_HW, ~free_HW)


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


def _to_goal(
    view: View, colour: str, enter_HW: NDArray[np.float64], deadly_HW: NDArray[np.bool_]
) -> _Problem:
    goals = _places(view, _GOALS[colour])
    poses = frozenset((x, y, heading) for x, y in goals for heading in range(4))
    return _Problem(enter_HW, deadly_HW, poses, None, False, f"the {colour} goal square", goals)


def _fetch(view: View, mission: str) -> _Problem:
    target, places = _named(view, mission, {"key": (0,), "ball": (0,)})
    poses = frozenset((x - dx, y - dy, heading) for x, y in places for heading, (dx, dy) in enumerate(STEPS))
    # Picking up another object ends the episode; picking up where there is none does nothing
    misfires = uncode(_at(view.cells_HW, *view.front))[0] in _PICKABLE
    return _to_object(view, poses, "pickup", misfires, target, places)


def _go_to_door(view: View, mission: str) -> _Problem:
    target, places = _named(view, mission, {"door": (0, 1, 2)})
    return _to_object(view, _beside(places), "done", True, target, places)


def _go_to_object(view: View, mission: str) -> _Problem:
    target, places = _named(view, mission, {"key": (0,), "ball": (0,), "box": (0,)})
    return _to_object(view, _beside(places), "done", True, target, places)


def _beside(places: tuple[Place, ...]) -> frozenset[Pose]:
    """Returns the poses in which `done` succeeds: next to a place, not diagonally, with any heading."""
    return frozenset((x + dx, y + dy, heading) for x, y in places for dx, dy in STEPS for heading in range(4))


def _to_object(
    view: View, poses: frozenset[Pose], finish: str, misfires: bool, target: str, places: tuple[Place, ...]
) -> _Problem:
    free_HW = np.isin(view.cells_HW, _FREE)
    standable = frozenset((*place, heading) for place in _places(view, *_FREE) for heading in range(4))
    enter_HW = np.where(free_HW, 1.0, math.inf)
    return _Problem(enter_HW, np.zeros_like(free_HW), poses & standable, finish, misfires, target, places)


def _named(view: View, mission: str, kinds: dict[str, tuple[int, ...]]) -> tuple[str, tuple[Place, ...]]:
    """Returns the name and the places of the mission's object.

    Args:
        kinds: the states of each kind of object.
    """
    match = re.search(rf"\b({'|'.join(COLOURS)}) ({'|'.join(kinds)})\b", mission)
    if match is None:
        raise NoPlan("mission", f"the mission {mission!r} names no coloured {' or '.join(kinds)}")
    colour, kind = match.groups()
    places = tuple(place for state in kinds[kind] for place in _places(view, code(kind, colour, state)))
    if not places:
        raise NoPlan("mission", f"the mission asks for the {match.group()!r}, and the picture shows none")
    return f"the {match.group()}", places


_PROBLEMS: dict[str, Callable[[View, str], _Problem]] = {
    "lava_gap": _lava_gap,
    "dynamic_obstacles": _dynamic_obstacles,
    "fetch": _fetch,
    "go_to_door": _go_to_door,
    "go_to_object": _go_to_object,
}
_PICKABLE = {uncode(code(kind))[0] for kind in ("key", "ball", "box")}


def _inside(array_HW: NDArray[np.float64], x: int, y: int) -> bool:
    height, width = array_HW.shape
    return bool(0 <= x < width and 0 <= y < height)


def _at(cells_HW: NDArray[np.uint8], x: int, y: int) -> int:
    height, width = cells_HW.shape
    return int(cells_HW[y, x]) if 0 <= x < width and 0 <= y < height else EMPTY


def _places(view: View, *codes: int) -> tuple[Place, ...]:
    """Returns (x, y) of each cell with one of these codes."""
    return tuple((int(x), int(y)) for y, x in np.argwhere(np.isin(view.cells_HW, codes)))


def _describe(view: View, problem: _Problem, steps: float) -> str:
    hazards_HW = problem.deadly_HW & (view.cells_HW != _WALL)
    hazards = tuple((int(x), int(y)) for y, x in np.argwhere(hazards_HW))
    return (
        f"Agent: column {view.x}, row {view.y}, facing {HEADINGS[view.heading]}."
        f" Target: {problem.target} at {_in_words(problem.places)}."
        f" Hazards: {_in_words(hazards) or 'none'}."
        f" Best way: about {steps:.0f} steps."
    )


def _in_words(places: tuple[Place, ...]) -> str:
    return ", ".join(f"column {x}, row {y}" for x, y in places)

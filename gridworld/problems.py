"""A view as a problem to search and the state that it is in; what each action leads to."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gridworld.aims import LAVA, Aim, NoPlan, aim_of, cells_of
from gridworld.search import LEFT_ONLY, STEP, Door, Goal, Hands, Problem, State
from gridworld.tasks import ALL_TASKS
from gridworld.views import COLOURS, EMPTY, PICKABLE, STEPS, View, code, names_of

MOST_STATES = 400_000
"""The most states of a problem; in a larger grid, fewer doors and things are followed."""

_BOXES = tuple(code("box", colour) for colour in COLOURS)
_OPEN, _CLOSED, _LOCKED = (tuple(code("door", colour, state) for colour in COLOURS) for state in range(3))
_OPENED_EACH_TIME = 2 * STEP
"""The time to enter a closed door that is not followed."""

_Thing = tuple[int, int | None]
"""The code of a thing and its cell; None: it is carried."""
Outcome = tuple[float, State | None]
_FAILURE: Outcome = math.inf, None


@dataclass(frozen=True, eq=False)
class Puzzle:
    """A view with what is asked for in it, as a problem and the state that it is in."""

    view: View
    aim: Aim
    problem: Problem
    state: State

    @property
    def is_over(self) -> bool:
        """Whether the agent is on its target."""
        return any(goal.action is None and self.state.pose in goal.poses for goal in self.problem.goals)

    def after(self, action: str) -> Outcome:
        """Returns the steps that an action takes, and the state after it; None: the end of the episode.

        The steps are infinite if the episode ends in failure, or if what follows is not known.
        """
        state = self.state
        for goal in self.problem.goals:
            if goal.action == action and state.pose in goal.poses and goal.suits(state.carried):
                return _FAILURE if any(state.shut[door] for door in goal.opened) else (1.0, None)
        if action in ("left", "right"):
            return 1.0, state.turned(1 if action == "right" else -1)
        if action == "done":
            return _FAILURE
        (x, y), (height, width) = self.view.front, self.view.cells_HW.shape
        if not (0 <= x < width and 0 <= y < height):
            return 1.0, state
        act = {
            "forward": self._forward,
            "pickup": self._pick_up,
            "drop": self._drop,
            "toggle": self._toggle,
        }
        return act[action](y * width + x, int(self.view.cells_HW[y, x])) or (1.0, state)

    def _forward(self, ahead: int, _: int) -> Outcome | None:
        if self.aim.deadly_HW.flat[ahead]:
            return _FAILURE
        enter, door = self.problem.enter[ahead], self._door(ahead)
        shut = door is not None and self.state.shut[door]
        if shut or enter in (0, LEFT_ONLY, _OPENED_EACH_TIME) or ahead in self.state.things:
            return None
        return enter / STEP, self.state.at(ahead)

    def _pick_up(self, ahead: int, cell: int) -> Outcome | None:
        if cell not in PICKABLE or self.state.carried is not None:
            return None
        return (1.0, self.state.moved(ahead, None)) if ahead in self.state.things else _FAILURE

    def _drop(self, ahead: int, cell: int) -> Outcome | None:
        if self.state.carried is not None and self.aim.moved is not None:
            return _FAILURE
        return (1.0, self.state.moved(None, ahead)) if cell == EMPTY else None

    def _toggle(self, ahead: int, cell: int) -> Outcome | None:
        if cell in _BOXES:  # nothing shows what is in it
            return _FAILURE
        enter, door = self.problem.enter[ahead], self._door(ahead)
        if enter == _OPENED_EACH_TIME:
            return enter / STEP, self.state.at(ahead)
        if door is None or not self.problem.doors[door].opens_for(self.state.carried):
            return None
        return 1.0, self.state.toggled(door)

    def _door(self, cell: int) -> int | None:
        """Returns the index of the door in a cell."""
        return next((i for i, door in enumerate(self.problem.doors) if door.cell == cell), None)


def puzzle_of(view: View, task: str, mission: str, actions: Iterable[str]) -> Puzzle:
    """Returns the puzzle of a view.

    Args:
        actions: the useful ones that may be used.

    Raises:
        NoPlan: the mission names nothing in the view, or the episode is over.
    """
    aim = aim_of(view, task, mission)
    cells, here = view.cells_HW.ravel(), view.y * view.cells_HW.shape[1] + view.x
    if cells[here] == LAVA:
        raise NoPlan("image", "the episode is over: the agent stands in lava")
    enter = aim.enter_HW.ravel().copy()
    doors: list[int] = []
    things = _things(view, aim) if ALL_TASKS[task].carries else []
    if "toggle" in ALL_TASKS[task].useful:
        doors = [cell for cell in cells_of(view, *_OPEN, *_CLOSED, *_LOCKED) if cell not in aim.cells]
    enter[doors] = enter[_lying(things)] = STEP
    holds = (cells == EMPTY) & (enter > 0)
    holds[_lying(things)] = True
    if doors or things:
        within = _within_reach(enter, view)
        enter[~within], holds[~within] = 0, False
        doors = [cell for cell in doors if within[cell]]
        things = [(thing, cell) for thing, cell in things if cell is None or within[cell]]
        _limit(doors, things, enter, holds, view, aim)
    codes = [thing for thing, _ in things]
    if not set(aim.opened) <= set(doors):
        raise NoPlan("image", f"no path leads to the door that has to be open before {aim.target}")
    opened = tuple(doors.index(cell) for cell in aim.opened)
    poses: defaultdict[Hands, set[int]] = defaultdict(set)
    for cell in aim.cells:
        poses[_hands(aim, cell, view, codes)] |= _poses(aim, cell, view, enter, holds)
    goals = tuple(Goal(aim.finish, frozenset(at), hands, opened) for hands, at in poses.items())
    if enter[here] == 0:
        enter[here] = LEFT_ONLY
    problem = Problem(
        view.cells_HW.shape[1],
        enter.tobytes(),
        holds.tobytes(),
        tuple(Door(door, _keys_of(door, view, codes)) for door in doors),
        len(things),
        goals,
        frozenset(actions),
    )
    shut = tuple(bool(cells[door] not in _OPEN) for door in doors)
    return Puzzle(view, aim, problem, State(here, view.heading, shut, tuple(cell for _, cell in things)))


def _poses(aim: Aim, cell: int, view: View, enter: NDArray[np.uint8], holds: NDArray[np.bool_]) -> set[int]:
    """Returns the poses in which an episode ends in success at one of the target's cells."""
    if aim.finish is None:
        return {4 * cell + heading for heading in range(4)}
    height, width = view.cells_HW.shape
    y, x = divmod(cell, width)
    faced = [(x, y)]
    if aim.finish == "drop":
        around = ((x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1))
        faced = [(i, j) for i, j in around if 0 <= i < width and 0 <= j < height and holds[j * width + i]]
    beside = ((i - dx, j - dy, heading) for i, j in faced for heading, (dx, dy) in enumerate(STEPS))
    return {
        4 * (j * width + i) + each
        for i, j, heading in beside
        if 0 <= i < width and 0 <= j < height and enter[j * width + i]
        for each in (range(4) if aim.finish == "done" else (heading,))
    }


def _hands(aim: Aim, cell: int, view: View, codes: Sequence[int]) -> Hands:
    """Returns what has to be carried for success at one of the target's cells; see `Goal`."""
    if aim.finish == "pickup":
        return (None,)
    if aim.finish == "drop":
        return tuple(range(len(codes)))
    return _keys_of(cell, view, codes) if aim.finish == "toggle" else None


def _keys_of(door: int, view: View, codes: Sequence[int]) -> tuple[int, ...] | None:
    """Returns which things open a door; None: it is not locked."""
    cell = int(view.cells_HW.flat[door])
    if cell not in _LOCKED:
        return None
    return tuple(i for i, thing in enumerate(codes) if thing == code("key", names_of(cell)[1]))


def _things(view: View, aim: Aim) -> list[_Thing]:
    """Returns what the agent can carry about: keys of locked doors first."""
    keys = {code("key", names_of(int(door))[1]) for door in view.cells_HW.flat if door in _LOCKED}
    found: list[_Thing] = [(int(view.cells_HW.flat[cell]), cell) for cell in cells_of(view, *PICKABLE)]
    if view.carried is not None:
        found.append((view.carried, None))
    if aim.moved is not None:
        found = [(thing, cell) for thing, cell in found if thing == aim.moved]
    found = [(thing, cell) for thing, cell in found if cell not in aim.cells]
    return sorted(found, key=lambda each: (each[0] not in keys, each[0], each[1] or 0))


def _lying(things: Iterable[_Thing]) -> list[int]:
    return [cell for _, cell in things if cell is not None]


def _within_reach(enter: NDArray[np.uint8], view: View) -> NDArray[np.bool_]:
    """Returns the cells that the agent could walk to if nothing was shut or in the way."""
    width = view.cells_HW.shape[1]
    within = np.zeros(len(enter), np.bool_)
    reached = [view.y * width + view.x]
    within[reached] = True
    while reached:
        cell = reached.pop()
        for dx, dy in STEPS:
            beside = cell + dy * width + dx
            inside = 0 <= cell % width + dx < width and 0 <= beside < len(enter)
            if inside and enter[beside] and not within[beside]:
                within[beside] = True
                reached.append(beside)
    return within


def _limit(
    doors: list[int],
    things: list[_Thing],
    enter: NDArray[np.uint8],
    holds: NDArray[np.bool_],
    view: View,
    aim: Aim,
) -> None:
    """Leaves out what is farthest, until a search is fast enough.

    First doors that are not locked: a closed one is opened each time. Then things and locked doors, which
    are then in the way. At last, places to put things.
    """

    def distance(cell: int) -> int:
        y, x = divmod(cell, view.cells_HW.shape[1])
        return int(abs(y - view.y) + abs(x - view.x))

    def too_many(slots: int) -> bool:
        poses = 4 * int(np.count_nonzero(enter))
        states: int = poses * 2 ** len(doors) * (slots + 1) ** len(things)
        return states > MOST_STATES

    slots = int(np.count_nonzero(holds))
    locked = {cell for cell in doors if view.cells_HW.flat[cell] in _LOCKED}
    for door in sorted({*doors} - locked - {*aim.opened}, key=distance, reverse=True):
        if too_many(slots):
            doors.remove(door)
            enter[door] = _OPENED_EACH_TIME if view.cells_HW.flat[door] in _CLOSED else STEP
    while too_many(slots) and len(things) > 1:
        lying = [each for each in things if each[1] is not None][-1]
        things.remove(lying)
        enter[lying[1]], holds[lying[1]] = 0, False
    for door in sorted(locked - {*aim.opened}, key=distance, reverse=True):
        if too_many(1):
            doors.remove(door)
            enter[door] = 0
    if too_many(slots) and things:
        nearest = sorted(
            np.flatnonzero(holds).tolist(), key=lambda cell: (cell not in _lying(things), distance(cell))
        )
        while too_many(len(nearest)) and len(nearest) > 1:
            nearest.pop()
        holds[:] = False
        holds[nearest] = True

"""The planner's search: the steps to success from every state of a grid, found backwards from success."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from gridworld.views import STEPS

STEP = 4
"""Costs are whole numbers of quarters of a step."""
LEFT_ONLY = 255
"""In `Problem.enter`: the agent stands there, and could not enter."""
_UNREACHED = np.iinfo(np.uint16).max
_TABLES = 256
"""Tables that are kept: the states of an episode share a few of them."""

Indices = NDArray[np.intp]
Frontier = tuple[Indices, Indices]
"""F states, each a configuration and a pose: [F] and [F]."""
Hands = tuple[int | None, ...] | None
"""The things one of which has to be carried, or None in it for empty hands; None: anything."""


class State(NamedTuple):
    """What changes in a grid.

    Attributes:
        cell: the agent's, its number row by row.
        heading: the agent's, an index of HEADINGS.
        shut: for each of the problem's doors whether it is shut.
        things: the cell of each of the problem's things; None: it is carried. At most one is.
    """

    cell: int
    heading: int
    shut: tuple[bool, ...] = ()
    things: tuple[int | None, ...] = ()

    @property
    def carried(self) -> int | None:
        """The index of the thing that is carried."""
        return self.things.index(None) if None in self.things else None

    @property
    def pose(self) -> int:
        """cell * 4 + heading."""
        return self.cell * 4 + self.heading

    def turned(self, quarters: int) -> Self:
        """Returns the state after quarter turns to the right."""
        return self._replace(heading=(self.heading + quarters) % 4)

    def at(self, cell: int) -> Self:
        """Returns the state with the agent in another cell."""
        return self._replace(cell=cell)

    def moved(self, before: int | None, after: int | None) -> Self:
        """Returns the state in which the thing of one cell is in another; None: it is carried."""
        return self._replace(things=tuple(after if cell == before else cell for cell in self.things))

    def toggled(self, door: int) -> Self:
        """Returns the state in which a door is open that is shut here, or the reverse."""
        return self._replace(shut=(*self.shut[:door], not self.shut[door], *self.shut[door + 1 :]))


@dataclass(frozen=True)
class Door:
    """A door that can be opened.

    Attributes:
        cell: its cell.
        keys: the indices of the things that open it while they are carried; None: it is not locked.
    """

    cell: int
    keys: tuple[int, ...] | None

    def opens_for(self, carried: int | None) -> bool:
        """Returns whether the door opens while a thing, or None, is carried."""
        return self.keys is None or carried in self.keys


@dataclass(frozen=True)
class Goal:
    """One way of success.

    Attributes:
        action: ends the episode in success in the states described here; None: being there does.
        poses: the agent's cell * 4 + heading.
        hands: what has to be carried.
        opened: the doors that have to be open.
    """

    action: str | None
    poses: frozenset[int]
    hands: Hands = None
    opened: tuple[int, ...] = ()

    def suits(self, carried: int | None) -> bool:
        """Returns whether a thing, or None, is what has to be carried."""
        return self.hands is None or carried in self.hands


@dataclass(frozen=True)
class Problem:
    """What stays the same in a grid while an agent acts.

    Attributes:
        width: columns of the grid.
        enter: for each cell the quarter steps to enter it if no door or thing is in the way; 0: the agent is
            never there; or LEFT_ONLY.
        holds: for each cell whether things can be put there: 1 or 0.
        doors: doors that open and shut.
        things: the number of things that are carried about.
        goals: the ways of success.
        actions: the actions that may be used.
    """

    width: int
    enter: bytes
    holds: bytes
    doors: tuple[Door, ...]
    things: int
    goals: tuple[Goal, ...]
    actions: frozenset[str]


class _Space:
    """The states of a problem: C configurations of doors and things, times P poses in N cells.

    A configuration's digits are one bit for each door, 1: shut, and a slot for each thing: the number of the
    cell among those that hold things, or `carried`. An index of -1 is no cell and no pose.
    """

    def __init__(self, problem: Problem) -> None:
        enter = np.frombuffer(problem.enter, np.uint8)
        cells_N = self.cells_N = np.flatnonzero(enter)
        self.index = np.full(len(enter), -1)
        self.index[cells_N] = np.arange(len(cells_N))
        held_N = np.frombuffer(problem.holds, np.bool_)[cells_N]
        self.slots_N = np.append(np.where(held_N, held_N.cumsum() - 1, -1), -1)
        self.carried = int(held_N.sum())
        self.doors, self.things = len(problem.doors), problem.things
        shape = (2,) * self.doors + (self.carried + 1,) * self.things
        self.strides = np.array([math.prod(shape[i + 1 :]) for i in range(len(shape))], np.intp)
        self.digits = np.indices(shape).reshape(len(shape), math.prod(shape))
        self._configure(problem, np.append(np.flatnonzero(held_N), -1))
        self._pose(problem, enter)

    def _configure(self, problem: Problem, places: Indices) -> None:
        """Sets what holds in a configuration, whatever the pose."""
        self.shut_DC, self.where_TC = self.digits[: self.doors] == 1, places[self.digits[self.doors :]]
        configs, cells = self.digits.shape[1], len(self.cells_N)
        self.hand_C = np.full(configs, -1)
        self.valid_C = (self.where_TC < 0).sum(0) <= 1
        self.blocked_CN = np.zeros((configs, cells), np.bool_)
        self.door_N = np.full(cells + 1, -1)
        for thing, where_C in enumerate(self.where_TC):
            self.hand_C[where_C < 0] = thing
            lies_C = np.flatnonzero(where_C >= 0)
            self.valid_C[lies_C] &= ~self.blocked_CN[lies_C, where_C[lies_C]]
            self.blocked_CN[lies_C, where_C[lies_C]] = True
        self.opens_DC = np.ones_like(self.shut_DC)
        for i, door in enumerate(problem.doors):
            self.door_N[self.index[door.cell]] = i
            self.blocked_CN[:, self.index[door.cell]] |= self.shut_DC[i]
            if door.keys is not None:
                self.opens_DC[i] = np.isin(self.hand_C, door.keys)

    def _pose(self, problem: Problem, enter: NDArray[np.uint8]) -> None:
        """Sets what holds in a pose, whatever the configuration."""
        self.poses = 4 * len(self.cells_N)
        self.cell_P, self.heading_P = np.divmod(np.arange(self.poses), 4)
        self.enter_P = enter[self.cells_N][self.cell_P]
        steps_42, (height, width) = np.array(STEPS), (len(enter) // problem.width, problem.width)

        def beside(sign: int) -> Indices:
            y_P, x_P = np.divmod(self.cells_N[self.cell_P], width)
            dx_P, dy_P = sign * steps_42[self.heading_P].T
            x_P, y_P = x_P + dx_P, y_P + dy_P
            inside_P = (x_P >= 0) & (x_P < width) & (y_P >= 0) & (y_P < height)
            return np.where(inside_P, self.index[np.where(inside_P, y_P * width + x_P, 0)], -1)

        self.ahead_P, behind_P = beside(1), beside(-1)
        self.behind_P = np.where(behind_P < 0, -1, 4 * behind_P + self.heading_P)

    def number(self, state: State) -> int | None:
        """Returns a state's number, configuration * P + pose; None: it is none of this space."""
        slots = [
            self.carried if cell is None else int(self.slots_N[self.index[cell]]) for cell in state.things
        ]
        cell = int(self.index[state.cell])
        if min(cell, *slots, 0) < 0:
            return None
        return int(np.dot((*state.shut, *slots), self.strides)) * self.poses + 4 * cell + state.heading

    def ends(self, goal: Goal) -> Frontier:
        """Returns the states in which a goal is reached, or its action reaches it."""
        pose_P = np.isin(4 * self.cells_N[self.cell_P] + self.heading_P, list(goal.poses))
        ready_C = self.valid_C & ~self.shut_DC[list(goal.opened)].any(0)
        if goal.hands is not None:
            ready_C &= np.isin(self.hand_C, [-1 if thing is None else thing for thing in goal.hands])
        ready_CP = ready_C[:, None] & pose_P & ~self.blocked_CN[:, self.cell_P]
        if goal.action == "drop":
            ready_CP &= ~self.blocked_CN[:, self.ahead_P]
        config_F, pose_F = np.nonzero(ready_CP)
        return config_F, pose_F

    def turned(self, frontier: Frontier, quarters: int) -> Frontier:
        """Returns the states from which turning by quarters to the right leads to these."""
        config_F, pose_F = frontier
        return config_F, pose_F // 4 * 4 + (pose_F - quarters) % 4

    def walked(self, frontier: Frontier) -> Iterator[tuple[Frontier, int]]:
        """Yields the states from which a step forward leads to these, with its cost."""
        config_F, pose_F = frontier
        behind_F, enter_F = self.behind_P[pose_F], self.enter_P[pose_F]
        free_F = (behind_F >= 0) & ~self.blocked_CN[config_F, self.cell_P[behind_F]]
        for enter in {*enter_F.tolist()} - {LEFT_ONLY}:
            of_F = free_F & (enter_F == enter)
            yield (config_F[of_F], behind_F[of_F]), enter

    def picked_up(self, frontier: Frontier) -> Frontier:
        """Returns the states from which `pickup` leads to these: the thing lay ahead."""
        config_F, pose_F = frontier
        hand_F, ahead_F = self.hand_C[config_F], self.ahead_P[pose_F]
        slot_F = self.slots_N[ahead_F]
        of_F = (hand_F >= 0) & (slot_F >= 0) & ~self.blocked_CN[config_F, ahead_F]
        stride_F = self.strides[self.doors + hand_F[of_F]]
        return config_F[of_F] + (slot_F[of_F] - self.carried) * stride_F, pose_F[of_F]

    def dropped(self, frontier: Frontier) -> Iterator[Frontier]:
        """Yields the states from which `drop` leads to these: the thing ahead was carried."""
        config_F, pose_F = frontier
        ahead_F, empty_F = self.ahead_P[pose_F], self.hand_C[config_F] < 0
        for i, where_C in enumerate(self.where_TC, start=self.doors):
            of_F = empty_F & (where_C[config_F] == ahead_F)
            slot_F = self.digits[i, config_F[of_F]]
            yield config_F[of_F] + (self.carried - slot_F) * self.strides[i], pose_F[of_F]

    def opened(self, frontier: Frontier) -> Frontier:
        """Returns the states from which `toggle` leads to these: the door ahead was shut."""
        config_F, pose_F = frontier
        door_F = self.door_N[self.ahead_P[pose_F]]
        of_F = (door_F >= 0) & ~self.shut_DC[door_F, config_F] & self.opens_DC[door_F, config_F]
        return config_F[of_F] + self.strides[door_F[of_F]], pose_F[of_F]


class Table:
    """The fewest steps to success from every state of a problem, by Dijkstra's search on whole frontiers.

    Doors are opened only: shutting one opens no way.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem, self._space = problem, _Space(problem)
        space = self._space
        self._costs_S = np.full(len(space.hand_C) * space.poses, _UNREACHED, np.uint16)
        self._waiting: dict[int, list[Indices]] = {}
        for goal in problem.goals:
            if goal.action is None or goal.action in problem.actions:
                self._reach(space.ends(goal), 0 if goal.action is None else STEP)
        while self._waiting:
            cost = min(self._waiting)
            state_F = np.concatenate(self._waiting.pop(cost))
            state_F = state_F[self._costs_S[state_F] == cost]  # others were reached at a lower cost since
            for frontier, step in self._before(np.divmod(state_F, space.poses)):
                self._reach(frontier, cost + step)

    def steps(self, state: State) -> float:
        """Returns the steps to success from a state; infinite if there is no way."""
        number = self._space.number(state)
        cost = _UNREACHED if number is None else int(self._costs_S[number])
        return math.inf if cost == _UNREACHED else cost / STEP

    def _before(self, frontier: Frontier) -> Iterator[tuple[Frontier, int]]:
        """Yields the states from which one action leads to these, with its cost."""
        space, actions = self._space, self._problem.actions
        for action, quarters in (("left", -1), ("right", 1)):
            if action in actions:
                yield space.turned(frontier, quarters), STEP
        if "forward" in actions:
            yield from space.walked(frontier)
        if space.things and "pickup" in actions:
            yield space.picked_up(frontier), STEP
        if space.things and "drop" in actions and all(goal.action != "drop" for goal in self._problem.goals):
            for before in space.dropped(frontier):
                yield before, STEP
        if space.doors and "toggle" in actions:
            yield space.opened(frontier), STEP

    def _reach(self, frontier: Frontier, cost: int) -> None:
        """Notes the states that had no cost as low."""
        config_F, pose_F = frontier
        state_F = config_F * self._space.poses + pose_F
        state_F = state_F[self._costs_S[state_F] > cost]
        if len(state_F):
            self._costs_S[state_F] = cost
            self._waiting.setdefault(cost, []).append(state_F)


@lru_cache(maxsize=_TABLES)
def table_of(problem: Problem) -> Table:
    """Returns a problem's table, from the last ones if it is there."""
    return Table(problem)

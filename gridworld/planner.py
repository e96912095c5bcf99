"""The optimal planner: probabilities over actions in a view, with an analysis in words."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gridworld.aims import NoPlan
from gridworld.problems import Puzzle, puzzle_of
from gridworld.search import table_of
from gridworld.tasks import ALL_TASKS
from gridworld.views import HEADINGS, View, code, names_of

__all__ = ["PLANNER_VERSION", "TEMPERATURE", "NoPlan", "Plan", "plan"]

PLANNER_VERSION = "2"
"""Part of the planner teacher's identity: increase it when any answer changes."""

TEMPERATURE = 1 / 3
"""Temperature of the softmax over steps: one step more than the best leaves 0.05 of the weight."""

_WALL = code("wall", "grey")


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
    allowed = [action for action in actions if action in ALL_TASKS[task].useful]
    puzzle = puzzle_of(view, task, mission, allowed)
    if puzzle.is_over:
        raise NoPlan("image", "the episode is over: the agent stands on the goal already")
    costs = {action: _cost(puzzle, action) for action in allowed}
    least = min(costs.values(), default=math.inf)
    if math.isinf(least):
        if set(ALL_TASKS[task].useful) - set(allowed):
            raise NoPlan(
                "actions",
                f"{task} cannot be solved from here with {', '.join(actions)};"
                f" it needs {', '.join(ALL_TASKS[task].useful)}",
            )
        raise NoPlan("image", f"no path leads to {puzzle.aim.target}")
    weights = {action: math.exp((least - cost) / TEMPERATURE) for action, cost in costs.items()}
    total = sum(weights.values())
    probabilities = {action: weights.get(action, 0.0) / total for action in actions}
    return Plan(probabilities, _describe(puzzle, least))


def _cost(puzzle: Puzzle, action: str) -> float:
    """Returns the steps to success with this action first; infinite if the action ends in failure."""
    steps, after = puzzle.after(action)
    return steps if after is None else steps + table_of(puzzle.problem).steps(after)


def _describe(puzzle: Puzzle, steps: float) -> str:
    view, aim = puzzle.view, puzzle.aim
    hazards = np.flatnonzero(aim.deadly_HW & (view.cells_HW != _WALL)).tolist()
    carried = "" if view.carried is None else ", carrying the {1} {0}".format(*names_of(view.carried))
    return (
        f"Agent: column {view.x}, row {view.y}, facing {HEADINGS[view.heading]}{carried}."
        f" Target: {aim.target} at {_in_words(aim.cells, view)}."
        f" Hazards: {_in_words(hazards, view) or 'none'}."
        f" Best way: about {steps:.0f} steps."
    )


def _in_words(cells: Iterable[int], view: View) -> str:
    width = view.cells_HW.shape[1]
    return ", ".join(f"column {cell % width}, row {cell // width}" for cell in cells)

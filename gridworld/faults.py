"""Systematic faults of a planner: it answers as if it misread the picture, always in the same way."""

from collections.abc import Iterable
from dataclasses import replace

from gridworld.planner import NoPlan, Plan, plan
from gridworld.scenes import Cell, Scene
from gridworld.tasks import ALL_TASKS, Fault
from gridworld.views import EMPTY, HEADINGS, View


def misread(view: View, fault: Fault, task: str, mission: str) -> View:
    """Returns what a planner with a fault takes a view for.

    - mirrored: the view itself; the fault is in the actions.
    - shifted: the agent is one column further right, at most in the last column inside the outer wall. An
      object in the cell where it is read is overlooked, except a goal.
    - blind: without hazards: lava, the balls of dynamic_obstacles, the objects of fetch that the mission does
      not name.
    """
    scene = Scene(task, mission, view)
    if fault == "shifted":
        here = (view.y, min(view.x + 1, view.cells_HW.shape[1] - 2))
        shown = _without(view, [here] if here not in scene.cells("goal square") else [])
        return replace(shown, x=here[1])
    if fault == "blind":
        return _without(view, _hazards(scene))
    return view


def faulty_plan(view: View, fault: Fault, task: str, mission: str, actions: Iterable[str]) -> Plan:
    """Plans in the misread view, as `gridworld.planner.plan` does in the view itself.

    A mirrored planner exchanges the probabilities of left and right, if both are among the actions. Where the
    misread view has no plan, all useful ones of the actions are equally probable.

    Raises:
        NoPlan: the view itself has no plan.
    """
    actions = tuple(actions)
    seen = misread(view, fault, task, mission)
    try:
        planned = plan(seen, task, mission, actions)
    except NoPlan as error:
        plan(view, task, mission, actions)  # a question without an answer stays one
        useful = [action for action in actions if action in ALL_TASKS[task].useful]
        even = {action: 1 / len(useful) if action in useful else 0.0 for action in actions}
        where = f"column {seen.x}, row {seen.y}, facing {HEADINGS[seen.heading]}"
        return Plan(even, f"Agent: {where}. No plan: {error}.")
    p = planned.probabilities
    if fault == "mirrored" and {"left", "right"} <= p.keys():
        return replace(planned, probabilities=p | {"left": p["right"], "right": p["left"]})
    return planned


def _hazards(scene: Scene) -> list[Cell]:
    """Returns the cells whose contents a blind planner does not see."""
    found = scene.cells("lava")
    if scene.task == "dynamic_obstacles":
        found += scene.cells("ball")
    if scene.task == "fetch":
        found += [cell for cell in scene.cells("key", "ball") if scene.name(cell) not in scene.mission]
    return found


def _without(view: View, cells: Iterable[Cell]) -> View:
    """Returns a view in which some cells are empty."""
    cells_HW = view.cells_HW.copy()
    for cell in cells:
        cells_HW[cell] = EMPTY
    return replace(view, cells_HW=cells_HW)

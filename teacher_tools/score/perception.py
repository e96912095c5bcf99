"""Stage 1 held against the state: what an analysis says is there, and the state as it describes it."""

import json
from dataclasses import replace

from pydantic import BaseModel, ValidationError

from gridworld.planner import NoPlan, plan
from gridworld.scenes import Cell, Scene
from gridworld.tasks import ALL_TASKS
from gridworld.views import EMPTY, HEADINGS, View, code

_FIELDS = ("row", "column", "heading", "agent", "target", "target_name", "hazards", "direction", "all")
"""What can be right in an analysis. agent: row, column and heading; all: agent, target and hazards."""

_UNKNOWN_HAZARD = {
    "lava_gap": code("lava"),
    "dynamic_obstacles": code("ball", "blue"),
    "fetch": code("box", "grey"),  # no mission asks for a box
    "go_to_door": code("wall", "grey"),  # as little to be walked through as a door
    "go_to_object": code("wall", "grey"),  # ... or an object; a mission may ask for any of these
}
"""What stands where an analysis sees a hazard, and there is none."""


class _Agent(BaseModel):
    row: int
    column: int
    heading: str


class _Target(BaseModel):
    name: str
    row: int
    column: int


class Said(BaseModel):
    """An analysis with fields, as the prompt sets' schema names them; hazards are [row, column]."""

    agent: _Agent
    target: _Target
    hazards: list[tuple[int, int]]
    direction: str | None = None


class CannotDescribe(Exception):
    """No state is as the analysis describes it; the message says why in a few words."""


def read_analysis(text: str) -> Said | None:
    """The fields of an analysis; None where it is in words, or in other fields."""
    try:
        return Said.model_validate(json.loads(text, strict=False))  # a line break in a text does no harm
    except (ValueError, RecursionError, ValidationError):
        return None


def judge(said: Said, scene: Scene) -> dict[str, bool]:
    """Which fields are right, by their names; a field that was not said is left out.

    The target is right at any cell that holds what the mission asks for; its name, where it holds the
    mission's words, or `goal`. The hazards are right when they are all there are, and no others.
    """
    place: Cell = (said.target.row, said.target.column)
    right = {
        "row": said.agent.row == scene.here[0],
        "column": said.agent.column == scene.here[1],
        "heading": said.agent.heading == scene.heading,
        "target": place in scene.targets,
        "target_name": scene.sought.replace("green goal square", "goal") in said.target.name.lower(),
        "hazards": set(said.hazards) == set(scene.hazards),
    }
    right["agent"] = right["row"] and right["column"] and right["heading"]
    right["all"] = right["agent"] and right["target"] and right["hazards"]
    if said.direction is not None:
        right["direction"] = said.direction in {scene.direction(target) for target in scene.targets}
    return {field: right[field] for field in _FIELDS if field in right}


def optimal_as_said(said: Said, scene: Scene) -> tuple[str, ...]:
    """The optimal actions in the state as an analysis describes it.

    That is the real state with the agent where the analysis says it is, and target and hazards moved to
    where it says they are. A hazard that is not there is of the task's kind, or something in the way.

    Raises:
        CannotDescribe: there cannot be such a state, or nothing can be planned in it.
    """
    view = _view_as_said(said, scene)
    try:
        return plan(view, scene.task, scene.mission, ALL_TASKS[scene.task].useful).best
    except NoPlan as error:
        raise CannotDescribe("no way leads to the target") from error


def _view_as_said(said: Said, scene: Scene) -> View:
    cells_HW = scene.view.cells_HW.copy()
    height, width = cells_HW.shape
    here: Cell = (said.agent.row, said.agent.column)
    target: Cell = (said.target.row, said.target.column)
    for (row, column), what in [
        (here, "agent"),
        (target, "target"),
        *((cell, "hazard") for cell in said.hazards),
    ]:
        if not (0 <= row < height and 0 <= column < width):
            raise CannotDescribe(f"{what} outside the grid")
    if said.agent.heading not in HEADINGS:
        raise CannotDescribe("no such heading")
    sought = int(cells_HW[scene.targets[0]])
    hazards = {cell: int(cells_HW[cell]) for cell in scene.hazards}
    behind = code("wall", "grey") if scene.task == "go_to_door" else EMPTY
    # An analysis names one target: where there are several alike, the others stay if it is one of them
    for cell in (*(scene.targets if target not in scene.targets else ()), *hazards):
        cells_HW[cell] = behind
    if here == target:
        raise CannotDescribe("agent on the target")
    if int(cells_HW[here]) != EMPTY or here in said.hazards:
        raise CannotDescribe("agent where it cannot stand")
    if target in said.hazards:
        raise CannotDescribe("target where a hazard is")
    for cell in said.hazards:
        cells_HW[cell] = hazards.get(cell, _UNKNOWN_HAZARD[scene.task])
    cells_HW[target] = sought
    return replace(
        scene.view,
        cells_HW=cells_HW,
        x=said.agent.column,
        y=said.agent.row,
        heading=HEADINGS.index(said.agent.heading),
    )

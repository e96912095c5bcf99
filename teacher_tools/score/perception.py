"""Compares an analysis with the true state, and plans in the state that the analysis describes."""

import json
from dataclasses import replace

from pydantic import BaseModel, ValidationError

from gridworld.planner import NoPlan, plan
from gridworld.scenes import Cell, Scene
from gridworld.tasks import ALL_TASKS
from gridworld.views import EMPTY, HEADINGS, View, code

_FIELDS = ("row", "column", "heading", "agent", "target", "target_name", "hazards", "direction", "all")
"""The judged fields. agent: row, column and heading; all: agent, target and hazards."""

_UNKNOWN_HAZARD = {
    "lava_gap": code("lava"),
    "dynamic_obstacles": code("ball", "blue"),
    "fetch": code("box", "grey"),  # no mission asks for a box
    "go_to_door": code("wall", "grey"),  # blocks the way like a door
    "go_to_object": code("wall", "grey"),  # blocks the way like an object, and no mission asks for it
}
"""What a hazard is replaced by that the analysis describes in a cell without one."""


class _Agent(BaseModel):
    row: int
    column: int
    heading: str


class _Target(BaseModel):
    name: str
    row: int
    column: int


class DescribedScene(BaseModel):
    """An analysis with the fields of the prompt sets' schema; hazards are [row, column]."""

    agent: _Agent
    target: _Target
    hazards: list[tuple[int, int]]
    direction: str | None = None


class ImpossibleScene(Exception):
    """The described state cannot exist or has no plan; the message says why in a few words."""


def read_analysis(text: str) -> DescribedScene | None:
    """Returns the fields of an analysis; None if it is free text or has other fields."""
    try:
        # Not strict, as line breaks within strings are harmless
        return DescribedScene.model_validate(json.loads(text, strict=False))
    except (ValueError, RecursionError, ValidationError):
        return None


def judge(described: DescribedScene, scene: Scene) -> dict[str, bool]:
    """Returns which fields are right, by name; an absent field is left out.

    The target's cell is right if it holds an object that the mission asks for; its name, if it contains the
    mission's words, or `goal`. The hazards are right if they are exactly the scene's.
    """
    place: Cell = (described.target.row, described.target.column)
    right = {
        "row": described.agent.row == scene.here[0],
        "column": described.agent.column == scene.here[1],
        "heading": described.agent.heading == scene.heading,
        "target": place in scene.targets,
        "target_name": scene.sought.replace("green goal square", "goal") in described.target.name.lower(),
        "hazards": set(described.hazards) == set(scene.hazards),
    }
    right["agent"] = right["row"] and right["column"] and right["heading"]
    right["all"] = right["agent"] and right["target"] and right["hazards"]
    if described.direction is not None:
        right["direction"] = described.direction in {scene.direction(target) for target in scene.targets}
    return {field: right[field] for field in _FIELDS if field in right}


def optimal_as_described(described: DescribedScene, scene: Scene) -> tuple[str, ...]:
    """Returns the optimal actions in the state that an analysis describes.

    This is the true state, with agent, target and hazards moved to where the analysis says they are. A hazard
    that does not exist becomes one of the task's kind, or an obstacle.

    Raises:
        ImpossibleScene: no such state exists, or the planner finds no plan in it.
    """
    view = _described_view(described, scene)
    try:
        return plan(view, scene.task, scene.mission, ALL_TASKS[scene.task].useful).best
    except NoPlan as error:
        raise ImpossibleScene("no path to the target") from error


def _described_view(described: DescribedScene, scene: Scene) -> View:
    cells_HW = scene.view.cells_HW.copy()
    height, width = cells_HW.shape
    here: Cell = (described.agent.row, described.agent.column)
    target: Cell = (described.target.row, described.target.column)
    for (row, column), what in [
        (here, "agent"),
        (target, "target"),
        *((cell, "hazard") for cell in described.hazards),
    ]:
        if not (0 <= row < height and 0 <= column < width):
            raise ImpossibleScene(f"{what} outside the grid")
    if described.agent.heading not in HEADINGS:
        raise ImpossibleScene("no such heading")
    sought = int(cells_HW[scene.targets[0]])
    hazards = {cell: int(cells_HW[cell]) for cell in scene.hazards}
    background = code("wall", "grey") if scene.task == "go_to_door" else EMPTY
    # An analysis names one target. If it is one of several, the others stay
    for cell in (*(scene.targets if target not in scene.targets else ()), *hazards):
        cells_HW[cell] = background
    if here == target:
        raise ImpossibleScene("agent on the target")
    if int(cells_HW[here]) != EMPTY or here in described.hazards:
        raise ImpossibleScene("agent where it cannot stand")
    if target in described.hazards:
        raise ImpossibleScene("target where a hazard is")
    for cell in described.hazards:
        cells_HW[cell] = hazards.get(cell, _UNKNOWN_HAZARD[scene.task])
    cells_HW[target] = sought
    return replace(
        scene.view,
        cells_HW=cells_HW,
        x=described.agent.column,
        y=described.agent.row,
        heading=HEADINGS.index(described.agent.heading),
    )

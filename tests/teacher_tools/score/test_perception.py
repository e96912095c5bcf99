"""Perception and reasoning: correct analyses are right in all fields, and each mistake counts in its own."""

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gridworld.planner import plan
from gridworld.scenes import Scene
from gridworld.tasks import ALL_TASKS, TASKS
from gridworld.views import EMPTY, HEADINGS
from teacher_tools.score.episodes import State, held_out_states
from teacher_tools.score.measures import JudgedAnswer, judged, perception, reasoning
from teacher_tools.score.perception import (
    DescribedScene,
    ImpossibleScene,
    judge,
    optimal_as_described,
    read_analysis,
)
from tests.teacher_tools.score.scenes import answer, examples

pytestmark = pytest.mark.unit

_EXAMPLES = examples()
_ALL = {"row", "column", "heading", "agent", "target", "target_name", "hazards", "direction", "all"}
Analysis = dict[str, Any]


def _described(analysis: Analysis) -> DescribedScene:
    described = read_analysis(json.dumps(analysis))
    assert described is not None
    return described


def _best(scene: Scene) -> tuple[str, ...]:
    return plan(scene.view, scene.task, scene.mission, ALL_TASKS[scene.task].useful).best


def _perfect(scene: Scene) -> Analysis:
    """Returns the correct analysis of a scene."""
    (row, column), target = scene.here, scene.targets[0]
    return {
        "agent": {"row": row, "column": column, "heading": scene.heading},
        "target": {"name": scene.sought, "row": target[0], "column": target[1]},
        "hazards": [list(cell) for cell in scene.hazards],
        "direction": scene.direction(target),
    }


def test_the_prompt_sets_examples_are_right_in_every_field() -> None:
    assert len(_EXAMPLES) == 20
    for scene, analysis in _EXAMPLES:
        assert judge(_described(analysis), scene) == dict.fromkeys(_ALL, True)
        assert optimal_as_described(_described(analysis), scene) == _best(scene)


def _agent_moved(analysis: Analysis) -> None:
    analysis["agent"]["row"] += 1


def _agent_turned(analysis: Analysis) -> None:
    analysis["agent"]["heading"] = HEADINGS[(HEADINGS.index(analysis["agent"]["heading"]) + 1) % 4]


def _target_moved(analysis: Analysis) -> None:
    analysis["target"]["column"] += 1


def _target_misnamed(analysis: Analysis) -> None:
    analysis["target"]["name"] = "brown cow"


def _hazard_added(analysis: Analysis) -> None:
    analysis["hazards"].append([20, 20])


def _direction_changed(analysis: Analysis) -> None:
    analysis["direction"] = "behind" if analysis["direction"] != "behind" else "ahead"


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (_agent_moved, {"row", "agent", "all"}),
        (_agent_turned, {"heading", "agent", "all"}),
        (_target_moved, {"target", "all"}),
        (_target_misnamed, {"target_name"}),
        (_hazard_added, {"hazards", "all"}),
        (_direction_changed, {"direction"}),
    ],
)
def test_a_mistake_counts_in_its_own_fields(spoil: Callable[[Analysis], None], wrong: set[str]) -> None:
    for scene, analysis in _EXAMPLES:
        changed = copy.deepcopy(analysis)
        spoil(changed)
        assert {field for field, right in judge(_described(changed), scene).items() if not right} == wrong


def test_an_analysis_in_free_text_has_no_fields() -> None:
    for text in ("Agent: column 1, row 1, facing right.", "[1]", '{"agent": "here"}', "{"):
        assert read_analysis(text) is None
    assert read_analysis(json.dumps(_EXAMPLES[0][1]).replace("I ", "I\n", 1)) is not None


@pytest.mark.parametrize("task", [*TASKS, "go_to_object"])
def test_a_described_agent_is_planned_for_where_it_is_described(task: str) -> None:
    states = held_out_states(ALL_TASKS[task].env_id, task, 60, seed=0)
    rng = np.random.default_rng(0)
    compared = 0
    for state in states:
        scene, analysis = state.scene, _perfect(state.scene)
        free = [cell for cell in scene.cells("free floor") if 0 < cell[0] < 5 and 0 < cell[1] < 5]
        row, column = free[rng.integers(len(free))]
        heading = int(rng.integers(4))
        analysis["agent"] = {"row": row, "column": column, "heading": HEADINGS[heading]}
        there = replace(scene, view=replace(scene.view, x=column, y=row, heading=heading))
        if scene.view.cells_HW[scene.here] == EMPTY:
            compared += 1
            assert optimal_as_described(_described(analysis), scene) == _best(there)
    assert compared > 40


@pytest.mark.parametrize(
    ("env_id", "task"),
    [("MiniGrid-Fetch-8x8-N3-v0", "fetch"), ("MiniGrid-GoToObject-8x8-N2-v0", "go_to_object")],
)
def test_a_hazard_that_only_the_analysis_has_blocks_the_path(env_id: str, task: str) -> None:
    states = held_out_states(env_id, task, 100, seed=0)
    ahead = [state.scene for state in states if state.optimal == ("forward",)]
    assert len(ahead) > 20
    blocked = 0
    for scene in ahead:
        x, y = scene.view.front
        analysis = _perfect(scene)
        analysis["hazards"].append([y, x])
        with suppress(ImpossibleScene):  # in a corridor, no path is left
            assert "forward" not in optimal_as_described(_described(analysis), scene)
            blocked += 1
    assert blocked > 20


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"agent": {"row": 24, "column": 1, "heading": "up"}}, "agent outside the grid"),
        ({"agent": {"row": 0, "column": 0, "heading": "up"}}, "agent where it cannot stand"),
        ({"agent": {"row": 1, "column": 1, "heading": "north"}}, "no such heading"),
        ({"target": {"name": "goal", "row": 24, "column": 1}}, "target outside the grid"),
        ({"hazards": [[9, 9]]}, "hazard outside the grid"),
    ],
)
def test_an_impossible_scene_is_rejected(changes: Analysis, why: str) -> None:
    scene, analysis = next(example for example in _EXAMPLES if example[0].task == "lava_gap")
    with pytest.raises(ImpossibleScene) as caught:
        optimal_as_described(_described(analysis | changes), scene)
    assert str(caught.value) == why
    on_target = {"agent": analysis["agent"] | {k: analysis["target"][k] for k in ("row", "column")}}
    with pytest.raises(ImpossibleScene, match="agent on the target"):
        optimal_as_described(_described(analysis | on_target), scene)


def test_perception_and_reasoning_are_measured_apart() -> None:
    """One teacher turns all headings and acts on its analysis; another analyses rightly and acts wrongly."""
    states = held_out_states("MiniGrid-GoToDoor-6x6-v0", "go_to_door", 80, seed=0)
    useful = ALL_TASKS["go_to_door"].useful

    def certain(action: str) -> dict[str, float]:
        return {each: float(each == action) for each in useful}

    misperceiving, misreasoning = [], []
    for state in states:
        analysis = _perfect(state.scene)
        misreasoning.append(
            answer(certain(next(a for a in useful if a not in state.optimal)), json.dumps(analysis))
        )
        _agent_turned(analysis)
        acts = optimal_as_described(_described(analysis), state.scene)[0]
        misperceiving.append(answer(certain(acts), json.dumps(analysis)))
    of_misperceiving, of_misreasoning = judged(states, misperceiving), judged(states, misreasoning)
    of_fields, of_actions = perception(of_misperceiving), reasoning(of_misperceiving)
    assert of_fields is not None
    assert of_actions is not None
    assert of_actions.given_said is not None
    assert (
        of_fields.fields["heading"].value,
        of_fields.fields["agent"].value,
        of_fields.fields["row"].value,
    ) == (0, 0, 1)
    assert of_actions.given_said.value == 1.0
    assert of_actions.given_truth.value < 0.5
    assert of_actions.seen_right is None
    of_fields, of_actions = perception(of_misreasoning), reasoning(of_misreasoning)
    assert of_fields is not None
    assert of_actions is not None
    assert of_actions.given_said is not None
    assert {share.value for share in of_fields.fields.values()} == {1.0}
    assert (of_actions.given_said.value, of_actions.given_truth.value) == (0, 0)


def test_free_text_gives_neither_perception_nor_reasoning() -> None:
    state = State(_EXAMPLES[0][0], ("left",))
    answers = [JudgedAnswer(state, answer({"left": 1.0, "right": 0.0}, "in words"))]
    assert perception(answers) is None
    assert reasoning(answers) is None

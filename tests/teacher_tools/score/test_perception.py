"""Perception and reasoning: perfect analyses are right, and each mistake is found where it is."""

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
from gridworld.tasks import ALL_TASKS
from gridworld.views import EMPTY, HEADINGS
from teacher_tools.score.measures import Judged, judged, perception, reasoning
from teacher_tools.score.perception import CannotDescribe, Said, judge, optimal_as_said, read_analysis
from teacher_tools.score.world import State, held_out_states
from tests.teacher_tools.score.scenes import answer, examples

pytestmark = pytest.mark.unit

_EXAMPLES = examples()
_ALL = {"row", "column", "heading", "agent", "target", "target_name", "hazards", "direction", "all"}
Told = dict[str, Any]


def _said(analysis: Told) -> Said:
    said = read_analysis(json.dumps(analysis))
    assert said is not None
    return said


def _best(scene: Scene) -> tuple[str, ...]:
    return plan(scene.view, scene.task, scene.mission, ALL_TASKS[scene.task].useful).best


def _perfect(scene: Scene) -> Told:
    """An analysis that follows from the state."""
    (row, column), target = scene.here, scene.targets[0]
    return {
        "agent": {"row": row, "column": column, "heading": scene.heading},
        "target": {"name": scene.sought, "row": target[0], "column": target[1]},
        "hazards": [list(cell) for cell in scene.hazards],
        "direction": scene.direction(target),
    }


def test_the_worked_examples_are_right_in_every_field() -> None:
    assert len(_EXAMPLES) == 20
    for scene, analysis in _EXAMPLES:
        assert judge(_said(analysis), scene) == dict.fromkeys(_ALL, True)
        assert optimal_as_said(_said(analysis), scene) == _best(scene)


def _elsewhere(told: Told) -> None:
    told["agent"]["row"] += 1


def _turned(told: Told) -> None:
    told["agent"]["heading"] = HEADINGS[(HEADINGS.index(told["agent"]["heading"]) + 1) % 4]


def _target_moved(told: Told) -> None:
    told["target"]["column"] += 1


def _misnamed(told: Told) -> None:
    told["target"]["name"] = "brown cow"


def _hazard_missed(told: Told) -> None:
    told["hazards"].append([20, 20])


def _misdirected(told: Told) -> None:
    told["direction"] = "behind" if told["direction"] != "behind" else "ahead"


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (_elsewhere, {"row", "agent", "all"}),
        (_turned, {"heading", "agent", "all"}),
        (_target_moved, {"target", "all"}),
        (_misnamed, {"target_name"}),
        (_hazard_missed, {"hazards", "all"}),
        (_misdirected, {"direction"}),
    ],
)
def test_a_mistake_is_found_in_its_field_alone(spoil: Callable[[Told], None], wrong: set[str]) -> None:
    for scene, analysis in _EXAMPLES:
        told = copy.deepcopy(analysis)
        spoil(told)
        assert {field for field, right in judge(_said(told), scene).items() if not right} == wrong


def test_an_analysis_in_words_has_no_fields() -> None:
    for text in ("Agent: column 1, row 1, facing right.", "[1]", '{"agent": "here"}', "{"):
        assert read_analysis(text) is None
    assert read_analysis(json.dumps(_EXAMPLES[0][1]).replace("I ", "I\n", 1)) is not None


@pytest.mark.parametrize("task", ALL_TASKS)
def test_the_state_as_said_is_the_one_that_the_agent_would_be_in(task: str) -> None:
    """An analysis that sees the agent elsewhere is planned on as if it stood there."""
    states = held_out_states(ALL_TASKS[task].env_id, task, 60, seed=0)
    rng = np.random.default_rng(0)
    told = 0
    for state in states:
        scene, said = state.scene, _perfect(state.scene)
        free = [cell for cell in scene.cells("free floor") if 0 < cell[0] < 5 and 0 < cell[1] < 5]
        row, column = free[rng.integers(len(free))]
        heading = int(rng.integers(4))
        said["agent"] = {"row": row, "column": column, "heading": HEADINGS[heading]}
        there = replace(scene, view=replace(scene.view, x=column, y=row, heading=heading))
        if scene.view.cells_HW[scene.here] == EMPTY:
            told += 1
            assert optimal_as_said(_said(said), scene) == _best(there)
    assert told > 40


@pytest.mark.parametrize(
    ("env_id", "task"),
    [("MiniGrid-Fetch-8x8-N3-v0", "fetch"), ("MiniGrid-GoToObject-8x8-N2-v0", "go_to_object")],
)
def test_a_hazard_that_only_the_analysis_sees_is_in_the_way(env_id: str, task: str) -> None:
    states = held_out_states(env_id, task, 100, seed=0)
    ahead = [state.scene for state in states if state.optimal == ("forward",)]
    assert len(ahead) > 20
    blocked = 0
    for scene in ahead:
        x, y = scene.view.front
        said = _perfect(scene)
        said["hazards"].append([y, x])
        with suppress(CannotDescribe):  # in a corridor
            assert "forward" not in optimal_as_said(_said(said), scene)
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
def test_what_cannot_be_is_not_planned_on(changes: Told, why: str) -> None:
    scene, analysis = next(example for example in _EXAMPLES if example[0].task == "lava_gap")
    with pytest.raises(CannotDescribe) as caught:
        optimal_as_said(_said(analysis | changes), scene)
    assert str(caught.value) == why
    on_target = {"agent": analysis["agent"] | {k: analysis["target"][k] for k in ("row", "column")}}
    with pytest.raises(CannotDescribe, match="agent on the target"):
        optimal_as_said(_said(analysis | on_target), scene)


def test_seeing_wrong_and_reasoning_wrong_are_told_apart() -> None:
    """One teacher turns all headings round and acts on what it says; one sees all and does the opposite."""
    states = held_out_states("MiniGrid-GoToDoor-6x6-v0", "go_to_door", 80, seed=0)
    useful = ALL_TASKS["go_to_door"].useful

    def certain(action: str) -> dict[str, float]:
        return {each: float(each == action) for each in useful}

    blind, careless = [], []
    for state in states:
        told = _perfect(state.scene)
        careless.append(answer(certain(next(a for a in useful if a not in state.optimal)), json.dumps(told)))
        _turned(told)
        acts = optimal_as_said(_said(told), state.scene)[0]
        blind.append(answer(certain(acts), json.dumps(told)))
    of_blind, of_careless = judged(states, blind), judged(states, careless)
    seen, thought = perception(of_blind), reasoning(of_blind)
    assert seen is not None
    assert thought is not None
    assert thought.given_said is not None
    assert (seen.fields["heading"].value, seen.fields["agent"].value, seen.fields["row"].value) == (0, 0, 1)
    assert thought.given_said.value == 1.0
    assert thought.given_truth.value < 0.5
    assert thought.seen_right is None
    seen, thought = perception(of_careless), reasoning(of_careless)
    assert seen is not None
    assert thought is not None
    assert thought.given_said is not None
    assert {share.value for share in seen.fields.values()} == {1.0}
    assert (thought.given_said.value, thought.given_truth.value) == (0, 0)


def test_without_fields_there_is_neither_perception_nor_reasoning() -> None:
    state = State(_EXAMPLES[0][0], ("left",))
    answers = [Judged(state, answer({"left": 1.0, "right": 0.0}, "in words"))]
    assert perception(answers) is None
    assert reasoning(answers) is None

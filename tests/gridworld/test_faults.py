"""Systematic faults: what a faulty planner takes a picture for, and what it answers then."""

from typing import get_args

import numpy as np
import pytest

from gridworld.faults import faulty_plan, misread
from gridworld.planner import NoPlan, plan
from gridworld.tasks import Fault
from gridworld.views import EMPTY, View, code

pytestmark = pytest.mark.unit

_MOVES = ("left", "right", "forward")
_GET = "get to the green goal square"
_FETCH = "fetch a green key"
_CODES = {
    "#": code("wall", "grey"),
    ".": EMPTY,
    "G": code("goal", "green"),
    "~": code("lava"),
    "o": code("ball", "blue"),
    "k": code("key", "green"),
    "b": code("ball", "red"),
    "D": code("door", "red", 1),
}


def _view(*rows: str, at: tuple[int, int], heading: int = 0) -> View:
    """Returns the view of a drawn room, with the agent in a column and a row."""
    return View(np.array([[_CODES[cell] for cell in row] for row in rows], np.uint8), *at, heading)


def _drawn(view: View) -> list[str]:
    names = {number: name for name, number in _CODES.items()}
    return ["".join(names[int(cell)] for cell in row) for row in view.cells_HW]


@pytest.mark.parametrize(
    ("row", "column", "read", "seen"),
    [
        ("#...#", 1, 2, "#...#"),
        ("#...#", 3, 3, "#...#"),  # the last column inside the wall
        ("#.~.#", 1, 2, "#...#"),
        ("#..G#", 2, 3, "#..G#"),
        ("#.k.#", 2, 3, "#.k.#"),
    ],
)
def test_shifted_reads_the_agent_one_column_too_far_right(
    row: str, column: int, read: int, seen: str
) -> None:
    view = _view("#####", row, "#####", at=(column, 1), heading=3)
    found = misread(view, "shifted", "lava_gap", _GET)
    assert (found.x, found.y, found.heading) == (read, 1, 3)
    assert _drawn(found) == ["#####", seen, "#####"]
    assert _drawn(view)[1] == row, "the view itself is unchanged"


@pytest.mark.parametrize(
    ("task", "mission", "seen"),
    [
        ("lava_gap", _GET, "#o.kbD.#"),
        ("dynamic_obstacles", _GET, "#..k.D.#"),
        ("fetch", _FETCH, "#..k.D.#"),
        ("fetch", "go get a red ball", "#...bD.#"),
        ("go_to_door", "go to the red door", "#o.kbD.#"),
    ],
)
def test_blind_sees_no_hazards(task: str, mission: str, seen: str) -> None:
    view = _view("########", "#o~kbD.#", "########", at=(6, 1))
    found = misread(view, "blind", task, mission)
    assert _drawn(found) == ["########", seen, "########"]
    assert (found.x, found.y, found.heading) == (6, 1, 0)


def test_a_blind_planner_walks_into_lava_and_other_tasks_are_unchanged() -> None:
    gap = _view("#####", "#.~G#", "#...#", "#####", at=(1, 1))
    assert plan(gap, "lava_gap", _GET, _MOVES).best == ("right",)
    blind = faulty_plan(gap, "blind", "lava_gap", _GET, _MOVES)
    assert blind.best == ("forward",)
    assert "Hazards: none" in blind.analysis
    door = _view("#####", "#...D", "#####", at=(1, 1))
    question = ("go_to_door", "go to the red door", (*_MOVES, "done"))
    assert faulty_plan(door, "blind", *question) == plan(door, *question)


def test_a_shifted_planner_answers_for_where_it_reads_the_agent() -> None:
    view = _view("#####", "#...#", "#..G#", "#####", at=(2, 1))
    shifted = faulty_plan(view, "shifted", "lava_gap", _GET, _MOVES)
    there = _view("#####", "#...#", "#..G#", "#####", at=(3, 1))
    assert shifted == plan(there, "lava_gap", _GET, _MOVES)
    assert shifted.best == ("right",) != plan(view, "lava_gap", _GET, _MOVES).best
    assert shifted.analysis.startswith("Agent: column 3, row 1")


def test_a_mirrored_planner_exchanges_left_and_right() -> None:
    view = _view("#####", "#...#", "#..G#", "#####", at=(3, 1))
    right, mirrored = (
        plan(view, "lava_gap", _GET, _MOVES),
        faulty_plan(view, "mirrored", "lava_gap", _GET, _MOVES),
    )
    assert (right.best, mirrored.best) == (("right",), ("left",))
    assert list(mirrored.probabilities) == list(_MOVES)
    assert mirrored.probabilities["forward"] == right.probabilities["forward"]
    assert mirrored.analysis == right.analysis
    one_turn = ("right", "forward")
    assert faulty_plan(view, "mirrored", "lava_gap", _GET, one_turn) == plan(view, "lava_gap", _GET, one_turn)


@pytest.mark.parametrize(
    ("view", "task", "mission", "why"),
    [
        (_view("#####", "#..G#", "#####", at=(2, 1)), "lava_gap", _GET, "stands on the goal already"),
        (_view("#####", "#..k#", "#####", at=(2, 1)), "fetch", _FETCH, "the picture shows none"),
    ],
)
def test_without_a_plan_for_what_is_read_the_useful_actions_are_even(
    view: View, task: str, mission: str, why: str
) -> None:
    actions = ("left", "forward", "pickup", "toggle")
    answer = faulty_plan(view, "shifted", task, mission, actions)
    share = 1 / (3 if task == "fetch" else 2)
    pickup = share if task == "fetch" else 0
    assert answer.probabilities == {"left": share, "forward": share, "pickup": pickup, "toggle": 0}
    assert answer.analysis.startswith("Agent: column 3, row 1, facing right. No plan: ")
    assert why in answer.analysis


@pytest.mark.parametrize("fault", get_args(Fault))
def test_a_question_without_an_answer_stays_one(fault: Fault) -> None:
    view = _view("#####", "#.k.#", "#####", at=(1, 1))
    with pytest.raises(NoPlan) as refused:
        faulty_plan(view, fault, "fetch", "dance", (*_MOVES, "pickup"))
    assert refused.value.field == "mission"
    with pytest.raises(NoPlan) as refused:
        faulty_plan(view, fault, "fetch", _FETCH, ("done",))
    assert refused.value.field == "actions"

"""Mirrored and turned views: the planner's best actions move with the grid, and so does the picture."""

import itertools

import numpy as np
import pytest

from gridworld.environments import make
from gridworld.pictures import draw, read
from gridworld.planner import NoPlan, plan
from gridworld.symmetry import mirrored, turned
from gridworld.tasks import TASKS
from gridworld.views import View, view_of

pytestmark = pytest.mark.unit

_EXCHANGED = {"left": "right", "right": "left"}


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.key)
@pytest.mark.parametrize(("mirror", "quarters"), list(itertools.product((False, True), range(4))))
def test_the_best_actions_move_with_the_grid(task: object, mirror: bool, quarters: int) -> None:
    env = make(task.env_id)  # type: ignore[attr-defined]
    rng, compared = np.random.default_rng(0), 0
    for seed in range(6):
        env.reset(seed=seed)
        for _ in range(6):
            view = view_of(env)
            moved = turned(mirrored(view) if mirror else view, quarters)
            assert read(draw(moved)) == moved
            try:
                best = _best(view, task, env.unwrapped.mission)
            except NoPlan:
                break
            renamed = {_EXCHANGED.get(action, action) if mirror else action for action in best}
            assert _best(moved, task, env.unwrapped.mission) == renamed
            compared += 1
            if env.step(int(rng.integers(3)))[2]:
                break
    assert compared > 15


def _best(view: View, task: object, mission: str) -> set[str]:
    return set(plan(view, task.key, mission, task.useful).best)  # type: ignore[attr-defined]


def test_cells_and_agent_of_a_grid_that_is_no_square() -> None:
    view = View(np.arange(6, dtype=np.uint8).reshape(2, 3), 2, 1, 3)
    flipped, once = mirrored(view), turned(view, 1)
    assert (flipped.cells_HW.tolist(), flipped.x, flipped.y, flipped.heading) == (
        [[2, 1, 0], [5, 4, 3]],
        0,
        1,
        3,
    )
    assert (once.cells_HW.tolist(), once.x, once.y, once.heading) == ([[3, 0], [4, 1], [5, 2]], 0, 2, 0)
    assert mirrored(flipped) == turned(once, 3) == turned(view, 4) == view

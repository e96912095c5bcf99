"""Value iteration over tables of transitions, and what toy_text's states show."""

from typing import Any

import numpy as np
import pytest

from gridworld.views import EMPTY
from worlds.general import make
from worlds.tables import action_values, optimal_policy
from worlds.toy_text import toy_scene

pytestmark = pytest.mark.unit

_ENVIRONMENTS = ["FrozenLake-v1", "FrozenLake-v1@is_slippery=false", "CliffWalking-v1", "Taxi-v4"]


def _inner(env_id: str) -> Any:
    env = make(env_id, drawn=False)
    env.reset(seed=1)
    return env.unwrapped


@pytest.mark.parametrize("env_id", _ENVIRONMENTS)
def test_the_values_satisfy_bellmans_equation(env_id: str) -> None:
    table = _inner(env_id).P
    values_SA = action_values(table)
    for state, action in np.ndindex(values_SA.shape):
        backed_up = sum(
            p * (reward + 0.95 * values_SA[after].max() * (not ended))
            for p, after, reward, ended in table[state][action]
        )
        assert values_SA[state, action] == pytest.approx(backed_up, abs=1e-8)


def test_equally_good_actions_are_equally_probable() -> None:
    policy = optimal_policy(action_values(_inner("FrozenLake-v1@is_slippery=false").P)[0])
    assert policy[[1, 2]] == pytest.approx([0.5, 0.5], abs=0.02)  # down and right
    assert policy.sum() == pytest.approx(1)


def test_a_lakes_scene() -> None:
    inner = _inner("FrozenLake-v1@is_slippery=false")
    inner.s = 6
    scene = toy_scene(inner)
    assert scene.analysis() == {
        "agent": {"row": 1, "column": 2},
        "target": {"name": "flag", "row": 3, "column": 3},
        "hazards": [[1, 1], [1, 3], [2, 3], [3, 0]],
        "direction": "down-right",
    }
    view = scene.view()
    assert view is not None
    assert (view.x, view.y) == (2, 1)
    assert (view.cells_HW != EMPTY).sum() == 5


def test_a_taxis_target_is_the_passenger_and_then_the_destination() -> None:
    inner = _inner("Taxi-v4")
    inner.s = inner.encode(2, 3, 0, 3)
    waiting, aboard = toy_scene(inner), inner.encode(2, 3, 4, 3)
    inner.s = aboard
    riding = toy_scene(inner)
    assert (waiting.name, waiting.target, waiting.analysis()["direction"]) == (
        "passenger at red",
        (0, 0),
        "up-left",
    )
    assert (riding.name, riding.target, riding.analysis()["direction"]) == (
        "destination at blue",
        (4, 3),
        "down",
    )
    assert riding.view() is None  # the walls between cells are in no cell


def test_another_environment_has_no_scene() -> None:
    with pytest.raises(ValueError, match="none of FrozenLake, CliffWalking and Taxi"):
        toy_scene(_inner("CartPole-v1"))

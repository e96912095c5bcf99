"""Labels judged by experience: values of a small graph by hand, and what becomes of labels."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from student.algorithms.distillation import Labels
from student.algorithms.experience import DISCOUNT, Experience
from student.algorithms.judgement import judged
from student.algorithms.rollout import Rollout

pytestmark = pytest.mark.unit

A = 3
_LEFT, _RIGHT, _FORWARD = range(A)
_DEAD, _CUT = -1, -2
"""Ends of a step: terminated and truncated."""


def _experience(*steps: tuple[int, int, float, int]) -> Experience:
    """The experience of steps (state, action, reward, next state or end)."""
    experience = Experience(A)
    for state, action, reward, following in steps:
        experience.add(_rollout(state, action, reward, following), np.array([max(following, 0)]))
    return experience


def _rollout(state: int, action: int, reward: float, following: int) -> Rollout:
    flag = lambda value: np.array([[value]])  # noqa: E731
    return Rollout(
        states_UK=np.zeros((1, 1), np.uint8),
        rows_U=np.array([state]),
        log_probs_UA=np.zeros((1, A), np.float32),
        values_U=np.zeros(1, np.float32),
        which_TN=flag(0),
        actions_TN=flag(action),
        next_values_TN=np.zeros((1, 1), np.float32),
        rewards_TN=np.array([[reward]], np.float32),
        gains_TN=np.array([[reward]], np.float32),
        terminated_TN=flag(following == _DEAD),
        truncated_TN=flag(following == _CUT),
        last_obs_NK=np.zeros((1, 1), np.uint8),
        ended=[],
    )


_LINE = [(0, _FORWARD, 0.0, 1), (1, _FORWARD, 0.0, 2), (2, _FORWARD, 1.0, _DEAD), (0, _LEFT, 0.0, 0)] * 20
"""Three states in a row; forward from the last one is a success, and left in the first one does nothing."""


def test_values_are_those_of_the_best_way_that_was_experienced() -> None:
    values = _experience(*_LINE, (1, _RIGHT, 0.0, _CUT)).values(4)
    assert values.deterministic
    assert values.v_M.tolist() == pytest.approx([DISCOUNT**2, DISCOUNT, 1, 0])
    assert values.q_MA[0].tolist() == pytest.approx([DISCOUNT**3, 0, DISCOUNT**2])
    assert values.tried_MA.tolist() == [
        [True, False, True],
        [False, False, True],
        [False, False, True],
        [False] * 3,
    ]
    assert values.visits_MA[0].tolist() == [20, 0, 20]


def test_an_action_that_leads_nowhere_known_is_not_known_to_be_bad() -> None:
    values = _experience(*_LINE, (1, _LEFT, 0.0, 3), (3, _LEFT, 0.0, _DEAD)).values(4)
    assert values.tried_MA[1].tolist() == [False, False, True]
    assert values.tried_MA[3].tolist() == [True, False, False]  # an end is known
    assert values.q_MA[3, _LEFT] == -1  # and worse than what was not tried
    result = judged(_said(None, None, None, _LEFT), values, _even, taught=True)
    assert result.probs_BA[3, _LEFT] < 0.01


def test_where_outcomes_differ_only_ends_are_evidence() -> None:
    luck = [(0, _FORWARD, 0.0, following) for following in (1, 2)] * 10
    values = _experience(*luck, (1, _FORWARD, 1.0, _DEAD), (2, _RIGHT, -1.0, _DEAD)).values(3)
    assert not values.deterministic
    assert not values.tried_MA[0].any()
    assert values.v_M.tolist() == [0, 1, 0]  # something untried is better than the end
    assert values.q_MA[2, _RIGHT] == -1


def test_restored_experience_goes_on_alike() -> None:
    first = _experience(*_LINE)
    first.values(4)
    again = Experience(A)
    again.restore(first.state())
    for each in (first, again):
        each.add(_rollout(3, _LEFT, 0.0, 0), np.array([0]))
    a, b = first.values(4), again.values(4)
    assert a.v_M.tolist() == b.v_M.tolist() == pytest.approx([DISCOUNT**2, DISCOUNT, 1, DISCOUNT**3])


def _said(*actions: int | None) -> Labels:
    """One-action labels; None: no label."""
    probs_MA = torch.zeros(len(actions), A)
    for state, action in enumerate(actions):
        if action is not None:
            probs_MA[state, action] = 1
    return Labels(probs_MA, torch.tensor([action is not None for action in actions]))


def _even(rows_B: NDArray[np.intp]) -> torch.Tensor:
    return torch.full((len(rows_B), A), 1 / A)


def test_experience_replaces_labels_that_it_contradicts() -> None:
    values = _experience(*_LINE).values(4)
    result = judged(_said(_LEFT, _FORWARD, None, _RIGHT), values, _even, taught=True)
    assert result.given_B.tolist() == [True, True, False, True]
    assert result.probs_BA[0].argmax() == _FORWARD  # left does nothing there
    assert result.probs_BA[1].tolist() == [0, 0, 1]
    assert result.probs_BA[3].tolist() == [0, 1, 0]  # nothing is known about it
    assert result.powers_B is not None
    assert result.powers_B[0] == 0
    assert 0 < result.powers_B[1] < result.powers_B[3] == 1


def test_without_labels_only_tried_actions_are_weighed() -> None:
    policy_MA = torch.tensor([[0.3, 0.6, 0.1]]).expand(4, A)
    values = _experience(*_LINE).values(4)
    result = judged(_said(_LEFT, None, None, None), values, lambda rows: policy_MA[rows], taught=False)
    assert result.given_B.tolist() == [True, False, False, False]
    assert result.probs_BA[0].tolist() == pytest.approx([0.0, 0.6, 0.4], abs=0.06)


def test_systematic_mistakes_are_corrected_where_nothing_was_tried() -> None:
    """In states 0 .. 19 the teacher's left was tried and right was better; in the last state nothing was."""
    size = 20
    steps = [(s, _LEFT, 0.0, _DEAD) for s in range(size)] + [(s, _RIGHT, 1.0, _DEAD) for s in range(size)]
    values = _experience(*steps * 4).values(size + 1)
    labels = _said(*[_LEFT] * (size + 1))
    result = judged(labels, values, _even, taught=True)
    assert result.probs_BA.argmax(1).tolist() == [_RIGHT] * (size + 1)
    right = _experience(*[(s, a, float(a == _LEFT), _DEAD) for s, a, *_ in steps] * 4).values(size + 1)
    kept = judged(labels, right, _even, taught=True)
    assert kept.probs_BA[size].tolist() == [1, 0, 0]


def test_a_label_that_leads_nowhere_is_doubted_in_favour_of_what_was_not_tried() -> None:
    standing = [(0, _LEFT, 0.0, 0), (0, _RIGHT, 0.0, 0)] * 200
    values = _experience(*standing).values(1)
    result = judged(_said(_LEFT), values, _even, taught=True)
    assert result.probs_BA[0, _FORWARD] > 0.9
    deadly = _experience(*standing, (0, _FORWARD, 0.0, _DEAD)).values(1)
    result = judged(_said(_FORWARD), deadly, _even, taught=True)
    assert result.probs_BA[0].tolist() == pytest.approx([0.5, 0.5, 0], abs=0.01)
    hopeless = _experience(*[(0, action, 0.0, _DEAD) for action in (_LEFT, _FORWARD, _RIGHT)] * 200).values(1)
    result = judged(_said(_FORWARD), hopeless, _even, taught=True)
    assert result.probs_BA[0].tolist() == pytest.approx([1 / 3] * 3, abs=0.05)
    once = _experience(*standing[:2], *_LINE[1:3] * 20).values(3)
    kept = judged(_said(_LEFT, None, None), once, _even, taught=True)
    assert kept.probs_BA[0, _LEFT] > 0.95


def test_before_the_first_step_nothing_is_known() -> None:
    values = Experience(A).values(2)
    assert not values.tried_MA.any()
    assert not values.deterministic
    assert judged(_said(_LEFT, None), values, _even, taught=True).given_B.tolist() == [
        True,
        False,
    ]

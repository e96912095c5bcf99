"""Optimal actions where transitions are a table, as in Gymnasium's toy_text: `env.unwrapped.P`."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Transition = tuple[float, int, float, bool]
"""Probability, next state, reward, and whether the episode ends."""
Table = Mapping[int, Mapping[int, Sequence[Transition]]]
"""State -> action -> its transitions."""

_DISCOUNT, _TEMPERATURE, _PRECISION = 0.95, 0.01, 1e-9


def action_values(table: Table) -> NDArray[np.float64]:
    """Returns the value of each action in each state, [S, A], by value iteration with discount 0.95."""
    actions = len(table[0])
    transitions = [
        (state * actions + action, *transition)
        for state, taken in table.items()
        for action, outcomes in taken.items()
        for transition in outcomes
    ]
    pair_T, p_T, after_T, reward_T, ended_T = (np.array(column) for column in zip(*transitions, strict=True))
    values_SA = np.zeros((len(table), actions))
    while True:
        gained_T = p_T * (reward_T + _DISCOUNT * values_SA.max(1)[after_T] * ~ended_T)
        before_SA = values_SA
        values_SA = np.bincount(pair_T, gained_T, before_SA.size).astype(np.float64).reshape(-1, actions)
        if np.abs(values_SA - before_SA).max() < _PRECISION:
            return values_SA


def optimal_policy(values_A: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns a sharp softmax of the values of a state's actions, [A]: equal values, equal probabilities."""
    weights_A = np.exp((values_A - values_A.max()) / _TEMPERATURE)
    return np.asarray(weights_A / weights_A.sum(), np.float64)

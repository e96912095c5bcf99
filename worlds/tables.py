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
    values_SA = np.zeros((len(table), len(table[0])))
    while True:
        before_SA = values_SA.copy()
        for state, action in np.ndindex(values_SA.shape):
            values_SA[state, action] = sum(
                p * (reward + _DISCOUNT * values_SA[after].max() * (not ended))
                for p, after, reward, ended in table[state][action]
            )
        if np.abs(values_SA - before_SA).max() < _PRECISION:
            return values_SA


def optimal_policy(values_A: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns a sharp softmax of the values of a state's actions, [A]: equal values, equal probabilities."""
    weights_A = np.exp((values_A - values_A.max()) / _TEMPERATURE)
    return weights_A / weights_A.sum()

"""What a student has experienced: counted transitions between states, and the values that follow."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from student.algorithms.rollout import Rollout, Rows

DISCOUNT = 0.95
"""Of the values; below the usual 0.99, so that a detour of one step stands out."""
_FAILURE = -1.0
"""The value of an end without success, if it has no lower reward: whatever else there is to do is better."""
CAPACITY = 65_536
"""Different transitions that are kept; later ones are not recorded."""
_SWEEPS = 10
"""Bellman backups in one call of `values`; they start from the values of the call before."""
_REPEATABLE, _REPETITIONS = 0.95, 20
"""The environment counts as deterministic if this share of the actions that were repeated in a state led to
one state each, and there were so many repetitions."""


@dataclass(frozen=True)
class Values:
    """Values of the actions that were tried in M states, in the best continuation that was experienced.

    tried_MA: the actions with a value. Where the environment is not deterministic, the best continuation is
        luck, and only actions that ended the episode at once have a value.
    q_MA: their values; 0 elsewhere.
    v_M: the value of the best action, at least 0: there may be something better than what was tried.
    visits_MA: how often each action was tried.
    deterministic: whether equal actions in equal states have led to equal states.
    """

    tried_MA: NDArray[np.bool_]
    q_MA: NDArray[np.float64]
    v_M: NDArray[np.float64]
    visits_MA: NDArray[np.float64]
    deterministic: bool


class Experience:
    """Transitions (s, a, s', terminated), counted, each with its mean reward.

    The values are those of dynamic programming on the graph of the states met: Q(s, a) = mean(r + DISCOUNT *
    V(s')) and V(s) = max over the actions tried in s, as in episodic control (Blundell et al., arXiv
    1606.04460), but with paths joined where they meet. A state where no success is known has value 0.
    """

    def __init__(self, actions: int) -> None:
        self._actions = actions
        self._index: dict[tuple[int, int], int] = {}
        self._pairs_C = np.empty(0, np.int64)
        self._next_C = np.empty(0, np.int64)
        self._counts_C = np.empty(0)
        self._rewards_C = np.empty(0)
        self._values_M = np.empty(0)
        self._deterministic = False

    @property
    def full(self) -> bool:
        """Whether no more transitions are to be added."""
        return len(self._index) >= CAPACITY

    def useful(self, *, taught: bool) -> bool:
        """Whether experience can improve targets: without labels only in a deterministic environment."""
        return taught or self._deterministic

    def add(self, rollout: Rollout, last_rows_N: Rows) -> None:
        """Adds a rollout's steps, except those that were truncated: the state that they led to is not in it.

        Args:
            last_rows_N: the rows of the states after the last step.
        """
        rows_TN = rollout.rows_U[rollout.which_TN]
        next_TN = np.concatenate([rows_TN[1:], last_rows_N[None]])
        next_TN = np.where(rollout.terminated_TN, -1, next_TN)
        kept_TN = rollout.terminated_TN | ~rollout.truncated_TN
        pairs_B = (rows_TN * self._actions + rollout.actions_TN)[kept_TN]
        next_B, rewards_B = next_TN[kept_TN], rollout.gains_TN[kept_TN]
        known = len(self._index)
        which_B = np.array(
            [
                self._index.setdefault(key, len(self._index))
                for key in zip(pairs_B.tolist(), next_B.tolist(), strict=True)
            ],
            np.intp,
        )
        new = len(self._index) - known
        if new:
            self._pairs_C, self._next_C, self._counts_C, self._rewards_C = (
                np.concatenate([array, np.zeros(new, array.dtype)])
                for array in (self._pairs_C, self._next_C, self._counts_C, self._rewards_C)
            )
            self._pairs_C[which_B], self._next_C[which_B] = pairs_B, next_B
        np.add.at(self._counts_C, which_B, 1.0)
        np.add.at(self._rewards_C, which_B, rewards_B)

    def values(self, states: int) -> Values:
        """Returns the values of rows 0 .. states - 1, after more backups; `add` was given no other rows."""
        size = states * self._actions
        ended_C, counts_C = self._next_C < 0, self._counts_C
        visits = np.bincount(self._pairs_C, counts_C, size).astype(np.float64)
        tried, share = visits > 0, 1 / np.maximum(visits, 1)
        live_C = np.where(ended_C, 0.0, DISCOUNT) * counts_C
        failed_C = ended_C & (self._rewards_C <= 0)
        rewards_C = np.minimum(self._rewards_C, np.where(failed_C, _FAILURE * counts_C, np.inf))
        v_M = np.concatenate([self._values_M, np.zeros(states - len(self._values_M))])
        q_MA = np.zeros((states, self._actions))
        for _ in range(_SWEEPS):
            backed_up = rewards_C + live_C * v_M[self._next_C]
            q_MA = (np.bincount(self._pairs_C, backed_up, size) * share).reshape(states, -1)
            v_M = q_MA.max(1).clip(min=0)
        self._values_M = v_M
        # A state from which no success is known is not known to be bad
        known_C = ended_C | (v_M[self._next_C] > 0)
        tried &= np.bincount(self._pairs_C, known_C, size) > 0
        self._deterministic = self._is_deterministic(visits)
        if not self._deterministic:
            tried &= np.bincount(self._pairs_C, live_C, size) == 0
        tried_MA = tried.reshape(states, -1)
        q_MA = np.where(tried_MA, q_MA, 0)
        if not self._deterministic:
            v_M = q_MA.max(1).clip(min=0)
        return Values(tried_MA, q_MA, v_M, visits.reshape(states, -1), self._deterministic)

    def _is_deterministic(self, visits: NDArray[np.float64]) -> bool:
        """Whether repeated actions led to one state each; False until enough were repeated."""
        repeated = visits >= 2
        outcomes = np.bincount(self._pairs_C, minlength=len(visits))[repeated]
        enough = (visits[repeated] - 1).sum() >= _REPETITIONS
        return bool(enough and (outcomes == 1).mean() >= _REPEATABLE)

    def state(self) -> dict[str, Any]:
        """Returns the transitions and values for a checkpoint."""
        arrays = {
            "pairs": self._pairs_C,
            "next": self._next_C,
            "counts": self._counts_C,
            "rewards": self._rewards_C,
            "values": self._values_M,
        }
        stored: dict[str, Any] = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        return stored | {"deterministic": self._deterministic}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the state of a checkpoint."""
        arrays = (state[name].numpy() for name in ("pairs", "next", "counts", "rewards", "values"))
        self._pairs_C, self._next_C, self._counts_C, self._rewards_C, self._values_M = arrays
        self._deterministic = state["deterministic"]
        keys = zip(self._pairs_C.tolist(), self._next_C.tolist(), strict=True)
        self._index = {key: i for i, key in enumerate(keys)}

"""Rewards of any size, brought to one that the losses are made for."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from student.algorithms.rollout import Rollout

_MOST = 10.0
"""The largest scaled reward, either way."""


class RewardScale:
    """Divides rewards by the standard deviation of the discounted return, over all steps so far.

    The value's loss would otherwise outweigh the policy's: CliffWalking's returns are -13 to -100,000. As in
    the code of PPO (Engstrom et al., arXiv 2005.12729, section 3), and in Gymnasium's `NormalizeReward`.

    Args:
        environments: N.
    """

    def __init__(self, environments: int, gamma: float) -> None:
        self._gamma = gamma
        self._returns_N = np.zeros(environments)
        self._count = self._mean = self._squares = 0.0
        """The squares are the sum of squared differences to the mean."""

    def scaled(self, rollout: Rollout) -> Rollout:
        """Returns a rollout with scaled rewards; the rollouts of a run follow each other."""
        ended_TN = rollout.ended_TN
        returns_TN = np.empty(ended_TN.shape)
        for t, rewards_N in enumerate(rollout.rewards_TN):
            returns_TN[t] = self._returns_N = self._gamma * self._returns_N + rewards_N
            self._returns_N = np.where(ended_TN[t], 0, self._returns_N)
        self._add(returns_TN)
        deviation = np.sqrt(self._squares / self._count) or 1.0
        rewards_TN = np.clip(rollout.rewards_TN / deviation, -_MOST, _MOST).astype(np.float32)
        return replace(rollout, rewards_TN=rewards_TN)

    def _add(self, values: np.ndarray[Any, Any]) -> None:
        """Adds values to the running mean and variance (Chan et al. 1979)."""
        count, mean = values.size, float(values.mean())
        total = self._count + count
        self._squares += float(((values - mean) ** 2).sum())
        self._squares += (mean - self._mean) ** 2 * self._count * count / total
        self._mean += (mean - self._mean) * count / total
        self._count = total

    def state(self) -> dict[str, Any]:
        """Returns everything that `restore` needs."""
        return {
            "returns": torch.from_numpy(self._returns_N.copy()),
            "moments": [self._count, self._mean, self._squares],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self._returns_N = state["returns"].numpy()
        self._count, self._mean, self._squares = state["moments"]

"""Rollouts: T steps in N environments, and the generalised advantage estimates that follow from them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from student.algorithms.networks import ActorCritic
from student.states import StateIndex
from worlds.world import Environments

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Rollout:
    """T steps in each of N environments, in which U different states were acted on.

    states_UK: the states, uint8, in the order in which they were first met.
    rows_U: the row of each state in the label table; 0 .. U-1 where no table numbered the states.
    log_probs_UA: of all actions, by the policy that acted.
    which_TN: the state that each step was taken in, an index into U.
    gains_TN: what experience counts as reward; see `worlds.world.Step`.
    next_values_TN: the value of the observation that each step led to; 0 where the episode was terminated,
        the value of the episode's last observation where it was truncated.
    last_obs_NK: the observations after the last step, which the next rollout starts from.
    ended: (return, length) of the episodes that ended.
    """

    states_UK: NDArray[np.uint8]
    rows_U: Rows
    log_probs_UA: Floats
    values_U: Floats
    which_TN: Rows
    actions_TN: NDArray[np.int64]
    next_values_TN: Floats
    rewards_TN: Floats
    gains_TN: Floats
    terminated_TN: Bools
    truncated_TN: Bools
    last_obs_NK: NDArray[np.uint8]
    ended: list[tuple[float, int]]

    @property
    def values_TN(self) -> Floats:
        return self.values_U[self.which_TN]

    @property
    def ended_TN(self) -> Bools:
        """Whether the step ended its episode."""
        return self.terminated_TN | self.truncated_TN

    @property
    def log_probs_TN(self) -> Floats:
        """Log-probabilities of the actions taken."""
        return self.log_probs_UA[self.which_TN, self.actions_TN]


def collect(
    network: ActorCritic,
    envs: Environments,
    obs_NK: NDArray[np.uint8],
    steps: int,
    rng: np.random.Generator,
    rows_of: Callable[[NDArray[np.uint8]], Rows] | None = None,
    on_new: Callable[[Rows], object] = lambda rows: None,
) -> Rollout:
    """Collects a rollout with actions sampled from the network's policy.

    Args:
        obs_NK: the observations to start from.
        steps: T.
        rows_of: numbers states, as a label table does; None: numbers those of this rollout.
        on_new: called with the rows of the states that are met for the first time in this rollout, before the
            network acts on them.
    """
    judged = _Judged(network, steps * len(obs_NK), obs_NK.shape[1], rows_of or StateIndex().rows_of, on_new)
    which, actions, rewards, gains = [], [], [], []
    terminations, truncations, cut_off, ended = [], [], [], []
    for t in range(steps):
        which_N = judged.which_of(obs_NK)
        actions_N = sample(judged.log_probs_UA[which_N], rng)
        step = envs.step(actions_N)
        which.append(which_N)
        actions.append(actions_N)
        rewards.append(step.rewards_N)
        gains.append(step.gains_N)
        terminations.append(step.terminated_N)
        truncations.append(step.truncated_N)
        ended += step.ended
        for n in np.flatnonzero(step.truncated_N & ~step.terminated_N):
            cut_off.append((t, int(n), step.last_NK[n]))
        obs_NK = step.obs_NK
    which_TN = np.stack(which)
    next_values_TN = np.concatenate([judged.values_U[which_TN[1:]], act(network, obs_NK)[1][None]])
    next_values_TN[np.stack(terminations) | np.stack(truncations)] = 0
    if cut_off:
        t_C, n_C, last_CK = zip(*cut_off, strict=True)
        next_values_TN[list(t_C), list(n_C)] = act(network, np.stack(last_CK))[1]
    return Rollout(
        judged.states_UK,
        judged.rows_U,
        judged.log_probs_UA,
        judged.values_U,
        which_TN,
        np.stack(actions),
        next_values_TN,
        np.stack(rewards),
        np.stack(gains),
        np.stack(terminations),
        np.stack(truncations),
        obs_NK,
        ended,
    )


class _Judged:
    """The network's output for the states of a rollout: it does not change, so each state is judged once."""

    def __init__(
        self,
        network: ActorCritic,
        most: int,
        length: int,
        rows_of: Callable[[NDArray[np.uint8]], Rows],
        on_new: Callable[[Rows], object],
    ) -> None:
        """Args:
        most: the most states that there can be.
        length: K, the length of an observation.
        """
        self._network, self._rows_of, self._on_new = network, rows_of, on_new
        self._which: dict[int, int] = {}
        """The index of each row's state in U."""
        self._rows_M = np.empty(most, np.intp)
        self._states_MK = np.empty((most, length), np.uint8)
        self._values_M = np.empty(most, np.float32)
        self._log_probs_MA = np.empty((most, network.actor.out_features), np.float32)

    def which_of(self, obs_NK: NDArray[np.uint8]) -> Rows:
        """Returns the index in U of each of N states [N], after judging the new ones among them."""
        which, before = self._which, len(self._which)
        rows_N = self._rows_of(obs_NK)
        which_N = np.array([which.setdefault(row, len(which)) for row in rows_N.tolist()], np.intp)
        new = slice(before, len(which))
        if new.stop > before:
            self._rows_M[which_N], self._states_MK[which_N] = rows_N, obs_NK
            self._on_new(self._rows_M[new])
            self._log_probs_MA[new], self._values_M[new] = act(self._network, self._states_MK[new])
        return which_N

    @property
    def states_UK(self) -> NDArray[np.uint8]:
        return self._states_MK[: len(self._which)]

    @property
    def rows_U(self) -> Rows:
        return self._rows_M[: len(self._which)]

    @property
    def log_probs_UA(self) -> Floats:
        return self._log_probs_MA[: len(self._which)]

    @property
    def values_U(self) -> Floats:
        return self._values_M[: len(self._which)]


@torch.inference_mode()
def act(network: ActorCritic, obs_BK: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Returns the policy's log-probabilities [B, A] and the values [B] of observations [B, K]."""
    logits_BA, values_B = network(torch.from_numpy(obs_BK))
    return logits_BA.log_softmax(1).numpy(), values_B.numpy()


def sample(log_probs_BA: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns an action for each row, int64 [B], drawn by inverting the cumulative distribution."""
    cumulative_BA = np.exp(log_probs_BA.astype(np.float64)).cumsum(1)
    draws_B1 = rng.random((len(log_probs_BA), 1)) * cumulative_BA[:, -1:]
    actions_B: NDArray[np.int64] = (cumulative_BA <= draws_B1).sum(1)
    return actions_B


def advantages(rollout: Rollout, gamma: float, gae_lambda: float) -> Floats:
    """Returns the generalised advantage estimates [T, N] (Schulman et al., arXiv 1506.02438, equation 16).

    The sum stops at the end of an episode, terminated or truncated; the episode's last step bootstraps from
    `next_values_TN`, where the two differ.
    """
    deltas_TN = rollout.rewards_TN + gamma * rollout.next_values_TN - rollout.values_TN
    advantages_TN = np.empty_like(deltas_TN)
    following_N = np.zeros(deltas_TN.shape[1], np.float32)
    for t in reversed(range(len(deltas_TN))):
        following_N = deltas_TN[t] + gamma * gae_lambda * np.where(rollout.ended_TN[t], 0, following_N)
        advantages_TN[t] = following_N
    return advantages_TN

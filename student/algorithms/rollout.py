"""A rollout: T steps in N environments, and what follows from them: returns and advantages."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from student.algorithms.networks import ActorCritic
from student.environments import Environments, keys_of

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Rollout:
    """T steps in each of N environments, in which U different states were acted on.

    next_values_TN: the value of the observation that each step led to, 0 where the episode was over
    (terminated) and the value of its last observation where it was only cut off (truncated).
    """

    states_UK: NDArray[np.uint8]
    """The observations of the states, in the order in which they were first met."""
    log_probs_UA: Floats
    """Of all actions, by the policy that acted."""
    values_U: Floats
    which_TN: NDArray[np.intp]
    """The state that each step was taken in."""
    actions_TN: NDArray[np.int64]
    next_values_TN: Floats
    rewards_TN: Floats
    terminated_TN: Bools
    truncated_TN: Bools
    last_obs_NK: NDArray[np.uint8]
    """Where the environments stand after the last step."""
    ended: list[tuple[float, int]]
    """(return, length) of the episodes that ended on the way."""

    @property
    def values_TN(self) -> Floats:
        return self.values_U[self.which_TN]

    @property
    def log_probs_TN(self) -> Floats:
        """Of the actions taken."""
        return self.log_probs_UA[self.which_TN, self.actions_TN]


def collect(
    network: ActorCritic,
    envs: Environments,
    obs_NK: NDArray[np.uint8],
    steps: int,
    rng: np.random.Generator,
    on_states: Callable[[NDArray[np.uint8]], None] | None = None,
) -> Rollout:
    """Acts for `steps` steps with actions sampled from the network's policy.

    Args:
        on_states: called with the observations [n, K] of n states that the network is about to act on for
            the first time in this rollout.
    """
    judged = _Judged(network, steps * len(obs_NK), obs_NK.shape[1], on_states)
    which, actions, rewards = [], [], []
    terminations, truncations, cut_off, ended = [], [], [], []
    for t in range(steps):
        which_N = judged.rows_of(obs_NK)
        actions_N = sample(judged.log_probs_UA[which_N], rng)
        step = envs.step(actions_N)
        which.append(which_N)
        actions.append(actions_N)
        rewards.append(step.rewards_N)
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
        judged.log_probs_UA,
        judged.values_U,
        which_TN,
        np.stack(actions),
        next_values_TN,
        np.stack(rewards),
        np.stack(terminations),
        np.stack(truncations),
        obs_NK,
        ended,
    )


class _Judged:
    """The states of a rollout. The network does not change while it acts: it judges each of them once."""

    def __init__(
        self,
        network: ActorCritic,
        most: int,
        length: int,
        on_states: Callable[[NDArray[np.uint8]], None] | None,
    ) -> None:
        """Args:
        most: at most so many states, of observations of this length.
        """
        self._network, self._on_states = network, on_states
        self._rows: dict[bytes, int] = {}
        self._states_MK = np.empty((most, length), np.uint8)
        self._values_M = np.empty(most, np.float32)
        self._log_probs_MA = np.empty((most, network.actor.out_features), np.float32)

    def rows_of(self, obs_NK: NDArray[np.uint8]) -> NDArray[np.intp]:
        """The rows of these states, after judging the new ones among them."""
        keys, before = keys_of(obs_NK), len(self._rows)
        which_N = np.array([self._rows.setdefault(key, len(self._rows)) for key in keys], np.intp)
        new = slice(before, len(self._rows))
        if new.stop > before:
            self._states_MK[which_N] = obs_NK
            states_UK = self._states_MK[new]
            if self._on_states is not None:
                self._on_states(states_UK)
            self._log_probs_MA[new], self._values_M[new] = act(self._network, states_UK)
        return which_N

    @property
    def states_UK(self) -> NDArray[np.uint8]:
        return self._states_MK[: len(self._rows)]

    @property
    def log_probs_UA(self) -> Floats:
        return self._log_probs_MA[: len(self._rows)]

    @property
    def values_U(self) -> Floats:
        return self._values_M[: len(self._rows)]


@torch.inference_mode()
def act(network: ActorCritic, obs_BK: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Log-probabilities [B, A] and values [B]."""
    logits_BA, values_B = network(torch.from_numpy(obs_BK))
    return logits_BA.log_softmax(1).numpy(), values_B.numpy()


def sample(log_probs_BA: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """An action for each row, by inverting the cumulative distribution: int64 [B]."""
    cumulative_BA = np.exp(log_probs_BA.astype(np.float64)).cumsum(1)
    draws_B1 = rng.random((len(log_probs_BA), 1)) * cumulative_BA[:, -1:]
    actions_B: NDArray[np.int64] = (cumulative_BA <= draws_B1).sum(1)
    return actions_B


def advantages(rollout: Rollout, gamma: float, gae_lambda: float) -> Floats:
    """Generalised advantage estimates [T, N] (Schulman et al., arXiv 1506.02438, equation 16).

    An episode's end cuts the sum, whichever way it ended; its last step bootstraps from
    `next_values_TN`, which tells termination and truncation apart.
    """
    ended_TN = rollout.terminated_TN | rollout.truncated_TN
    deltas_TN = rollout.rewards_TN + gamma * rollout.next_values_TN - rollout.values_TN
    advantages_TN = np.empty_like(deltas_TN)
    following_N = np.zeros(deltas_TN.shape[1], np.float32)
    for t in reversed(range(len(deltas_TN))):
        following_N = deltas_TN[t] + gamma * gae_lambda * np.where(ended_TN[t], 0, following_N)
        advantages_TN[t] = following_N
    return advantages_TN

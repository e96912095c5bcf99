"""A rollout: T steps in N environments, and what follows from them: returns and advantages."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from student.envs import Environments
from student.networks import ActorCritic

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Rollout:
    """T steps in each of N environments.

    next_values_TN: the value of the observation that each step led to, 0 where the episode was over
    (terminated) and the value of its last observation where it was only cut off (truncated).
    """

    obs_TNK: NDArray[np.uint8]
    actions_TN: NDArray[np.int64]
    log_probs_TNA: Floats
    """Of all actions, by the policy that acted."""
    values_TN: Floats
    next_values_TN: Floats
    rewards_TN: Floats
    terminated_TN: Bools
    truncated_TN: Bools
    last_obs_NK: NDArray[np.uint8]
    """Where the environments stand after the last step."""
    ended: list[tuple[float, int]]
    """(return, length) of the episodes that ended on the way."""

    @property
    def obs_BK(self) -> NDArray[np.uint8]:
        """The observations in one row, B = T * N."""
        return self.obs_TNK.reshape(-1, self.obs_TNK.shape[-1])

    @property
    def log_probs_TN(self) -> Floats:
        """Of the actions taken."""
        taken_TN1 = np.take_along_axis(self.log_probs_TNA, self.actions_TN[..., None], 2)
        return taken_TN1[..., 0]


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
        on_states: called at each step with the observations [N, K] that the network is about to act on.
    """
    observations, actions, log_probs, values, rewards = [], [], [], [], []
    terminations, truncations, cut_off, ended = [], [], [], []
    for t in range(steps):
        if on_states is not None:
            on_states(obs_NK)
        log_probs_NA, values_N = act(network, obs_NK)
        actions_N = sample(log_probs_NA, rng)
        step = envs.step(actions_N)
        observations.append(obs_NK)
        actions.append(actions_N)
        log_probs.append(log_probs_NA)
        values.append(values_N)
        rewards.append(step.rewards_N)
        terminations.append(step.terminated_N)
        truncations.append(step.truncated_N)
        ended += step.ended
        for n in np.flatnonzero(step.truncated_N & ~step.terminated_N):
            cut_off.append((t, int(n), step.last_NK[n]))
        obs_NK = step.obs_NK
    values_TN = np.stack(values)
    next_values_TN = np.concatenate([values_TN[1:], act(network, obs_NK)[1][None]])
    next_values_TN[np.stack(terminations) | np.stack(truncations)] = 0
    if cut_off:
        t_C, n_C, last_CK = zip(*cut_off, strict=True)
        next_values_TN[list(t_C), list(n_C)] = act(network, np.stack(last_CK))[1]
    return Rollout(
        np.stack(observations),
        np.stack(actions),
        np.stack(log_probs),
        values_TN,
        next_values_TN,
        np.stack(rewards),
        np.stack(terminations),
        np.stack(truncations),
        obs_NK,
        ended,
    )


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

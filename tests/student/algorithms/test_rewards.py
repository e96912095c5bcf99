"""The scale of rewards against the deviation of all discounted returns so far, calculated step by step."""

import numpy as np
import pytest

from student.algorithms.networks import network_of
from student.algorithms.rewards import RewardScale
from student.algorithms.rollout import Rollout, collect
from worlds.registry import world_of
from worlds.world import Environments

pytestmark = pytest.mark.unit

_GAMMA = 0.9


def _rollouts() -> list[Rollout]:
    """Rollouts that follow each other, in which episodes end and a step costs 1 or 100."""
    world = world_of("CliffWalking-v1@max_episode_steps=7")
    envs, rng = Environments(world, 3, seed=0), np.random.default_rng(0)
    network, obs_NK, rollouts = network_of(world), envs.reset(), []
    for _ in range(3):
        rollouts.append(collect(network, envs, obs_NK, 10, rng))
        obs_NK = rollouts[-1].last_obs_NK
    return rollouts


def test_rewards_are_divided_by_the_deviation_of_all_returns() -> None:
    rollouts, scale = _rollouts(), RewardScale(3, _GAMMA)
    returns, carried = [], [0.0] * 3
    for rollout in rollouts:
        for t, n in np.ndindex(rollout.rewards_TN.shape):
            carried[n] = _GAMMA * carried[n] + float(rollout.rewards_TN[t, n])
            returns.append(carried[n])
            carried[n] *= not rollout.ended_TN[t, n]
        expected = np.clip(rollout.rewards_TN / np.std(returns), -10, 10)
        np.testing.assert_allclose(scale.scaled(rollout).rewards_TN, expected, rtol=1e-5)
    assert any(rollout.ended_TN.any() for rollout in rollouts)
    assert {float(reward) for rollout in rollouts for reward in rollout.rewards_TN.flat} == {-1.0, -100.0}


def test_a_restored_scale_goes_on_as_the_first() -> None:
    *before, last = _rollouts()
    scale, other = RewardScale(3, _GAMMA), RewardScale(3, _GAMMA)
    for rollout in before:
        scale.scaled(rollout)
    other.restore(scale.state())
    np.testing.assert_array_equal(other.scaled(last).rewards_TN, scale.scaled(last).rewards_TN)


def test_without_a_reward_nothing_is_divided() -> None:
    rollout = _rollouts()[0]
    rollout.rewards_TN[:] = 0
    assert not RewardScale(3, _GAMMA).scaled(rollout).rewards_TN.any()

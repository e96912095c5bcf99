"""Advantages against closed forms and against a direct sum, rollouts against the network and environments."""

import numpy as np
import pytest
import torch

from student.algorithms.networks import GridNetwork
from student.algorithms.rollout import Rollout, act, advantages, collect, sample
from student.states import StateIndex
from worlds.minigrid import MinigridWorld, Vocabulary, layout_of
from worlds.world import Environments

pytestmark = pytest.mark.unit

GAMMA, LAMBDA = 0.9, 0.8


def _rollout(
    rewards_T: list[float],
    values_T: list[float],
    next_values_T: list[float],
    terminated: tuple[int, ...] = (),
    truncated: tuple[int, ...] = (),
) -> Rollout:
    steps = len(rewards_T)
    column = lambda values: np.array(values, np.float32)[:, None]  # noqa: E731
    flags = lambda at: np.isin(np.arange(steps), at)[:, None]  # noqa: E731
    states = np.arange(steps)
    return Rollout(
        states[:, None].astype(np.uint8),
        states,
        np.zeros((steps, 1), np.float32),
        np.array(values_T, np.float32),
        states[:, None],
        np.zeros((steps, 1), np.int64),
        column(next_values_T),
        column(rewards_T),
        column(rewards_T),
        flags(terminated),
        flags(truncated),
        np.zeros((1, 1), np.uint8),
        [],
    )


def test_with_lambda_1_and_constant_reward_the_return_is_the_geometric_series() -> None:
    """Endless reward 1: with the exact value 1 / (1 - gamma) every advantage is 0."""
    value = 1 / (1 - GAMMA)
    rollout = _rollout([1.0] * 6, [value] * 6, [value] * 6)
    np.testing.assert_allclose(advantages(rollout, GAMMA, 1.0), 0, atol=1e-5)


def test_being_cut_off_is_not_an_end() -> None:
    """Reward 1 at each step, cut off in the middle: with the exact values the advantages stay 0."""
    value = 1 / (1 - GAMMA)
    rollout = _rollout([1.0] * 6, [value] * 6, [value] * 6, truncated=(2,))
    np.testing.assert_allclose(advantages(rollout, GAMMA, 0.95), 0, atol=1e-5)


def test_an_end_bootstraps_from_nothing() -> None:
    """Reward 1 and the end at step 2: the return of step t is the finite series, whatever follows."""
    rollout = _rollout([1.0, 1.0, 1.0, 5.0], [0.0] * 4, [0.0, 0.0, 0.0, 7.0], terminated=(2,))
    expected = [1 + GAMMA + GAMMA**2, 1 + GAMMA, 1.0, 5 + GAMMA * 7]
    np.testing.assert_allclose(advantages(rollout, GAMMA, 1.0)[:, 0], expected, rtol=1e-6)


def test_random_rollouts_against_the_definition() -> None:
    """A_t = sum_k (gamma lambda)^k delta_{t+k} up to the episode's end, summed directly in float64."""
    rng = np.random.default_rng(0)
    steps = 40
    rewards, values, next_values = rng.normal(size=(3, steps))
    terminated = tuple(int(t) for t in rng.choice(steps, 4, replace=False))
    truncated = tuple(int(t) for t in rng.choice(steps, 4, replace=False)) + terminated[:1]  # both at once
    next_values[list(terminated)] = 0
    rollout = _rollout(list(rewards), list(values), list(next_values), terminated, truncated)
    expected = np.zeros(steps)
    for t in range(steps):
        for k in range(t, steps):
            delta = rewards[k] + GAMMA * next_values[k] - values[k]
            expected[t] += (GAMMA * LAMBDA) ** (k - t) * delta
            if k in terminated or k in truncated:
                break
    np.testing.assert_allclose(advantages(rollout, GAMMA, LAMBDA)[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_a_real_rollout_bootstraps_by_how_each_episode_ended() -> None:
    """LavaGap with the step limit lowered to 5, so that all kinds of ends occur, both flags together too."""
    torch.manual_seed(0)
    layout = layout_of("MiniGrid-LavaGapS5-v0")
    network = GridNetwork(layout)
    envs = Environments(MinigridWorld(layout, Vocabulary()), 8, seed=1)
    for env in envs._envs:
        env._env.max_steps = 5
    seen = []
    step_once = envs.step

    def recorded(actions_N: np.ndarray) -> object:
        seen.append(step_once(actions_N))
        return seen[-1]

    envs.step = recorded  # type: ignore[assignment]
    index, met = StateIndex(), envs.reset()
    rows_N = index.rows_of(met[::-1])  # as a table that knows some states already
    new: list[np.ndarray] = []
    rollout = collect(network, envs, met, 200, np.random.default_rng(0), index.rows_of, new.append)
    kinds = {
        (bool(a), bool(b)) for a, b in zip(rollout.terminated_TN.flat, rollout.truncated_TN.flat, strict=True)
    }
    assert kinds == {(False, False), (True, False), (False, True), (True, True)}
    for t, step in enumerate(seen):
        after_N = np.where(step.terminated_N, 0, act(network, step.last_NK)[1])
        np.testing.assert_allclose(rollout.next_values_TN[t], after_N, atol=1e-5)
        if t + 1 < len(seen):
            np.testing.assert_array_equal(rollout.states_UK[rollout.which_TN[t + 1]], step.obs_NK)
    np.testing.assert_array_equal(np.concatenate(new), rollout.rows_U)
    np.testing.assert_array_equal(index.rows_of(rollout.states_UK), rollout.rows_U)
    np.testing.assert_array_equal(rollout.rows_U[rollout.which_TN[0]], rows_N[::-1])
    assert sorted(rollout.rows_U) == list(range(len(index)))
    assert len({row.tobytes() for row in rollout.states_UK}) == len(rollout.states_UK) < rollout.which_TN.size
    log_probs_UA, values_U = act(network, rollout.states_UK)
    np.testing.assert_allclose(rollout.log_probs_UA, log_probs_UA, atol=1e-5)
    np.testing.assert_allclose(rollout.values_U, values_U, atol=1e-5)
    assert len(rollout.ended) == int((rollout.terminated_TN | rollout.truncated_TN).sum())
    np.testing.assert_array_equal(rollout.last_obs_NK, seen[-1].obs_NK)


def test_actions_are_drawn_with_their_probabilities() -> None:
    probs_A = np.array([0.5, 0.0, 0.3, 0.2])
    with np.errstate(divide="ignore"):
        log_probs_BA = np.log(np.tile(probs_A, (20_000, 1))).astype(np.float32)
    counts_A = np.bincount(sample(log_probs_BA, np.random.default_rng(0)), minlength=4)
    assert counts_A[1] == 0
    np.testing.assert_allclose(counts_A / 20_000, probs_A, atol=0.015)

"""Policies, and how they do in held-out episodes: the same episodes for every policy."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gridworld.episodes import Evaluation, play
from student.algorithms.rollout import sample
from worlds.world import World, stacked

Policy = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Observations uint8 [B, K] to log-probabilities [B, A]."""


def evaluate(policy: Policy, world: World, episodes: int, rng: np.random.Generator | None) -> Evaluation:
    """Plays the first `episodes` held-out episodes.

    Args:
        rng: samples the actions; None: the most probable actions are taken.
    """
    return play(
        world.environment,
        lambda observations: choose(policy(stacked(observations)), rng).tolist(),
        episodes,
        success_above=world.success_above,
    )


def choose(log_probs_BA: NDArray[np.float32], rng: np.random.Generator | None) -> NDArray[np.int64]:
    """Returns an action for each of B states [B]: sampled, or the most probable if `rng` is None."""
    return log_probs_BA.argmax(1) if rng is None else sample(log_probs_BA, rng)

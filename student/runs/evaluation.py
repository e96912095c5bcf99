"""How good a policy is: episodes on held-out seeds, the same ones for every policy."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gridworld.episodes import Evaluation, play
from student.algorithms.rollout import sample
from student.environments import Environment, Layout, Vocabulary, stacked

Policy = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Observations uint8 [B, K] to log-probabilities [B, A]."""


def evaluate(
    policy: Policy, layout: Layout, vocabulary: Vocabulary, episodes: int, rng: np.random.Generator | None
) -> Evaluation:
    """Plays the first `episodes` held-out episodes.

    Args:
        rng: samples the actions; None plays the most probable one.
    """
    return play(
        partial(Environment, layout, vocabulary),
        lambda rows: choose(policy(stacked(rows)), rng).tolist(),
        episodes,
    )


def choose(log_probs_BA: NDArray[np.float32], rng: np.random.Generator | None) -> NDArray[np.int64]:
    """An action for each of B states: sampled, or without `rng` the most probable one."""
    return log_probs_BA.argmax(1) if rng is None else sample(log_probs_BA, rng)

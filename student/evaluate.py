"""How good a policy is: episodes on held-out seeds, the same ones for every policy."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gridworld.episodes import Evaluation, play
from gridworld.pictures import Picture, draw
from gridworld.tasks import EVALUATION_SEEDS
from student.envs import Environment, Layout, Vocabulary, rows_of
from student.rollout import sample

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
        lambda rows: _choose(policy(rows_of(rows)), rng).tolist(),
        episodes,
    )


def animate(
    policy: Policy, layout: Layout, vocabulary: Vocabulary, episodes: int, file: Path, tile: int = 28
) -> None:
    """Writes a GIF of the first held-out episodes, played with the most probable actions."""
    pictures: list[Picture] = []
    env = Environment(layout, vocabulary, lambda episode: EVALUATION_SEEDS + episode)
    for _ in range(episodes):
        rows_1K, ended = rows_of([env.reset()]), False
        pictures.append(draw(layout.view(rows_1K[0]), tile))
        while not ended:
            row, _, terminated, truncated = env.step(int(_choose(policy(rows_1K), None)[0]))
            rows_1K, ended = rows_of([row]), terminated or truncated
            pictures.append(draw(layout.view(rows_1K[0]), tile))
        pictures += [pictures[-1]] * 3
    first, *rest = [Image.fromarray(picture) for picture in pictures]
    file.parent.mkdir(parents=True, exist_ok=True)
    first.save(file, "GIF", save_all=True, append_images=rest, duration=250, loop=0)


def _choose(log_probs_BA: NDArray[np.float32], rng: np.random.Generator | None) -> NDArray[np.int64]:
    return log_probs_BA.argmax(1) if rng is None else sample(log_probs_BA, rng)

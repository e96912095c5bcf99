"""How good a policy is: episodes on held-out seeds, the same ones for every policy."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gridworld.pictures import Picture, draw
from student.envs import EVALUATION_SEEDS, Environment, Layout, Vocabulary, rows_of
from student.rollout import sample
from student.statistics import mean_interval, success_interval

Policy = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Observations uint8 [B, K] to log-probabilities [B, A]."""

_TOGETHER = 128
"""Environments played at once."""


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of E episodes, in the order of their seeds."""

    returns_E: NDArray[np.float64]
    lengths_E: NDArray[np.int64]

    @property
    def success(self) -> float:
        """The share of episodes whose return is above 0."""
        return float((self.returns_E > 0).mean())

    @property
    def mean_return(self) -> float:
        return float(self.returns_E.mean())

    def report(self) -> dict[str, Any]:
        """Success rate, return and length, the first two with 95 % intervals."""
        successes = int((self.returns_E > 0).sum())
        return {
            "episodes": len(self.returns_E),
            "success": self.success,
            "success_interval": success_interval(successes, len(self.returns_E)),
            "return": self.mean_return,
            "return_interval": mean_interval(self.returns_E),
            "length": float(self.lengths_E.mean()),
        }


def evaluate(
    policy: Policy, layout: Layout, vocabulary: Vocabulary, episodes: int, rng: np.random.Generator | None
) -> Evaluation:
    """Plays the first `episodes` held-out episodes.

    Args:
        rng: samples the actions; None plays the most probable one.
    """
    returns_E, lengths_E = np.zeros(episodes), np.zeros(episodes, np.int64)
    seeds = iter(range(episodes))

    def seed_of(_: int) -> int:
        return EVALUATION_SEEDS + upcoming

    playing: dict[Environment, tuple[int, bytes]] = {}
    for upcoming in seeds:
        env = Environment(layout, vocabulary, seed_of)
        playing[env] = upcoming, env.reset()
        if len(playing) == _TOGETHER:
            break
    while playing:
        actions_B = _choose(policy(rows_of([row for _, row in playing.values()])), rng)
        for (env, (episode, _)), action in zip(list(playing.items()), actions_B.tolist(), strict=True):
            row, _, terminated, truncated = env.step(action)
            playing[env] = episode, row
            if terminated or truncated:
                returns_E[episode], lengths_E[episode] = env.total, env.length
                upcoming = next(seeds, episodes)
                if upcoming < episodes:
                    playing[env] = upcoming, env.reset()
                else:
                    del playing[env]
    return Evaluation(returns_E, lengths_E)


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

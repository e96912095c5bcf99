"""Plays held-out episodes, the same for every policy, and sums up their returns and lengths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gridworld.intervals import mean_interval, success_interval
from gridworld.tasks import EVALUATION_SEEDS

_TOGETHER = 128
"""Environments played at once."""

_Seen = TypeVar("_Seen")
_Seen_co = TypeVar("_Seen_co", covariant=True)


class Playable(Protocol[_Seen_co]):
    """An environment that plays one episode after another."""

    total: float
    """The return of the episode so far."""

    @property
    def length(self) -> int:
        """Steps taken in the episode."""

    def reset(self) -> _Seen_co:
        """Starts the next episode; returns its first observation."""

    def step(self, action: int) -> tuple[_Seen_co, float, bool, bool]:
        """Takes a step; returns the next observation, the reward, terminated and truncated."""


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of E episodes, in the order of their seeds."""

    returns_E: NDArray[np.float64]
    lengths_E: NDArray[np.int64]
    success_above: float = 0.0
    """An episode is a success if its return is above this."""

    @property
    def successes(self) -> int:
        """The number of successes."""
        return int((self.returns_E > self.success_above).sum())

    @property
    def success(self) -> float:
        """The share of successes."""
        return float((self.returns_E > self.success_above).mean())

    @property
    def mean_return(self) -> float:
        return float(self.returns_E.mean())

    def report(self) -> dict[str, Any]:
        """Returns success rate, mean return and mean length, the first two with 95 % intervals."""
        return {
            "episodes": len(self.returns_E),
            "success": self.success,
            "success_interval": success_interval(self.successes, len(self.returns_E)),
            "return": self.mean_return,
            "return_interval": mean_interval(self.returns_E),
            "length": float(self.lengths_E.mean()),
        }


def play(
    new: Callable[[Callable[[int], int]], Playable[_Seen]],
    choose: Callable[[list[_Seen]], Sequence[int]],
    episodes: int,
    together: int = _TOGETHER,
    success_above: float = 0.0,
) -> Evaluation:
    """Plays the first `episodes` held-out episodes, many at once.

    Args:
        new: makes an environment from a function that returns the seed of each episode.
        choose: maps the observations of B environments to B actions.
        together: the largest number of environments played at once.
        success_above: an episode is a success if its return is above this.
    """
    returns_E, lengths_E = np.zeros(episodes), np.zeros(episodes, np.int64)
    seeds = iter(range(episodes))

    def seed_of(_: int) -> int:
        return EVALUATION_SEEDS + upcoming

    playing: dict[Playable[_Seen], tuple[int, _Seen]] = {}
    for upcoming in seeds:
        env = new(seed_of)
        playing[env] = upcoming, env.reset()
        if len(playing) == together:
            break
    while playing:
        actions = choose([seen for _, seen in playing.values()])
        for (env, (episode, _)), action in zip(list(playing.items()), actions, strict=True):
            seen, _, terminated, truncated = env.step(action)
            playing[env] = episode, seen
            if terminated or truncated:
                returns_E[episode], lengths_E[episode] = env.total, env.length
                upcoming = next(seeds, episodes)
                if upcoming < episodes:
                    playing[env] = upcoming, env.reset()
                else:
                    del playing[env]
    return Evaluation(returns_E, lengths_E, success_above)

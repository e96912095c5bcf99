"""FrozenLake on a new random map in each episode, which is what a teacher has to read from the picture.

`PYTHONPATH=examples teacher train --env random_lake:RandomLake-v0 --task frozen_lake \\
    --expert value-iteration --prompts compact-lake --pictures 3200 --samples 24000 --out runs/lake`
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv, generate_random_map


class RandomLake(FrozenLakeEnv):
    """A lake of `size` x `size` cells that is not slippery; the episode's seed determines its map.

    An observation has a number for each cell, row by row: 0 ice, 1 a hole, 2 the goal, and 3 more where the
    agent is. FrozenLake's own, the agent's cell alone, would make states of different maps look the same.
    """

    def __init__(self, render_mode: str | None = None, size: int = 4) -> None:
        super().__init__(render_mode, desc=generate_random_map(size, seed=0), is_slippery=False)
        self._size = size
        self.observation_space = spaces.MultiDiscrete(np.full(size * size, 6))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Starts an episode on another map."""
        super(FrozenLakeEnv, self).reset(seed=seed)
        chosen = int(self.np_random.integers(2**31))
        lake = FrozenLakeEnv(desc=generate_random_map(self._size, seed=chosen), is_slippery=False)
        self.desc, self.P, self.initial_state_distrib = lake.desc, lake.P, lake.initial_state_distrib
        _, info = super().reset(options=options)
        return self._seen(), info

    def step(self, a: int) -> Any:
        """Goes one cell."""
        _, *rest = super().step(a)
        return self._seen(), *rest

    def _seen(self) -> Any:
        cells = (self.desc == b"H").ravel() + 2 * (self.desc == b"G").ravel()
        cells[self.s] += 3
        return cells


gymnasium.register("RandomLake-v0", RandomLake, max_episode_steps=100)

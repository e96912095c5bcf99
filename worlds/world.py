"""The interface of a world, and its environments stepped together in this process."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from gridworld.environments import failure
from gridworld.pictures import Picture
from gridworld.tasks import EVALUATION_SEEDS
from teacher_api.command_line import CannotStart

Observation = NDArray[np.uint8]
"""One observation, uint8 [K]. Equal observations are the same state, and get the same label."""


class EnvironmentFailed(CannotStart):
    """An environment raised an error in an episode, or changed in a way that a student cannot follow."""


@dataclass(frozen=True)
class EpisodeState:
    """An environment in the middle of an episode: the episode's number and the actions taken in it."""

    episode: int
    actions: list[int]


class Environment:
    """One environment, which plays one episode after another.

    Subclasses implement `_reset`, `_step` and `_picture`.

    Args:
        env: the Gymnasium environment.
        env_id: the name in messages.
        seed_of: returns the seed of each episode from its number.
    """

    def __init__(self, env: Any, env_id: str, seed_of: Callable[[int], int]) -> None:
        self._env, self._env_id, self._seed_of = env, env_id, seed_of
        self._episode = -1
        self._actions: list[int] = []
        self.total = 0.0
        """The return of the episode so far."""

    def reset(self) -> bytes:
        """Starts the next episode and returns its first observation, as bytes.

        Raises:
            EnvironmentFailed: the environment raised an error, or its state cannot be observed.
        """
        self._episode += 1
        self._actions = []
        self.total = 0.0
        try:
            return self._reset(self._seed_of(self._episode))
        except Exception as error:  # an environment can raise anything
            raise self._failed(error) from error

    def step(self, action: int) -> tuple[bytes, float, bool, bool]:
        """Takes one action; returns the next observation, the reward, terminated and truncated.

        Raises:
            EnvironmentFailed: the environment raised an error, or its state cannot be observed.
        """
        self._actions.append(action)
        try:
            obs, reward, terminated, truncated = self._step(action)
        except Exception as error:
            raise self._failed(error) from error
        self.total += reward
        return obs, float(reward), bool(terminated), bool(truncated)

    @property
    def unwrapped(self) -> Any:
        """The Gymnasium environment without its wrappers."""
        return self._env.unwrapped

    @property
    def length(self) -> int:
        """Steps taken in this episode."""
        return len(self._actions)

    @property
    def state(self) -> EpisodeState:
        return EpisodeState(self._episode, self._actions.copy())

    def restore(self, state: EpisodeState) -> bytes:
        """Replays an episode up to a state and returns the observation there.

        An episode is a function of its seed and actions.
        """
        self._episode = state.episode - 1
        obs = self.reset()
        for action in state.actions:
            obs, *_ = self.step(action)
        return obs

    def picture(self, side: int | None = None) -> Picture:
        """Returns the picture of the present state, as a teacher gets it.

        Args:
            side: for people: pixels that the longer side is to have, approximately.

        Raises:
            EnvironmentFailed: the environment cannot be drawn.
        """
        try:
            return self._picture(side)
        except Exception as error:
            raise self._failed(error) from error

    def _reset(self, seed: int) -> bytes:
        raise NotImplementedError

    def _step(self, action: int) -> tuple[bytes, float, bool, bool]:
        raise NotImplementedError

    def _picture(self, side: int | None) -> Picture:
        raise NotImplementedError

    def _failed(self, error: Exception) -> EnvironmentFailed:
        seed = self._seed_of(self._episode)
        return EnvironmentFailed(failure(self._env_id, seed, len(self._actions), error))


class States(ABC):
    """The states of an environment, as questions to a teacher need them.

    Attributes:
        env_id: the environment's id.
        actions: the names of the A actions, in the order of their numbers 0 .. A - 1.
        length: K, the length of an observation.
        size: columns and rows of the grid; None: the environment has none.
        keeps_pictures: whether an observation is not enough to draw the state, so that `picture` knows the
            states alone that were drawn when they were met.
    """

    keeps_pictures: ClassVar[bool]

    def __init__(
        self, env_id: str, actions: tuple[str, ...], length: int, size: tuple[int, int] | None
    ) -> None:
        self.env_id, self.actions, self.length, self.size = env_id, actions, length, size

    @abstractmethod
    def mission(self, obs_K: Observation) -> str:
        """Returns the mission's text in a state."""

    @abstractmethod
    def picture(self, obs_K: Observation) -> bytes:
        """Returns the picture of a state as a PNG file.

        Raises:
            KeyError: the state was not drawn when it was met, or its picture is forgotten.
        """

    def keep(self, obs_K: Observation, picture: bytes | None) -> None:
        """Keeps the picture of a state, from a checkpoint; None: forgets it, for it is not needed again."""
        return


class World(States):
    """What a student and a teacher need of an environment id.

    Attributes:
        success_above: an episode is a success if its return is above this.
        rewards_success: whether only a success is rewarded, with its last step; where that is not so, what a
            student experiences is judged by success alone.
        draws: whether environments draw each state when they first meet it, where pictures are kept. False
            until it is set: drawing takes time.
    """

    rewards_success: ClassVar[bool]

    def __init__(
        self,
        env_id: str,
        actions: tuple[str, ...],
        length: int,
        size: tuple[int, int] | None,
        success_above: float,
    ) -> None:
        super().__init__(env_id, actions, length, size)
        self.success_above = success_above
        self.draws = False

    @property
    def words(self) -> tuple[str, ...]:
        """The words of missions that were met, which a restored student needs to read its observations."""
        return ()

    def learn_words(self, words: Sequence[str]) -> None:
        """Adds words of missions that another copy met, in this order."""
        return

    @abstractmethod
    def environment(self, seed_of: Callable[[int], int]) -> Environment:
        """Returns a new environment; `seed_of` returns the seed of each of its episodes."""

    @abstractmethod
    def copy(self) -> Self:
        """Returns the same world, which draws nothing; words that it meets from here on are its own."""

    @abstractmethod
    def fits(self, other: "World") -> bool:
        """Returns whether a student of the other world can play here: same observations and actions."""


@dataclass(frozen=True)
class Step:
    """The result of one action in each of N environments.

    obs_NK: the observations to act on next; where an episode ended, the next episode's first observation.
    last_NK: the observations that the actions led to; where an episode ended, its last observation.
    gains_N: what experience counts as reward: `rewards_N`, or 1 at the end of a success and else 0.
    ended: (return, length) of the episodes that ended.
    """

    obs_NK: NDArray[np.uint8]
    last_NK: NDArray[np.uint8]
    rewards_N: NDArray[np.float32]
    gains_N: NDArray[np.float32]
    terminated_N: NDArray[np.bool_]
    truncated_N: NDArray[np.bool_]
    ended: list[tuple[float, int]]


class Environments:
    """N environments of one world. Each training episode has its own seed, below EVALUATION_SEEDS."""

    def __init__(self, world: World, n: int, seed: int) -> None:
        self.world = world
        self._envs = [world.environment(_training_seeds(seed, i)) for i in range(n)]

    def reset(self) -> NDArray[np.uint8]:
        """Starts an episode in each environment and returns the observations, uint8 [N, K]."""
        return stacked([env.reset() for env in self._envs])

    def step(self, actions_N: NDArray[np.int64]) -> Step:
        """Takes one action in each environment; where an episode ends, the next one starts at once."""
        obs, last_obs, ended, succeeded = [], [], [], []
        rewards, terminations, truncations = [], [], []
        for index, (env, action) in enumerate(zip(self._envs, actions_N.tolist(), strict=True)):
            after, reward, terminated, truncated = env.step(action)
            last_obs.append(after)
            if terminated or truncated:
                ended.append((env.total, env.length))
                if env.total > self.world.success_above:
                    succeeded.append(index)
                after = env.reset()
            obs.append(after)
            rewards.append(reward)
            terminations.append(terminated)
            truncations.append(truncated)
        rewards_N = np.array(rewards, np.float32)
        gains_N = rewards_N
        if not self.world.rewards_success:
            gains_N = np.zeros_like(rewards_N)
            gains_N[succeeded] = 1
        return Step(
            stacked(obs),
            stacked(last_obs),
            rewards_N,
            gains_N,
            np.array(terminations),
            np.array(truncations),
            ended,
        )

    @property
    def states(self) -> list[EpisodeState]:
        return [env.state for env in self._envs]

    def restore(self, states: Sequence[EpisodeState]) -> NDArray[np.uint8]:
        """Puts each environment into a state and returns the observations there, uint8 [N, K]."""
        return stacked([env.restore(state) for env, state in zip(self._envs, states, strict=True)])


def is_repeatable(world: World, steps: int = 20) -> bool:
    """Returns whether an episode with random actions is the same twice, from its seed and its actions.

    Raises:
        EnvironmentFailed: the environment failed.
    """
    rng = np.random.default_rng(0)
    actions = rng.integers(len(world.actions), size=steps).tolist()
    envs = [world.copy().environment(lambda episode: episode) for _ in range(2)]
    for action in [None, *actions]:
        first, second = (env.reset() if action is None else env.step(action) for env in envs)
        if first != second:
            return False
        if action is not None and (first[2] or first[3]):  # terminated or truncated
            return True
    return True


def stacked(observations: Sequence[bytes]) -> NDArray[np.uint8]:
    """Returns observations as one array, uint8 [N, K]."""
    return np.frombuffer(bytearray().join(observations), np.uint8).reshape(len(observations), -1)


def _training_seeds(seed: int, index: int) -> Callable[[int], int]:
    def seed_of(episode: int) -> int:
        return int(np.random.SeedSequence((seed, index, episode)).generate_state(1)[0]) % EVALUATION_SEEDS

    return seed_of

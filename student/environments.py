"""Fully observed MiniGrid environments, stepped together in this process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gridworld import environments
from gridworld.environments import actions_of, failure, in_full
from gridworld.tasks import ACTIONS, EVALUATION_SEEDS, UnknownEnvironment, family_of
from gridworld.views import NAMES, Unobservable, View, encode_cells
from teacher_api.command_line import CannotStart

WORDS = 16
"""Mission words in an observation."""

Observation = NDArray[np.uint8]
"""One observation, uint8 [K]: a code for each cell, row by row, then x, y, heading, then WORDS word ids."""

_TOGGLE = ACTIONS.index("toggle")
"""The only action that changes an object in place in MiniGrid's families: it opens and closes doors."""


class EnvironmentFailed(CannotStart):
    """An environment raised an error in an episode, or changed in a way that a student cannot follow."""


class UnknownWord(CannotStart, ValueError):
    """A mission does not fit into an observation."""


class Vocabulary:
    """Mission words and their ids 1 .. 255.

    MiniGrid's names of objects and colours come first, then other words in the order in which they are met.
    """

    def __init__(self, words: Sequence[str] = ()) -> None:
        self.words: list[str] = []
        self._ids: dict[str, int] = {}
        self._encoded: dict[str, bytes] = {}
        self.extend((*NAMES, *words))

    def extend(self, words: Sequence[str]) -> None:
        """Gives the next ids to the words that have none."""
        for word in words:
            if word not in self._ids:
                self.words.append(word)
                self._ids[word] = len(self.words)

    def encode(self, mission: str) -> bytes:
        """Returns the ids of a mission's words as WORDS bytes, padded with 0.

        Raises:
            UnknownWord: the mission has more than WORDS words, or more than 255 different words were met.
        """
        if mission not in self._encoded:
            words = mission.split()
            self.extend(words)
            if len(words) > WORDS or len(self.words) > 255:
                raise UnknownWord(
                    f"the mission {mission!r} has {len(words)} words, and {len(self.words)} different words"
                    f" were met; an observation holds {WORDS} words, and a vocabulary 255"
                )
            self._encoded[mission] = bytes(self._ids[word] for word in words).ljust(WORDS, b"\0")
        return self._encoded[mission]

    def decode(self, ids: bytes) -> str:
        """Returns the mission with these word ids."""
        return " ".join(self.words[i - 1] for i in ids if i)


@dataclass(frozen=True)
class Layout:
    """The shape of an environment's observations: the grid's size and the names of the actions."""

    env_id: str
    height: int
    width: int
    actions: tuple[str, ...]

    @property
    def cells(self) -> int:
        return self.height * self.width

    @property
    def length(self) -> int:
        """K, the length of an observation."""
        return self.cells + 3 + WORDS

    def view(self, obs_K: Observation) -> View:
        """Returns the view that an observation encodes."""
        x, y, heading = (int(i) for i in obs_K[self.cells : self.cells + 3])
        return View(obs_K[: self.cells].reshape(self.height, self.width), x, y, heading)

    def words(self, obs_K: Observation) -> bytes:
        """Returns the mission's word ids in an observation."""
        return obs_K[self.cells + 3 :].tobytes()


def make(env_id: str) -> Any:
    """Returns a MiniGrid environment without wrappers.

    MiniGrid's own environments come without the 7x7 partial view: it takes most of a step's time, and a
    student does not use it. An environment of another package keeps the view, because its code may read it.

    Raises:
        UnknownEnvironment: see `gridworld.environments.make`.
    """
    env = environments.make(env_id)
    packages = {kind.__module__.partition(".")[0] for kind in type(env).__mro__}
    if packages <= {"minigrid", "gymnasium", "typing", "builtins"}:
        env.gen_obs = dict  # type: ignore[method-assign]
    return env


def check(env_id: str) -> None:
    """Checks that an environment can be made and that its first state can be observed.

    Raises:
        UnknownEnvironment: the environment cannot be made, or its first state cannot be observed.
    """
    layout = layout_of(env_id)
    try:
        Environment(layout, Vocabulary(), lambda episode: episode).reset()
    except EnvironmentFailed as failed:
        why = in_full(failed.__cause__ or failed)
        raise UnknownEnvironment(f"the environment {env_id!r} cannot be observed: {why}") from failed


def layout_of(env_id: str) -> Layout:
    """Returns the layout of an environment's observations, without starting an episode."""
    env = make(env_id)
    return Layout(env_id, env.height, env.width, actions_of(env))


@dataclass(frozen=True)
class EpisodeState:
    """An environment in the middle of an episode: the episode's number and the actions taken in it."""

    episode: int
    actions: list[int]


class Environment:
    """One environment; `seed_of` returns the seed of each of its episodes."""

    def __init__(self, layout: Layout, vocabulary: Vocabulary, seed_of: Callable[[int], int]) -> None:
        self._env, self._layout = make(layout.env_id), layout
        self._vocabulary = vocabulary
        self._seed_of = seed_of
        self._episode = -1
        self._actions: list[int] = []
        self._in_place = family_of(layout.env_id) is None
        """Whether any step may change an object in place; only MiniGrid's own families are known not to."""
        self._things: list[Any] = []
        self._cells = b""
        self.total = 0.0

    def reset(self) -> bytes:
        """Starts the next episode and returns its first observation, as bytes.

        Raises:
            EnvironmentFailed: the environment raised an error, or its state cannot be observed.
        """
        self._episode += 1
        self._actions = []
        self.total = 0.0
        try:
            self._env.reset(seed=self._seed_of(self._episode))
            return self._observe(changed=True)
        except Exception as error:  # an environment can raise anything
            raise self._failed(error) from error

    def step(self, action: int) -> tuple[bytes, float, bool, bool]:
        """Takes one action; returns the next observation, the reward, terminated and truncated.

        Raises:
            EnvironmentFailed: the environment raised an error, or its state cannot be observed.
        """
        self._actions.append(action)
        try:
            _, reward, terminated, truncated, _ = self._env.step(action)
            self.total += reward
            obs = self._observe(changed=self._in_place or action == _TOGGLE)
            return obs, float(reward), terminated, truncated
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> EnvironmentFailed:
        seed = self._seed_of(self._episode)
        return EnvironmentFailed(failure(self._layout.env_id, seed, len(self._actions), error))

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

    def _observe(self, changed: bool) -> bytes:
        """Returns the bytes of an `Observation`.

        The cells are encoded anew where an object came, went or moved, or may have `changed` in place.
        """
        env = self._env
        if changed or env.grid.grid != self._things:
            self._check_size(env.grid.height, env.grid.width)
            self._things, self._cells = env.grid.grid.copy(), encode_cells(env.grid)
        x, y = env.agent_pos
        mission = self._vocabulary.encode(env.mission)
        return self._cells + bytes((int(x), int(y), int(env.agent_dir))) + mission

    def _check_size(self, height: int, width: int) -> None:
        layout = self._layout
        if (height, width) != (layout.height, layout.width):
            raise Unobservable(
                f"its grid has {width} x {height} cells, and had {layout.width} x {layout.height} when it was"
                " made; a student learns one size: register an environment id for each size"
            )


@dataclass(frozen=True)
class Step:
    """The result of one action in each of N environments.

    obs_NK: the observations to act on next; where an episode ended, the next episode's first observation.
    last_NK: the observations that the actions led to; where an episode ended, its last observation.
    ended: (return, length) of the episodes that ended.
    """

    obs_NK: NDArray[np.uint8]
    last_NK: NDArray[np.uint8]
    rewards_N: NDArray[np.float32]
    terminated_N: NDArray[np.bool_]
    truncated_N: NDArray[np.bool_]
    ended: list[tuple[float, int]]


class Environments:
    """N environments with one id. Each training episode has its own seed, below EVALUATION_SEEDS."""

    def __init__(self, layout: Layout, vocabulary: Vocabulary, n: int, seed: int) -> None:
        self.layout = layout
        self._envs = [Environment(layout, vocabulary, _training_seeds(seed, i)) for i in range(n)]

    def reset(self) -> NDArray[np.uint8]:
        """Starts an episode in each environment and returns the observations, uint8 [N, K]."""
        return stacked([env.reset() for env in self._envs])

    def step(self, actions_N: NDArray[np.int64]) -> Step:
        """Takes one action in each environment; where an episode ends, the next one starts at once."""
        obs, last_obs, ended = [], [], []
        rewards, terminations, truncations = [], [], []
        for env, action in zip(self._envs, actions_N.tolist(), strict=True):
            after, reward, terminated, truncated = env.step(action)
            last_obs.append(after)
            if terminated or truncated:
                ended.append((env.total, env.length))
                after = env.reset()
            obs.append(after)
            rewards.append(reward)
            terminations.append(terminated)
            truncations.append(truncated)
        return Step(
            stacked(obs),
            stacked(last_obs),
            np.array(rewards, np.float32),
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


def stacked(observations: Sequence[bytes]) -> NDArray[np.uint8]:
    """Returns observations as one array, uint8 [N, K]."""
    return np.frombuffer(bytearray().join(observations), np.uint8).reshape(len(observations), -1)


def _training_seeds(seed: int, index: int) -> Callable[[int], int]:
    def seed_of(episode: int) -> int:
        return int(np.random.SeedSequence((seed, index, episode)).generate_state(1)[0]) % EVALUATION_SEEDS

    return seed_of

"""Fully observed MiniGrid, many environments stepped in this process, without the partial view."""

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
"""Words of a mission that an observation holds."""

Row = NDArray[np.uint8]
"""One observation, uint8 [K]: a code for each cell row by row, then x, y, heading, then WORDS word ids."""


_TOGGLE = ACTIONS.index("toggle")
"""The one action that changes things in place in MiniGrid's families: it opens and closes doors."""


class EnvironmentFailed(CannotStart):
    """What an environment raised in an episode, or how it is not as it was before."""


class UnknownWord(CannotStart, ValueError):
    """A mission that does not fit into an observation."""


class Vocabulary:
    """The words of missions and their ids 1 .. 255: first MiniGrid's names for things and colours, then
    what else is met, in the order in which it is."""

    def __init__(self, words: Sequence[str] = ()) -> None:
        self.words: list[str] = []
        self._ids: dict[str, int] = {}
        self._encoded: dict[str, bytes] = {}
        self.extend((*NAMES, *words))

    def extend(self, words: Sequence[str]) -> None:
        """Gives the next ids to those of the words that have none."""
        for word in words:
            if word not in self._ids:
                self.words.append(word)
                self._ids[word] = len(self.words)

    def encode(self, mission: str) -> bytes:
        """The ids of a mission's words, WORDS bytes, 0 after the last.

        Raises:
            UnknownWord: more than WORDS words, or more than 255 different ones in all.
        """
        if mission not in self._encoded:
            words = mission.split()
            self.extend(words)
            if len(words) > WORDS or len(self.words) > 255:
                raise UnknownWord(
                    f"the mission {mission!r} has {len(words)} words, and {len(self.words)} different ones"
                    f" were met; at most {WORDS} and 255 can be encoded"
                )
            self._encoded[mission] = bytes(self._ids[word] for word in words).ljust(WORDS, b"\0")
        return self._encoded[mission]

    def decode(self, ids: bytes) -> str:
        """The mission that was encoded."""
        return " ".join(self.words[i - 1] for i in ids if i)


@dataclass(frozen=True)
class Layout:
    """What an environment's observations look like: the grid's size and the actions."""

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

    def view(self, row: Row) -> View:
        """The view that an observation encodes."""
        x, y, heading = (int(i) for i in row[self.cells : self.cells + 3])
        return View(row[: self.cells].reshape(self.height, self.width), x, y, heading)

    def words(self, row: Row) -> bytes:
        """The mission's word ids in an observation."""
        return row[self.cells + 3 :].tobytes()


def make(env_id: str) -> Any:
    """A MiniGrid environment without wrappers.

    MiniGrid's own come without the 7x7 partial view, which takes most of a step's time and which nobody looks
    at. An environment of another package keeps it: its code may read its own observation.

    Raises:
        UnknownEnvironment: see `gridworld.environments.make`.
    """
    env = environments.make(env_id)
    packages = {kind.__module__.partition(".")[0] for kind in type(env).__mro__}
    if packages <= {"minigrid", "gymnasium", "typing", "builtins"}:
        env.gen_obs = dict  # type: ignore[method-assign]
    return env


def check(env_id: str) -> None:
    """Makes an environment and looks at a first state of it.

    Raises:
        UnknownEnvironment: it cannot be made, or what it shows cannot be observed.
    """
    layout = layout_of(env_id)
    try:
        Environment(layout, Vocabulary(), lambda episode: episode).reset()
    except EnvironmentFailed as failed:
        why = in_full(failed.__cause__ or failed)
        raise UnknownEnvironment(f"the environment {env_id!r} cannot be observed: {why}") from failed


def layout_of(env_id: str) -> Layout:
    """The layout of an environment's observations, without making an episode."""
    env = make(env_id)
    return Layout(env_id, env.height, env.width, actions_of(env))


@dataclass(frozen=True)
class EpisodeState:
    """An environment in mid-episode, as data: which episode, and what was done in it."""

    episode: int
    actions: list[int]


class Environment:
    """One environment; `seed_of` gives the seed of each of its episodes."""

    def __init__(self, layout: Layout, vocabulary: Vocabulary, seed_of: Callable[[int], int]) -> None:
        self._env, self._layout = make(layout.env_id), layout
        self._vocabulary = vocabulary
        self._seed_of = seed_of
        self._episode = -1
        self._actions: list[int] = []
        self._in_place = family_of(layout.env_id) is None
        """Whether things may change in place at any step, as for all that is known of the environment."""
        self._things: list[Any] = []
        self._cells = b""
        self.total = 0.0

    def reset(self) -> bytes:
        """Starts the next episode.

        Raises:
            EnvironmentFailed: the environment raised an error, or cannot be observed there.
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
        """Next observation, reward, terminated, truncated.

        Raises:
            EnvironmentFailed: the environment raised an error, or cannot be observed there.
        """
        self._actions.append(action)
        try:
            _, reward, terminated, truncated, _ = self._env.step(action)
            self.total += reward
            row = self._observe(changed=self._in_place or action == _TOGGLE)
            return row, float(reward), terminated, truncated
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
        """Plays the episode up to a state once more; an episode is a function of its seed and actions."""
        self._episode = state.episode - 1
        row = self.reset()
        for action in state.actions:
            row, *_ = self.step(action)
        return row

    def _observe(self, changed: bool) -> bytes:
        """The observation as the bytes of a `Row`.

        Cells are encoded again where things came, went or moved, or where one may have `changed` in place.
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
                " made; a student learns one size: give each size an environment id of its own"
            )


@dataclass(frozen=True)
class Step:
    """What came of one action in each of N environments.

    obs_NK is where each environment stands now, a new episode's first observation where one ended;
    last_NK is the observation that the action led to, also where it was the episode's last.
    """

    obs_NK: NDArray[np.uint8]
    last_NK: NDArray[np.uint8]
    rewards_N: NDArray[np.float32]
    terminated_N: NDArray[np.bool_]
    truncated_N: NDArray[np.bool_]
    ended: list[tuple[float, int]]
    """(return, length) of the episodes that ended."""


class Environments:
    """N environments of one kind. Every training episode has a seed of its own, below EVALUATION_SEEDS."""

    def __init__(self, layout: Layout, vocabulary: Vocabulary, n: int, seed: int) -> None:
        self.layout = layout
        self._envs = [Environment(layout, vocabulary, _training_seeds(seed, i)) for i in range(n)]

    def reset(self) -> NDArray[np.uint8]:
        """Starts an episode in each: uint8 [N, K]."""
        return rows_of([env.reset() for env in self._envs])

    def step(self, actions_N: NDArray[np.int64]) -> Step:
        """One action in each; an environment whose episode ends starts its next one at once."""
        rows, last_rows, ended = [], [], []
        rewards, terminations, truncations = [], [], []
        for env, action in zip(self._envs, actions_N.tolist(), strict=True):
            row, reward, terminated, truncated = env.step(action)
            last_rows.append(row)
            if terminated or truncated:
                ended.append((env.total, env.length))
                row = env.reset()
            rows.append(row)
            rewards.append(reward)
            terminations.append(terminated)
            truncations.append(truncated)
        return Step(
            rows_of(rows),
            rows_of(last_rows),
            np.array(rewards, np.float32),
            np.array(terminations),
            np.array(truncations),
            ended,
        )

    @property
    def states(self) -> list[EpisodeState]:
        return [env.state for env in self._envs]

    def restore(self, states: Sequence[EpisodeState]) -> NDArray[np.uint8]:
        """Puts each environment back into a state: uint8 [N, K], the observations there."""
        return rows_of([env.restore(state) for env, state in zip(self._envs, states, strict=True)])


def rows_of(observations: Sequence[bytes]) -> NDArray[np.uint8]:
    """Observations one under the other: uint8 [N, K]."""
    return np.frombuffer(bytearray().join(observations), np.uint8).reshape(len(observations), -1)


def keys_of(obs_NK: NDArray[np.uint8]) -> list[bytes]:
    """The observations as the keys of a dictionary; the inverse of `rows_of`."""
    data, length = obs_NK.tobytes(), obs_NK.shape[1]
    return [data[i : i + length] for i in range(0, len(data), length)]


def _training_seeds(seed: int, index: int) -> Callable[[int], int]:
    def seed_of(episode: int) -> int:
        return int(np.random.SeedSequence((seed, index, episode)).generate_state(1)[0]) % EVALUATION_SEEDS

    return seed_of

"""The worlds of MiniGrid's kind: the whole grid is observed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from gridworld import environments
from gridworld.environments import actions_of
from gridworld.pictures import Picture, draw, encode_png
from gridworld.tasks import ACTIONS, family_of
from gridworld.views import NAMES, Unobservable, View, encode_cells, encode_thing
from teacher_api.command_line import CannotStart
from worlds.world import Environment, Observation, World, stacked

WORDS = 16
"""Mission words in an observation of a known family; its missions have no more."""

MANY_WORDS = 128
"""Mission words in an observation of another environment; BabyAI's longest mission has 71."""

_TOGGLE = ACTIONS.index("toggle")
"""The only action that changes an object in place in MiniGrid's families: it opens and closes doors."""


_MIN_TILE = 16
"""Pixels a side of a tile in pictures for people, at least."""


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
        """Returns the ids of a mission's words, a byte for each.

        Raises:
            UnknownWord: more than 255 different words were met.
        """
        if mission not in self._encoded:
            words = mission.split()
            self.extend(words)
            if len(self.words) > 255:
                raise UnknownWord(
                    f"with the mission {mission!r}, {len(self.words)} different words were met; a vocabulary"
                    " holds 255"
                )
            self._encoded[mission] = bytes(self._ids[word] for word in words)
        return self._encoded[mission]

    def decode(self, ids: bytes) -> str:
        """Returns the mission with these word ids."""
        return " ".join(self.words[i - 1] for i in ids if i)


@dataclass(frozen=True)
class Layout:
    """The shape of an environment's observations: the grid's size and the names of the actions.

    An observation holds a code for each cell, row by row, then x, y, heading, where something can be carried
    about the code of what is carried or 0, then the ids of the mission's words, padded with 0.

    Attributes:
        most_words: mission words in an observation.
    """

    env_id: str
    height: int
    width: int
    actions: tuple[str, ...]
    carries: bool = False
    most_words: int = WORDS

    @property
    def cells(self) -> int:
        return self.height * self.width

    @property
    def length(self) -> int:
        """K, the length of an observation."""
        return self.cells + 3 + self.carries + self.most_words

    def view(self, obs_K: Observation) -> View:
        """Returns the view that an observation encodes."""
        x, y, heading, *carried = (int(i) for i in obs_K[self.cells : -self.most_words])
        cells_HW = obs_K[: self.cells].reshape(self.height, self.width)
        return View(cells_HW, x, y, heading, *(each or None for each in carried))

    def encoded(self, cells: bytes, pose: tuple[int, int, int], carried: int | None, words: bytes) -> bytes:
        """Returns the bytes of an observation; the pose is x, y and heading.

        Raises:
            UnknownWord: the mission has more words than an observation holds.
        """
        if len(words) > self.most_words:
            raise UnknownWord(
                f"the mission has {len(words)} words, and an observation holds {self.most_words}"
            )
        padded = words.ljust(self.most_words, b"\0")
        return cells + bytes((*pose, carried or 0) if self.carries else pose) + padded

    def observation(self, view: View, words: bytes) -> Observation:
        """Returns the observation of a view with a mission's word ids."""
        pose = view.x, view.y, view.heading
        return np.frombuffer(
            bytearray(self.encoded(view.cells_HW.tobytes(), pose, view.carried, words)), np.uint8
        )

    def words(self, obs_K: Observation) -> bytes:
        """Returns the mission's word ids in an observation."""
        return obs_K[-self.most_words :].tobytes()


def make(env_id: str) -> Any:
    """Returns an environment of MiniGrid's kind.

    MiniGrid's own environments come without the 7x7 partial view: it takes most of a step's time, and a
    student does not use it. An environment of another package, or one with a wrapper that changes how it
    plays, keeps the view, because its code may read it.

    Raises:
        UnknownEnvironment: see `gridworld.environments.make`.
    """
    env = environments.make(env_id)
    packages = {kind.__module__.partition(".")[0] for kind in type(env).__mro__}
    if env is env.unwrapped and packages <= {"minigrid", "gymnasium", "typing", "builtins"}:
        env.gen_obs = dict
    return env


class MinigridWorld(World):
    """A world of MiniGrid's kind.

    Attributes:
        layout: the shape of observations.
        vocabulary: the words of missions.
    """

    rewards_success = True
    keeps_pictures = False

    def __init__(self, layout: Layout, vocabulary: Vocabulary, success_above: float = 0.0) -> None:
        size = layout.width, layout.height
        super().__init__(layout.env_id, layout.actions, layout.length, size, success_above)
        self.layout, self.vocabulary = layout, vocabulary

    @property
    def words(self) -> tuple[str, ...]:
        """The vocabulary's words."""
        return tuple(self.vocabulary.words)

    def environment(self, seed_of: Callable[[int], int]) -> Environment:
        """Returns a new environment; its missions' words enter the vocabulary."""
        return MinigridEnvironment(self.layout, self.vocabulary, seed_of)

    def copy(self) -> Self:
        """Returns the same world with a vocabulary of its own."""
        return type(self)(self.layout, Vocabulary(self.words), self.success_above)

    def learn_words(self, words: Sequence[str]) -> None:
        """Gives the next ids to the words that have none."""
        self.vocabulary.extend(words)

    def mission(self, obs_K: Observation) -> str:
        """Returns the mission's text."""
        return self.vocabulary.decode(self.layout.words(obs_K))

    def picture(self, obs_K: Observation) -> bytes:
        """Returns the picture of the whole grid as a PNG file."""
        return encode_png(draw(self.layout.view(obs_K)))

    def fits(self, other: World) -> bool:
        """Returns whether grids have the same size, and actions the same names."""
        return isinstance(other, MinigridWorld) and replace(self.layout, env_id=other.env_id) == other.layout


def layout_of(env_id: str) -> Layout:
    """Returns the layout of an environment's observations, without starting an episode.

    Raises:
        UnknownEnvironment: see `gridworld.environments.make`.
    """
    env, family = make(env_id), family_of(env_id)
    actions = actions_of(env)
    carries = "pickup" in actions if family is None else family.carries
    most_words = MANY_WORDS if family is None else WORDS
    return Layout(env_id, env.height, env.width, actions, carries, most_words)


class MinigridEnvironment(Environment):
    """One environment of MiniGrid's kind."""

    def __init__(self, layout: Layout, vocabulary: Vocabulary, seed_of: Callable[[int], int]) -> None:
        super().__init__(make(layout.env_id), layout.env_id, seed_of)
        self._layout, self._vocabulary = layout, vocabulary
        self._in_place = family_of(layout.env_id) is None
        """Whether any step may change an object in place; only MiniGrid's own families are known not to."""
        self._things: list[Any] = []
        self._cells = b""

    def _reset(self, seed: int) -> bytes:
        self._env.reset(seed=seed)
        return self._observe(changed=True)

    def _step(self, action: int) -> tuple[bytes, float, bool, bool]:
        _, reward, terminated, truncated, _ = self._env.step(action)
        return (
            self._observe(changed=self._in_place or action == _TOGGLE),
            float(reward),
            terminated,
            truncated,
        )

    def _picture(self, side: int | None) -> Picture:
        layout = self._layout
        view = layout.view(stacked([self._observe(changed=True)])[0])
        if side is None:
            return draw(view)
        return draw(view, max(_MIN_TILE, side // max(layout.height, layout.width)))

    def _observe(self, changed: bool) -> bytes:
        """Returns the bytes of an `Observation`.

        The cells are encoded anew where an object came, went or moved, or may have `changed` in place.
        """
        env = self._env
        if changed or env.grid.grid != self._things:
            self._check_size(env.grid.height, env.grid.width)
            self._things, self._cells = env.grid.grid.copy(), encode_cells(env.grid)
        x, y = env.agent_pos
        carried = encode_thing(env.carrying) if self._layout.carries and env.carrying is not None else None
        pose = int(x), int(y), int(env.agent_dir)
        return self._layout.encoded(self._cells, pose, carried, self._vocabulary.encode(env.mission))

    def _check_size(self, height: int, width: int) -> None:
        layout = self._layout
        if (height, width) != (layout.height, layout.width):
            raise Unobservable(
                f"its grid has {width} x {height} cells, and had {layout.width} x {layout.height} when it was"
                " made; a student learns one size: register an environment id for each size"
            )

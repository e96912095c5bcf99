"""The worlds of any Gymnasium environment with discrete actions, drawn by its own render()."""

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import Any, Literal, Self

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from gridworld.environments import in_a_line
from gridworld.pictures import Picture, encode_png
from gridworld.tasks import UnknownEnvironment
from worlds.world import Environment, Observation, World

_ACTIONS = {
    "FrozenLakeEnv": ("left", "down", "right", "up"),
    "CliffWalkingEnv": ("up", "right", "down", "left"),
    "TaxiEnv": ("south", "north", "east", "west", "pickup", "dropoff"),
    "CartPoleEnv": ("left", "right"),
    "MountainCarEnv": ("left", "none", "right"),
    "AcrobotEnv": ("left", "none", "right"),
    "LunarLander": ("none", "left_engine", "main_engine", "right_engine"),
}
"""The names of actions that Gymnasium's own environments document, but do not have."""

MOST_STEPS = 1000
"""Steps of an episode in an environment that is registered without a time limit."""

Kind = Literal["state", "vector", "picture"]


@dataclass(frozen=True)
class Encoding:
    """How an observation is written as bytes.

    - state: a number, uint32: a `Discrete` space.
    - vector: float32 [size]: all spaces that Gymnasium can flatten.
    - picture: uint8 [height, width, channels] or [channels, height, width]: a `Box` of that dtype and three
      dimensions. The smaller of the first and the last are the channels, such as colours or past frames.

    Attributes:
        shape: of the numbers.
        low, high: vector: the bounds of its numbers, infinite where the space has none.
        states: state: how many there are.
    """

    kind: Kind
    shape: tuple[int, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    states: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype({"state": np.uint32, "vector": np.float32, "picture": np.uint8}[self.kind])

    @property
    def length(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


def encoding_of(space: spaces.Space[Any]) -> Encoding:
    """Returns how observations of a space are encoded.

    Raises:
        ValueError: Gymnasium cannot flatten the space to a fixed number of numbers.
    """
    if isinstance(space, spaces.Discrete):
        return Encoding("state", (1,), states=int(space.n))
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3:
        return Encoding("picture", space.shape)
    if not space.is_np_flattenable:
        raise ValueError(
            f"the observation space {space}, which is none of Discrete, Box, and spaces made of these"
        )
    flat = spaces.flatten_space(space)
    assert isinstance(flat, spaces.Box)
    low, high = (tuple(bound.astype(float).tolist()) for bound in (flat.low, flat.high))
    return Encoding("vector", flat.shape, low, high)


class GeneralWorld(World):
    """A world of any Gymnasium environment.

    What the environment is registered with, wrappers and time limits, is honoured. An observation need not
    say all that a picture shows, so a state is drawn when it is met.

    Args:
        space: of the environment's own observations.
        mission: the mission in all states.
    """

    rewards_success = False
    keeps_pictures = True

    def __init__(
        self,
        env_id: str,
        actions: tuple[str, ...],
        space: spaces.Space[Any],
        mission: str,
        success_above: float,
    ) -> None:
        self.encoding, self._space, self._mission = encoding_of(space), space, mission
        super().__init__(env_id, actions, self.encoding.length, None, success_above)
        self._pictures: dict[bytes, bytes | None] = {}
        """The picture of each state that was drawn; None: it is not needed again."""

    def environment(self, seed_of: Callable[[int], int]) -> Environment:
        """Returns a new environment."""
        return GeneralEnvironment(self, seed_of)

    def copy(self) -> Self:
        """Returns the same world without pictures."""
        return type(self)(self.env_id, self.actions, self._space, self._mission, self.success_above)

    def encoded(self, obs: Any) -> bytes:
        """Returns the bytes of an environment's own observation.

        Raises:
            ValueError: it does not have the shape of its space.
        """
        encoding = self.encoding
        if isinstance(self._space, spaces.Discrete):
            obs = obs - self._space.start
        elif encoding.kind == "vector":
            obs = spaces.flatten(self._space, obs)
        array: NDArray[Any] = np.asarray(obs, encoding.dtype)
        if array.size != np.prod(encoding.shape):
            raise ValueError(f"an observation has the shape {array.shape}, and its space {encoding.shape}")
        return array.tobytes()

    def mission(self, obs_K: Observation) -> str:
        """Returns the mission, the same in all states."""
        return self._mission

    def picture(self, obs_K: Observation) -> bytes:
        """Returns the picture that was drawn when the state was first met.

        Raises:
            KeyError: it was not drawn, or is forgotten.
        """
        picture = self._pictures[obs_K.tobytes()]
        if picture is None:
            raise KeyError("the picture is forgotten")
        return picture

    def keep(self, obs_K: Observation, picture: bytes | None) -> None:
        """Keeps a state's picture; None: forgets it."""
        self._pictures[obs_K.tobytes()] = picture

    def meets(self, obs: bytes, drawn: Callable[[], Picture]) -> None:
        """Keeps a state's picture if it is wanted and was not drawn before."""
        if self.draws and obs not in self._pictures:
            self._pictures[obs] = encode_png(drawn())

    def fits(self, other: World) -> bool:
        """Returns whether observations are encoded alike and actions have the same names."""
        return isinstance(other, GeneralWorld) and (self.encoding, self.actions) == (
            other.encoding,
            other.actions,
        )


class GeneralEnvironment(Environment):
    """One environment of any kind."""

    def __init__(self, world: GeneralWorld, seed_of: Callable[[int], int]) -> None:
        super().__init__(make(world.env_id), world.env_id, seed_of)
        self._world = world

    def _reset(self, seed: int) -> bytes:
        obs, _ = self._env.reset(seed=seed)
        return self._met(self._world.encoded(obs))

    def _step(self, action: int) -> tuple[bytes, float, bool, bool]:
        obs, reward, terminated, truncated, _ = self._env.step(action)
        encoded = self._world.encoded(obs)
        if not (terminated or truncated):  # nothing is done in a last state
            self._met(encoded)
        return encoded, float(reward), bool(terminated), bool(truncated)

    def _met(self, obs: bytes) -> bytes:
        self._world.meets(obs, lambda: self._picture(None))
        return obs

    def _picture(self, side: int | None) -> Picture:
        drawn = self._env.render()
        if not isinstance(drawn, np.ndarray) or drawn.ndim != 3 or drawn.shape[2] != 3:
            raise ValueError("render() returned no RGB picture: it needs the render mode rgb_array")
        picture = np.ascontiguousarray(drawn, np.uint8)
        if side is None:
            return picture
        scale = side / max(picture.shape[:2])
        size = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
        return np.asarray(Image.fromarray(picture).resize(size))


def make(env_id: str, *, drawn: bool = True) -> gymnasium.Env[Any, Any]:
    """Makes a registered environment with the wrappers and limits that it is registered with.

    An environment without a time limit gets one of MOST_STEPS: an episode of a poor policy might not end.

    Args:
        env_id: Gymnasium's id, after it any number of `@name=value`, arguments of the environment with their
            values in JSON or as text: `FrozenLake-v1@is_slippery=false@map_name=8x8`. For
            `package.module:Some-Env-v0`, the module is imported first to register it.
        drawn: make it in the render mode rgb_array, if it has that mode.

    Raises:
        UnknownEnvironment: the id is not registered, or the environment cannot be made.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame looks for a screen even where it needs none
    name, *given = env_id.split("@")
    module, _, name = name.rpartition(":")
    try:
        if module:
            import_module(module)
        spec = gymnasium.spec(name)
        arguments = {key: _value(text) for key, _, text in (each.partition("=") for each in given)}
        if drawn and _draws(spec):
            arguments.setdefault("render_mode", "rgb_array")
        if spec.max_episode_steps is None:
            arguments.setdefault("max_episode_steps", MOST_STEPS)
        return gymnasium.make(spec, disable_env_checker=True, **arguments)
    except Exception as error:  # an environment can raise anything
        raise UnknownEnvironment(f"unknown environment {env_id!r}: {in_a_line(error)}") from error


def general_world(env_id: str, success_above: float | None = None) -> GeneralWorld:
    """Returns the world of an environment; its mission is the attribute `mission`, if it is a text.

    Args:
        success_above: None: the environment's `reward_threshold`, if it is registered with one, and else 0.

    Raises:
        UnknownEnvironment: see `make`; or its actions are not discrete, or observations cannot be encoded.
    """
    env = make(env_id)
    if success_above is None:
        success_above = env.spec.reward_threshold if env.spec else None
    mission = getattr(env.unwrapped, "mission", "")
    try:
        return GeneralWorld(
            env_id,
            actions_of(env),
            env.observation_space,
            mission if isinstance(mission, str) else "",
            0.0 if success_above is None else float(success_above),
        )
    except ValueError as error:
        raise UnknownEnvironment(f"the environment {env_id!r} has {error}") from error


def actions_of(env: gymnasium.Env[Any, Any]) -> tuple[str, ...]:
    """Returns the names of an environment's actions.

    They are those of its attribute `actions`, an Enum, or of its method `get_action_meanings`, or those that
    Gymnasium documents; else action_0, action_1, ...

    Raises:
        ValueError: the actions are not discrete.
    """
    space, inner = env.action_space, env.unwrapped
    if not isinstance(space, spaces.Discrete) or space.start != 0:
        raise ValueError(f"the action space {space}; it has to be Discrete, with actions from 0")
    named = getattr(inner, "actions", None)
    meanings = getattr(inner, "get_action_meanings", None)
    if isinstance(named, type) and issubclass(named, Enum):
        names = [each.name for each in named]
    elif callable(meanings):
        names = [str(each) for each in meanings()]
    else:
        classes = (kind.__name__ for kind in type(inner).__mro__)
        names = list(next((_ACTIONS[name] for name in classes if name in _ACTIONS), ()))
    names = [name.lower().replace(" ", "_") for name in names]
    if len(set(names)) != space.n:
        names = [f"action_{number}" for number in range(int(space.n))]
    return tuple(names)


def _draws(spec: Any) -> bool:
    """Returns whether an environment has the render mode rgb_array, and takes a render mode."""
    entry = spec.entry_point
    made_by = gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    parameters = inspect.signature(made_by).parameters.values()
    takes = any(each.name == "render_mode" or each.kind is each.VAR_KEYWORD for each in parameters)
    return takes and "rgb_array" in getattr(made_by, "metadata", {}).get("render_modes", ())


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text

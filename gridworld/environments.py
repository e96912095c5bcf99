"""Environments of MiniGrid's kind, whoever registered them."""

import logging
from enum import Enum
from importlib import import_module
from typing import Any

import gymnasium
import minigrid  # noqa: F401  (registers the environments)
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from minigrid.envs.babyai.core import roomgrid_level
from minigrid.minigrid_env import MiniGridEnv

from gridworld.tasks import ACTIONS, UnknownEnvironment
from gridworld.views import Unobservable

_log = logging.getLogger(__name__)

# BabyAI prints a line for each layout that it tries and rejects, thousands an hour: part of its search
roomgrid_level.print = lambda *words: _log.debug("%s", " ".join(map(str, words)))  # type: ignore[attr-defined]


def make(env_id: str) -> MiniGridEnv:
    """A registered environment, without wrappers. It opens no window.

    Args:
        env_id: gymnasium's id; `package.module:Some-Env-v0` imports the module first, which registers it.

    Raises:
        UnknownEnvironment: there is none of this id, it cannot be made, it is not of MiniGrid's kind, its
            actions are not, or it comes with wrappers.
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            import_module(module)
        spec = gymnasium.spec(name)
        wrapped = gymnasium.make(spec, disable_env_checker=True)
    except Exception as error:  # an environment can raise anything
        raise UnknownEnvironment(f"unknown environment {env_id!r}: {in_a_line(error)}") from error
    env = wrapped.unwrapped
    if not isinstance(env, MiniGridEnv):
        raise UnknownEnvironment(f"the environment {env_id!r} is not of MiniGrid's kind, a MiniGridEnv")
    try:
        actions_of(env)
    except ValueError as error:
        raise UnknownEnvironment(f"the environment {env_id!r} has {error}") from error
    if left_out := _wrappers(wrapped):
        raise UnknownEnvironment(
            f"the environment {env_id!r} is registered with {' and '.join(left_out)}, which would be left"
            " out: do what they do in the environment itself"
        )
    env.render_mode = None
    return env


def actions_of(env: Any) -> tuple[str, ...]:
    """The names of an environment's actions, in the order of its action numbers 0, 1, ...

    Raises:
        ValueError: they are not named as MiniGrid's are, some of which suffice, in any order; what it says
            fits behind `the environment has`.
    """
    space, named = env.action_space, env.actions
    if not isinstance(space, gymnasium.spaces.Discrete) or space.start != 0:
        raise ValueError(f"the action space {space}; it has to be Discrete, with actions from 0")
    names: dict[Any, str] = {}
    if isinstance(named, type) and issubclass(named, Enum):
        names = {each.value: name for name, each in named.__members__.items()}
    if space.n > len(names) or not all(number in names for number in range(space.n)):
        known = ", ".join(names.values()) or "none"
        raise ValueError(f"the actions {space}, and names for {known}; its `actions` has to name all of them")
    found = tuple(names[number] for number in range(space.n))
    if not set(found) <= set(ACTIONS):
        raise ValueError(
            f"the actions {', '.join(found)}; they have to be MiniGrid's, or some of them:"
            f" {', '.join(ACTIONS)}"
        )
    return found


def _wrappers(env: gymnasium.Env[Any, Any]) -> list[str]:
    """What is around an environment and changes more than its observations, which nobody looks at."""
    found = []
    while isinstance(env, gymnasium.Wrapper):
        harmless = isinstance(env, (OrderEnforcing, PassiveEnvChecker)) or (
            isinstance(env, gymnasium.ObservationWrapper)
            and type(env).step is gymnasium.ObservationWrapper.step
        )
        if not harmless:
            found.append(
                "max_episode_steps" if isinstance(env, TimeLimit) else f"the wrapper {type(env).__name__}"
            )
        env = env.env
    return found


def in_a_line(error: Exception) -> str:
    """What an error says, its name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def in_full(error: BaseException) -> str:
    """What an error is and says, in a line; what we raised ourselves needs no name."""
    words = " ".join(str(error).split())
    return words if isinstance(error, Unobservable) else f"{type(error).__name__}: {words}".removesuffix(": ")


def failure(env_id: str, seed: int, steps: int, error: Exception) -> str:
    """In one line, what an environment raised in an episode, and where."""
    where = f"in step {steps} of" if steps else "at the start of"
    return f"the environment {env_id!r} failed {where} the episode with seed {seed}: {in_full(error)}"

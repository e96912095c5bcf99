"""Makes MiniGrid environments, those of other packages included."""

import logging
from enum import Enum
from importlib import import_module
from typing import Any

import gymnasium
import minigrid  # noqa: F401  (registers the environments)
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from minigrid.envs.babyai.core import roomgrid_level
from minigrid.minigrid_env import MiniGridEnv

from gridworld.tasks import ACTIONS, UnknownEnvironment
from gridworld.views import Unobservable

_log = logging.getLogger(__name__)

# BabyAI prints a line for each layout that its generator rejects: thousands an hour
roomgrid_level.print = lambda *words: _log.debug("%s", " ".join(map(str, words)))  # type: ignore[attr-defined]


class _Registered(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment with the wrappers that it is registered with, and with MiniGridEnv's attributes."""

    def __getattr__(self, name: str) -> Any:
        return self.env.get_wrapper_attr(name)


def make(env_id: str) -> Any:
    """Makes a registered environment without a window: a MiniGridEnv, or one with its attributes.

    Wrappers and time limits that it is registered with are honoured. Without such that change more than
    observations, it is the environment itself: this project reads no observations.

    Args:
        env_id: gymnasium's id; for `package.module:Some-Env-v0`, the module is imported first to register it.

    Raises:
        UnknownEnvironment: the id is not registered, the environment cannot be made, is no MiniGridEnv, or
            has other actions than MiniGrid's.
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
        raise UnknownEnvironment(f"the environment {env_id!r} is not a MiniGridEnv")
    env.render_mode = None
    made = env if _only_observed(wrapped) else _Registered(wrapped)
    try:
        actions_of(made)
    except ValueError as error:
        raise UnknownEnvironment(f"the environment {env_id!r} has {error}") from error
    return made


def actions_of(env: Any) -> tuple[str, ...]:
    """Returns the names of an environment's actions, in the order of its action numbers 0, 1, ...

    Raises:
        ValueError: an action has no name, or a name that is none of MiniGrid's seven. The message continues
            the words "the environment has".
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


def _only_observed(env: gymnasium.Env[Any, Any]) -> bool:
    """Returns whether no wrapper of an environment changes more than observations."""
    while isinstance(env, gymnasium.Wrapper):
        harmless = isinstance(env, (OrderEnforcing, PassiveEnvChecker)) or (
            isinstance(env, gymnasium.ObservationWrapper)
            and type(env).step is gymnasium.ObservationWrapper.step
        )
        if not harmless:
            return False
        env = env.env
    return True


def in_a_line(error: Exception) -> str:
    """Returns an error's message on one line, or its class name where the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def in_full(error: BaseException) -> str:
    """Returns an error's class and message on one line; an `Unobservable` has its message alone."""
    words = " ".join(str(error).split())
    return words if isinstance(error, Unobservable) else f"{type(error).__name__}: {words}".removesuffix(": ")


def failure(env_id: str, seed: int, steps: int, error: Exception) -> str:
    """Describes in one line an error that an environment raised, with the episode's seed and the step."""
    where = f"in step {steps} of" if steps else "at the start of"
    return f"the environment {env_id!r} failed {where} the episode with seed {seed}: {in_full(error)}"

"""Environments of MiniGrid's kind, whoever registered them."""

from importlib import import_module

import gymnasium
import minigrid  # noqa: F401  (registers the environments)
from minigrid.minigrid_env import MiniGridEnv

from gridworld.tasks import ACTIONS, UnknownEnvironment


def make(env_id: str) -> MiniGridEnv:
    """A registered environment, without wrappers.

    Args:
        env_id: gymnasium's id; `package.module:Some-Env-v0` imports the module first, which registers it.

    Raises:
        UnknownEnvironment: there is none of this id, it cannot be made, or it is not of MiniGrid's kind.
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            import_module(module)
        spec = gymnasium.spec(name)
        env = gymnasium.make(spec, disable_env_checker=True).unwrapped
    except Exception as error:  # an environment can raise anything
        raise UnknownEnvironment(f"unknown environment {env_id!r}: {in_a_line(error)}") from error
    if not isinstance(env, MiniGridEnv):
        raise UnknownEnvironment(f"the environment {env_id!r} is not of MiniGrid's kind, a MiniGridEnv")
    actions = env.action_space
    if not isinstance(actions, gymnasium.spaces.Discrete) or actions.start != 0 or actions.n > len(ACTIONS):
        raise UnknownEnvironment(
            f"the environment {env_id!r} has the actions {actions}; they have to be MiniGrid's seven,"
            " or the first of them"
        )
    if spec.additional_wrappers or spec.max_episode_steps is not None:
        raise UnknownEnvironment(
            f"the environment {env_id!r} is registered with wrappers or max_episode_steps, which would be"
            " left out: do what they do in the environment itself"
        )
    return env


def in_a_line(error: Exception) -> str:
    """What an error says, its name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__

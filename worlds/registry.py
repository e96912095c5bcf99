"""The world of an environment id."""

from minigrid.minigrid_env import MiniGridEnv

from gridworld.environments import in_full
from gridworld.tasks import UnknownEnvironment, family_of
from worlds.general import general_world, make
from worlds.minigrid import MinigridWorld, Vocabulary, layout_of
from worlds.world import EnvironmentFailed, World


def world_of(env_id: str, success_above: float | None = None) -> World:
    """Returns the world of an environment, without starting an episode.

    Args:
        env_id: an id of MiniGrid's kind, or of any environment that `worlds.general.make` makes.
        success_above: an episode is a success if its return is above this; None: 0, or the default of
            `worlds.general.general_world`.

    Raises:
        UnknownEnvironment: the id is not registered, or the environment cannot be used.
    """
    if family_of(env_id) or isinstance(make(env_id, drawn=False).unwrapped, MiniGridEnv):
        return MinigridWorld(layout_of(env_id), Vocabulary(), success_above or 0.0)
    return general_world(env_id, success_above)


def check(env_id: str) -> None:
    """Checks that an environment can be made and that its first state can be observed.

    Raises:
        UnknownEnvironment: the environment cannot be made, or its first state cannot be observed.
    """
    try:
        world_of(env_id).environment(lambda episode: episode).reset()
    except EnvironmentFailed as failed:
        why = in_full(failed.__cause__ or failed)
        raise UnknownEnvironment(f"the environment {env_id!r} cannot be observed: {why}") from failed

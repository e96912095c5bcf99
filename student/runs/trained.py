"""The student of a run's newest checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from student.algorithms.networks import ActorCritic, network_of
from student.algorithms.rollout import act
from student.runs.folder import BadRun, Run
from student.runs.policies import Policy
from student.runs.resuming import load_settings
from student.settings import TrainSettings
from worlds.registry import world_of
from worlds.world import World


@dataclass(frozen=True)
class Trained:
    """A trained student.

    world: with the words of missions that the run met; teacher: the teacher's identity, None without one.
    """

    settings: TrainSettings
    world: World
    network: ActorCritic
    frames: int
    teacher: str | None


def load_trained(folder: Path) -> Trained:
    """Returns the student of a run.

    Raises:
        BadRun: the folder holds no run with a checkpoint of this version.
    """
    run = Run.open(folder)
    state = run.load_checkpoint()
    settings = load_settings(run)
    world = world_of(settings.env, settings.success_above)
    network = network_of(world)
    try:
        network.load_state_dict(state["network"])
    except RuntimeError as error:
        raise BadRun(
            f"{folder} has a network that this version does not know: use the version that wrote it"
            " (see config.json)"
        ) from error
    teacher = state["labels"]["identity"] if state["labels"] else None
    world.learn_words(state["words"])
    return Trained(settings, world, network, state["frames"], teacher)


def load_policy(folder: Path) -> tuple[World, Policy]:
    """Returns the world and the policy of a run's student.

    Raises:
        BadRun: the folder holds no run with a checkpoint of this version.
    """
    trained = load_trained(folder)
    return trained.world, lambda obs_BK: act(trained.network, obs_BK)[0]

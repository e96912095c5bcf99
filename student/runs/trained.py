"""The student of a run's newest checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from student.algorithms.networks import ActorCritic
from student.algorithms.rollout import act
from student.environments import Layout, Vocabulary, layout_of
from student.runs.folder import BadRun, Run
from student.runs.policies import Policy
from student.runs.resuming import load_settings
from student.settings import TrainSettings


@dataclass(frozen=True)
class Trained:
    """A trained student.

    words: the vocabulary, with the ids 1, 2, ...; teacher: the teacher's identity, None without one.
    """

    settings: TrainSettings
    layout: Layout
    words: tuple[str, ...]
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
    layout = layout_of(settings.env)
    network = ActorCritic(layout)
    try:
        network.load_state_dict(state["network"])
    except RuntimeError as error:
        raise BadRun(
            f"{folder} has a network that this version does not know: use the version that wrote it"
            " (see config.json)"
        ) from error
    teacher = state["labels"]["identity"] if state["labels"] else None
    return Trained(settings, layout, tuple(state["words"]), network, state["frames"], teacher)


def load_policy(folder: Path) -> tuple[Layout, Vocabulary, Policy]:
    """Returns the layout, the vocabulary and the policy of a run's student.

    Raises:
        BadRun: the folder holds no run with a checkpoint of this version.
    """
    trained = load_trained(folder)
    return trained.layout, Vocabulary(trained.words), lambda obs_BK: act(trained.network, obs_BK)[0]

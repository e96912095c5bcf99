"""`student evaluate`: a trained student, an exported one or a teacher, played on held-out episodes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from student.algorithms.networks import ActorCritic
from student.algorithms.rollout import act
from student.environments import Layout, Vocabulary, layout_of
from student.labels.table import LabelTable
from student.runs.animation import animate
from student.runs.evaluation import Policy, evaluate
from student.runs.exported import open_exported
from student.runs.folder import BadRun, Run, write_json
from student.runs.resuming import load_settings
from student.settings import EvaluateSettings, TrainSettings, is_address
from teacher_api.client import TeacherError, connect

_EPISODES_SHOWN = 4


def main(settings: EvaluateSettings) -> int:
    """Runs the command; returns 0."""
    report = score(settings)
    print_report(report)
    if settings.out:
        write_json(settings.out, report)
    return 0


def print_report(report: dict[str, dict[str, Any]]) -> None:
    """Prints success, return and length by the kind of actions, as a table."""
    print(f"{'actions':9}{'episodes':>9}{'success':>9}  {'95 %':15}{'return':>7}  {'95 %':15}{'length':>7}")
    for name, row in report.items():
        print(
            f"{name:9}{row['episodes']:9}{row['success']:9.3f}  {_interval(row['success_interval']):15}"
            f"{row['return']:7.3f}  {_interval(row['return_interval']):15}{row['length']:7.1f}"
        )


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f}..{interval[1]:.3f}"


def score(settings: EvaluateSettings) -> dict[str, dict[str, Any]]:
    """Reports of held-out episodes, with sampled and with the most probable actions.

    Raises:
        CannotStart: the folder or file holds no student, or one of another environment; or no key.
        TeacherError: the teacher cannot be asked, or does not answer for a state.
    """
    if is_address(settings.policy):
        layout, vocabulary, policy = _teacher(settings)
    else:
        layout, vocabulary, policy = _student(settings)
    rng = np.random.default_rng(settings.seed)
    report = {
        "sampled": evaluate(policy, layout, vocabulary, settings.episodes, rng).report(),
        "argmax": evaluate(policy, layout, vocabulary, settings.episodes, None).report(),
    }
    if settings.gif:
        animate(policy, layout, vocabulary, min(settings.episodes, _EPISODES_SHOWN), settings.gif)
    return report


@dataclass(frozen=True)
class Trained:
    """What a run has learnt by its newest checkpoint.

    words: those that it knows, by their ids 1, 2, ...; teacher: the identity of who taught it.
    """

    settings: TrainSettings
    layout: Layout
    words: tuple[str, ...]
    network: ActorCritic
    frames: int
    teacher: str | None


def load_trained(folder: Path) -> Trained:
    """A run's student.

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


def load_student(folder: Path) -> tuple[Layout, Vocabulary, Policy]:
    """What a run's newest checkpoint plays: its layout, the words that it knows, its policy.

    Raises:
        BadRun: the folder holds no run with a checkpoint of this version.
    """
    trained = load_trained(folder)
    return trained.layout, Vocabulary(trained.words), lambda obs_BK: act(trained.network, obs_BK)[0]


def _load_exported(file: Path) -> tuple[Layout, Vocabulary, Policy]:
    student = open_exported(file)
    return student.about.layout, student.vocabulary, student.policy


def _student(settings: EvaluateSettings) -> tuple[Layout, Vocabulary, Policy]:
    path = Path(settings.policy)
    exported = path.suffix == ".onnx" or path.is_file()
    trained_on, vocabulary, policy = (_load_exported if exported else load_student)(path)
    layout = layout_of(settings.env or trained_on.env_id)
    if replace(trained_on, env_id=layout.env_id) != layout:
        raise BadRun(
            f"{settings.policy} learnt {trained_on.env_id}; {layout.env_id} has another size or actions"
        )
    return layout, vocabulary, policy


def _teacher(settings: EvaluateSettings) -> tuple[Layout, Vocabulary, Policy]:
    if settings.env is None:
        raise BadRun("a teacher can play any environment: choose one with --env")
    layout, vocabulary = layout_of(settings.env), Vocabulary()
    client = connect(settings.policy, key_file=settings.teacher_key_file, wait_s=settings.teacher_wait_s)
    labels = LabelTable(layout, vocabulary, client, task=settings.task)
    labels.start()

    def policy(obs_BK: NDArray[np.uint8]) -> NDArray[np.float32]:
        answers = labels.labels_of(labels.rows_of(obs_BK))
        if not answers.given_B.all():
            raise TeacherError(
                f"{settings.policy} gave no answer for {labels.failed} of {labels.states} states"
            )
        with np.errstate(divide="ignore"):  # probability 0 is a log-probability of -inf
            log_probs_BA: NDArray[np.float32] = np.log(answers.probs_BA.numpy())
        return log_probs_BA

    return layout, vocabulary, policy

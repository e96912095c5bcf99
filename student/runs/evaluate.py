"""`student evaluate`: a trained student, an exported student or a teacher plays held-out episodes."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gridworld.tasks import task_key
from student.labels.table import LabelTable
from student.runs.animation import animate
from student.runs.folder import BadRun
from student.runs.onnx_student import open_exported
from student.runs.policies import Policy, evaluate
from student.runs.settings import EvaluateSettings, is_address
from student.runs.trained import load_policy
from teacher_api.client import TeacherError, connect
from teacher_api.files import write_json
from teacher_api.terminal import say
from worlds.registry import world_of
from worlds.world import World

_EPISODES_SHOWN = 4


def main(settings: EvaluateSettings) -> int:
    """Runs the command; returns 0."""
    report = score(settings)
    print_report(report)
    if settings.out:
        write_json(settings.out, report)
    return 0


def print_report(report: dict[str, dict[str, Any]]) -> None:
    """Prints success, return and length for each way of choosing actions, as a table."""
    print(f"{'actions':9}{'episodes':>9}{'success':>9}  {'95 %':15}{'return':>7}  {'95 %':15}{'length':>7}")
    for name, row in report.items():
        print(
            f"{name:9}{row['episodes']:9}{row['success']:9.3f}  {_interval(row['success_interval']):15}"
            f"{row['return']:7.3f}  {_interval(row['return_interval']):15}{row['length']:7.1f}"
        )


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f}..{interval[1]:.3f}"


def score(settings: EvaluateSettings) -> dict[str, dict[str, Any]]:
    """Returns reports of held-out episodes: "sampled" actions, and "argmax", the most probable ones.

    In a state that a teacher gives no answer for, all useful actions are equally probable.

    Raises:
        CannotStart: the folder or file holds no student, or one for another environment; or the key file
            holds no key.
        TeacherError: the teacher cannot be asked, or gives no answer for most states.
    """
    table = None
    if is_address(settings.policy):
        world, policy, table = _teacher(settings)
    else:
        world, policy = _student(settings)
    rng = np.random.default_rng(settings.seed)
    report = {
        "sampled": evaluate(policy, world, settings.episodes, rng).report(),
        "argmax": evaluate(policy, world, settings.episodes, None).report(),
    }
    if table is not None and table.failed:
        say(
            f"note: {settings.policy} gave no answer for {table.failed} of {table.states} states; there, all"
            " useful actions were equally probable"
        )
    if settings.gif:
        animate(policy, world, min(settings.episodes, _EPISODES_SHOWN), settings.gif)
    return report


def _load_exported(file: Path) -> tuple[World, Policy]:
    student = open_exported(file)
    return student.world, student.policy


def _student(settings: EvaluateSettings) -> tuple[World, Policy]:
    path = Path(settings.policy)
    exported = path.suffix == ".onnx" or path.is_file()
    trained_on, policy = _load_exported(path) if exported else load_policy(path)
    if settings.env is None and settings.success_above is None:
        return trained_on, policy
    world = world_of(settings.env or trained_on.env_id, settings.success_above)
    if not world.fits(trained_on):
        raise BadRun(
            f"{settings.policy} was trained on {trained_on.env_id}; {world.env_id} has another size or"
            " other actions"
        )
    world.learn_words(trained_on.words)
    return world, policy


def _teacher(settings: EvaluateSettings) -> tuple[World, Policy, LabelTable]:
    if settings.env is None:
        raise BadRun("a teacher can play in any environment: choose one with `env`")
    world = world_of(settings.env, settings.success_above)
    world.draws = True
    client = connect(settings.policy, key_file=settings.teacher_key_file, wait_s=settings.teacher_wait_s)
    table = LabelTable(world, client, task=settings.task)
    table.start()
    assert table.info is not None
    useful_A = np.isin(world.actions, table.info.tasks[task_key(settings.env, settings.task)])
    even_A = (useful_A / useful_A.sum()).astype(np.float32)

    def policy(obs_BK: NDArray[np.uint8]) -> NDArray[np.float32]:
        labels = table.labels_of(table.rows_of(obs_BK))
        if table.useless:
            raise TeacherError(
                f"{settings.policy} gave no answer for {table.failed} of {table.states} states"
            )
        with np.errstate(divide="ignore"):  # the log-probability of probability 0 is -inf
            log_probs_BA: NDArray[np.float32] = np.log(
                np.where(labels.given_B.numpy()[:, None], labels.probs_BA.numpy(), even_A)
            )
        return log_probs_BA

    return world, policy, table

"""`student evaluate`: a trained student or a teacher, played on held-out episodes."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from student.envs import Layout, Vocabulary, layout_of
from student.evaluate import Policy, animate, evaluate
from student.labels import LabelTable
from student.rollout import act
from student.runs import BadRun
from student.settings import EvaluateSettings
from student.trainer import load_policy
from teacher_server.client import TeacherClient, TeacherError

_EPISODES_SHOWN = 4


def score(settings: EvaluateSettings) -> dict[str, dict[str, Any]]:
    """Reports of held-out episodes, with sampled and with the most probable actions.

    Raises:
        BadRun: the folder holds no run, or a run of another environment.
        TeacherError: the teacher cannot be asked, or does not answer for a state.
    """
    if settings.policy.startswith(("http://", "https://")):
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


def _student(settings: EvaluateSettings) -> tuple[Layout, Vocabulary, Policy]:
    trained, network, vocabulary = load_policy(Path(settings.policy))
    trained_on, layout = layout_of(trained.env), layout_of(settings.env or trained.env)
    if (layout.height, layout.width, layout.actions) != (
        trained_on.height,
        trained_on.width,
        trained_on.actions,
    ):
        raise BadRun(
            f"{settings.policy} was trained on {trained.env}; {layout.env_id} has another size or actions"
        )
    return layout, vocabulary, lambda obs_BK: act(network, obs_BK)[0]


def _teacher(settings: EvaluateSettings) -> tuple[Layout, Vocabulary, Policy]:
    if settings.env is None:
        raise BadRun("a teacher can play any environment: choose one with --env")
    layout, vocabulary = layout_of(settings.env), Vocabulary()
    client = TeacherClient(settings.policy, deadline_s=settings.teacher_wait_s)
    labels = LabelTable(layout, vocabulary, client)

    def policy(obs_BK: NDArray[np.uint8]) -> NDArray[np.float32]:
        answers = labels.look_up(obs_BK)
        if not answers.given_B.all():
            raise TeacherError(
                f"{settings.policy} gave no answer for {labels.failed} of {len(labels)} states"
            )
        with np.errstate(divide="ignore"):  # probability 0 is a log-probability of -inf
            log_probs_BA: NDArray[np.float32] = np.log(answers.probs_BA.numpy())
        return log_probs_BA

    return layout, vocabulary, policy

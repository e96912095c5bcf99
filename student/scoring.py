"""`student evaluate`: a trained student or a teacher, played on held-out episodes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from student.envs import Layout, Vocabulary, layout_of
from student.evaluate import Policy, animate, evaluate
from student.labels import LabelTable
from student.networks import ActorCritic
from student.rollout import act
from student.runs import BadRun, Run
from student.settings import EvaluateSettings
from student.trainer import load_settings
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


def load_student(folder: Path) -> tuple[Layout, Vocabulary, Policy]:
    """What a run's newest checkpoint plays: its layout, the words that it knows, its policy.

    Raises:
        BadRun: the folder holds no run with a checkpoint.
    """
    run = Run.open(folder)
    state = run.load_checkpoint()
    layout = layout_of(load_settings(run).env)
    network = ActorCritic(layout)
    network.load_state_dict(state["network"])
    return layout, Vocabulary(state["words"]), lambda obs_BK: act(network, obs_BK)[0]


def _student(settings: EvaluateSettings) -> tuple[Layout, Vocabulary, Policy]:
    trained_on, vocabulary, policy = load_student(Path(settings.policy))
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
    client = TeacherClient(settings.policy, deadline_s=settings.teacher_wait_s)
    labels = LabelTable(layout, vocabulary, client)

    def policy(obs_BK: NDArray[np.uint8]) -> NDArray[np.float32]:
        answers = labels.look_up(obs_BK)
        if not answers.given_B.all():
            raise TeacherError(
                f"{settings.policy} gave no answer for {labels.failed} of {labels.states} states"
            )
        with np.errstate(divide="ignore"):  # probability 0 is a log-probability of -inf
            log_probs_BA: NDArray[np.float32] = np.log(answers.probs_BA.numpy())
        return log_probs_BA

    return layout, vocabulary, policy

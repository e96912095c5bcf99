"""Stable-Baselines3's algorithms with a teacher."""

import copy
from pathlib import Path
from typing import Any

import gymnasium
import minigrid  # noqa: F401  (registers the environments)
import numpy as np
import pytest
import torch
from minigrid.wrappers import FullyObsWrapper, ImgObsWrapper

from gridworld.tasks import ACTIONS
from student.labels.own_loop import TeacherLabels
from tests.conftest import TeacherProcess

sb3 = pytest.importorskip("stable_baselines3", reason="stable-baselines3: pip install '.[sb3]'")
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402

from student.sb3 import TaughtA2C, TaughtPPO  # noqa: E402

pytestmark = pytest.mark.integration

_MISSION = "avoid the lava and get to the green goal square"


def _flat(env: Any) -> Any:
    space = gymnasium.spaces.Box(0, 11, (75,), np.float32)
    return gymnasium.wrappers.TransformObservation(
        ImgObsWrapper(FullyObsWrapper(env)), lambda obs: obs.astype(np.float32).ravel(), space
    )


def _environments(seed: int = 1) -> Any:
    drawn = {"render_mode": "rgb_array"}
    return make_vec_env("MiniGrid-LavaGapS5-v0", 4, seed=seed, env_kwargs=drawn, wrapper_class=_flat)


@pytest.fixture
def teacher(shared_teacher: TeacherProcess) -> Any:
    with TeacherLabels(shared_teacher.url, task="lava_gap", actions=ACTIONS, mission=_MISSION) as labels:
        yield labels


@pytest.mark.parametrize("kind", [TaughtPPO, TaughtA2C])
def test_a_gradient_step_is_the_algorithms_own_and_that_of_lambda_kl(kind: Any, teacher: Any) -> None:
    """With plain gradient descent, the parameters of the two students differ by the gradient of the KL."""
    settings: dict[str, Any] = {"n_steps": 16, "max_grad_norm": 1e9, "learning_rate": 0.5, "seed": 3}
    settings |= {"batch_size": 64, "n_epochs": 1, "normalize_advantage": False} if kind is TaughtPPO else {}
    policy = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    students = []
    for labels in (teacher, None):
        model = kind(
            "MlpPolicy",
            _environments(),
            policy_kwargs=policy,
            teacher=labels,
            teacher_lambda=2.0,
            lambda_timesteps=128,
            **settings,
        )
        if labels is not None:
            start = copy.deepcopy(model.policy)
        model.learn(64)
        students.append(model)
    taught, alone = (dict(model.policy.named_parameters()) for model in students)
    obs = students[0].rollout_buffer.observations.reshape(64, -1)
    np.testing.assert_array_equal(obs, students[1].rollout_buffer.observations.reshape(64, -1))
    weight = 2.0 * (1 - 64 / 128)
    logits_BA = start.get_distribution(torch.as_tensor(obs)).distribution.logits
    (weight * teacher.kl(obs, logits_BA)).backward()
    moved = 0.0
    for name, parameter in start.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(alone[name] - taught[name], 0.5 * gradient, atol=2e-5, rtol=1e-3)
        moved += float(gradient.abs().sum())
    assert moved > 0.01


def test_a_taught_student_learns_asks_each_state_once_and_can_be_saved(teacher: Any, tmp_path: Path) -> None:
    settings = {"n_steps": 32, "batch_size": 64, "learning_rate": 3e-3, "seed": 1}
    model = TaughtPPO("MlpPolicy", _environments(), teacher=teacher, lambda_timesteps=8_000, **settings)
    model.learn(8_192)
    asked = teacher.asked + teacher.stored
    assert 30 < asked < 400
    assert teacher.failed == 0
    obs = model.rollout_buffer.observations.reshape(-1, 75)
    assert teacher.of(obs).given_B.all()
    logits = [
        each.policy.get_distribution(torch.as_tensor(obs)).distribution.logits
        for each in (model, TaughtPPO("MlpPolicy", _environments()))
    ]
    taught, untaught = (float(teacher.kl(obs, each.detach())) for each in logits)
    assert taught < untaught / 2
    model.learn(512, reset_num_timesteps=False)  # lambda is 0
    assert teacher.asked + teacher.stored == asked
    model.save(tmp_path / "student")
    loaded = TaughtPPO.load(tmp_path / "student")
    obs = _environments(5).reset()
    np.testing.assert_array_equal(
        model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0]
    )


def test_without_a_teacher_it_is_the_algorithm_itself() -> None:
    settings = {"n_steps": 32, "batch_size": 64, "seed": 1}
    students = []
    for kind in (TaughtPPO, sb3.PPO):
        students.append(kind("MlpPolicy", _environments(), **settings).learn(256))
    ours, theirs = students
    for mine, its in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        assert torch.equal(mine, its)

"""The PPO update against its loss worked out independently, term by term, in plain float64 loops."""

import math

import numpy as np
import pytest
import torch

from student.algorithms.base import Batch
from student.algorithms.distillation import Labels
from student.algorithms.networks import ActorCritic, GridNetwork
from student.algorithms.ppo import PPO, loss
from student.algorithms.rollout import collect
from student.settings import TrainSettings
from tests.student.algorithms.batches import LAYOUT, A, B, batch_of, equation_1_by_hand, normalised, softmax
from worlds.minigrid import MinigridWorld, Vocabulary
from worlds.world import Environments

pytestmark = pytest.mark.unit


def _settings(**changes: object) -> TrainSettings:
    return TrainSettings.model_validate({"entropy_coefficient": 0.05, **changes})


def _by_hand(
    network: ActorCritic, batch: Batch, teacher_lambda: float, settings: TrainSettings
) -> dict[str, float]:
    with torch.no_grad():
        logits_BA, values_B = (
            tensor.double().tolist() for tensor in network.judge(batch.seen_UE[batch.which_B])
        )
    probs_BA = [softmax(logits) for logits in logits_BA]
    advantages = batch.advantages_B.double().tolist()
    if settings.normalise_advantages:
        advantages = normalised(advantages)
    policy = value = 0.0
    for b in range(B):
        ratio = probs_BA[b][int(batch.actions_B[b])] / math.exp(float(batch.log_probs_B[b]))
        clipped = min(max(ratio, 1 - settings.clip), 1 + settings.clip)
        policy -= min(ratio * advantages[b], clipped * advantages[b]) / B
        target, old = float(batch.returns_B[b]), float(batch.values_B[b])
        error = (values_B[b] - target) ** 2
        if settings.clip_values:
            near = old + min(max(values_B[b] - old, -settings.clip), settings.clip)
            error = max(error, (near - target) ** 2)
        value += 0.5 * error / B
    return equation_1_by_hand(
        policy, value, probs_BA, batch.targets_U[batch.which_B], teacher_lambda, settings
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("teacher_lambda", [0.0, 0.7])
@pytest.mark.parametrize(
    "changes", [{}, {"normalise_advantages": False}, {"clip_values": True}, {"clip": 0.05}]
)
def test_the_loss_is_equation_1(seed: int, changes: dict[str, object], teacher_lambda: float) -> None:
    settings = _settings(**changes)
    network, batch = batch_of(seed)
    total, parts = loss(network, batch, teacher_lambda, settings)
    expected = _by_hand(network, batch, teacher_lambda, settings)
    assert total.item() == pytest.approx(expected.pop("total"), rel=1e-4, abs=1e-5)
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_without_labels_the_gradient_is_that_of_ppo_alone() -> None:
    network, batch = batch_of(1, given=0.0)
    gradients = []
    for teacher_lambda in (0.0, 5.0):
        network.zero_grad()
        loss(network, batch, teacher_lambda, _settings())[0].backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_an_update_moves_the_student_towards_the_teacher() -> None:
    torch.manual_seed(0)
    settings = _settings(learning_rate=1e-3)
    network, rng = GridNetwork(LAYOUT), np.random.default_rng(0)
    algorithm = PPO(network, settings)
    envs = Environments(MinigridWorld(LAYOUT, Vocabulary()), 8, 1)
    rollout = collect(network, envs, envs.reset(), 16, rng)
    probs_UA = torch.zeros(len(rollout.states_UK), A)
    probs_UA[:, 1] = 1
    labels = Labels(probs_UA, torch.ones(len(probs_UA), dtype=torch.bool))
    figures = [algorithm.update(rollout, labels, 1.0, rng) for _ in range(10)]
    assert figures[-1]["kl"] < 0.3 * figures[0]["kl"]
    log_probs_UA = collect(network, envs, rollout.last_obs_NK, 16, rng).log_probs_UA
    assert (log_probs_UA.argmax(1) == 1).all()


def test_a_student_that_fails_learns_from_rewards_as_the_preset_alone_does() -> None:
    fast, alone = (TrainSettings(preset=preset, algo="ppo") for preset in ("fast", "alone"))
    algorithm = PPO(GridNetwork(LAYOUT), fast)
    names = ("epochs", "minibatch_size", "learning_rate", "normalise_advantages")
    for failing, steps, expected in ((1, 64, alone), (0.95, 16, alone), (0.04, 16, alone), (0.03, 16, fast)):
        algorithm.recover(failing)
        assert algorithm.settings.rollout_steps == steps
        assert [getattr(algorithm.settings, name) for name in names] == [
            getattr(expected, name) for name in names
        ]
        assert algorithm.optimiser.param_groups[0]["lr"] == expected.learning_rate
    assert algorithm.settings == fast.model_copy(update={"entropy_coefficient": 0})

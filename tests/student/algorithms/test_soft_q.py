"""Soft Q-learning: its loss worked out independently, its buffer, and what it converges to."""

import math

import numpy as np
import pytest
import torch

from student.algorithms.distillation import Labels
from student.algorithms.networks import GridNetwork
from student.algorithms.rollout import collect
from student.algorithms.soft_q import SoftQLearning, loss
from student.settings import TrainSettings
from tests.student.algorithms.batches import LAYOUT, A, softmax
from worlds.minigrid import MinigridWorld, Vocabulary
from worlds.world import Environments

pytestmark = pytest.mark.unit

_SETTINGS = TrainSettings.model_validate({"algo": "soft-q", "entropy_coefficient": 0.1, "gamma": 0.9})


def _batch(size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    envs = Environments(MinigridWorld(LAYOUT, Vocabulary()), size, seed)
    obs = envs.reset()
    return {
        "obs": torch.from_numpy(obs),
        "next_obs": torch.from_numpy(envs.step(rng.integers(0, 3, size)).last_NK),
        "actions": torch.from_numpy(rng.integers(0, A, size)),
        "rewards": torch.from_numpy(rng.random(size, np.float32)),
        "terminated": torch.from_numpy(rng.random(size) < 0.4),
        "probs": torch.from_numpy(rng.dirichlet(np.ones(A), size).astype(np.float32)),
        "given": torch.from_numpy(rng.random(size) < 0.6),
        "powers": torch.zeros(size),
    }


@pytest.mark.parametrize("teacher_lambda", [0.0, 0.7])
def test_the_loss_by_hand(teacher_lambda: float) -> None:
    torch.manual_seed(0)
    network, target = GridNetwork(LAYOUT), GridNetwork(LAYOUT)
    torch.nn.init.normal_(network.actor.weight, std=0.3)
    batch = _batch(8)
    total, parts = loss(network, target, batch, teacher_lambda, _SETTINGS)
    with torch.no_grad():
        logits, values = (tensor.double().tolist() for tensor in network(batch["obs"]))
        following = target(batch["next_obs"])[1].double().tolist()
    error, kls = 0.0, []
    for b in range(8):
        pi = softmax(logits[b])
        q = values[b] + 0.1 * math.log(pi[int(batch["actions"][b])])
        wanted = float(batch["rewards"][b]) + (0 if batch["terminated"][b] else 0.9 * following[b])
        error += (q - wanted) ** 2 / 0.2 / 8
        if batch["given"][b]:
            kls.append(sum(p * math.log(p / q) for p, q in zip(batch["probs"][b].tolist(), pi, strict=True)))
    kl = sum(kls) / len(kls)
    assert float(parts["value_loss"]) == pytest.approx(error, rel=1e-4)
    assert float(parts["kl"]) == pytest.approx(kl, rel=1e-4)
    assert total.item() == pytest.approx(error + teacher_lambda * kl, rel=1e-4)


def test_the_policy_becomes_the_softmax_of_known_q_values() -> None:
    """Episodes of one step: Q is the reward, and pi(a) is proportional to exp(r(a) / tau)."""
    torch.manual_seed(0)
    network = GridNetwork(LAYOUT)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    obs = torch.from_numpy(Environments(MinigridWorld(LAYOUT, Vocabulary()), 1, 0).reset()).expand(A, -1)
    rewards = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.0, 0.0, 0.1])
    batch = {
        "obs": obs,
        "next_obs": obs,
        "actions": torch.arange(A),
        "rewards": rewards,
        "terminated": torch.ones(A, dtype=torch.bool),
        "probs": torch.zeros(A, A),
        "given": torch.zeros(A, dtype=torch.bool),
        "powers": torch.zeros(A),
    }
    for _ in range(400):
        optimiser.zero_grad()
        loss(network, network, batch, 0.0, _SETTINGS)[0].backward()
        optimiser.step()
    logits_BA, values_B = network(obs[:1])
    expected = softmax([float(reward) / 0.1 for reward in rewards])
    assert logits_BA.softmax(1)[0].tolist() == pytest.approx(expected, abs=0.01)
    soft_maximum = 0.1 * math.log(sum(math.exp(float(reward) / 0.1) for reward in rewards))
    assert values_B.item() == pytest.approx(soft_maximum, abs=0.01)


def test_the_buffer_holds_the_newest_steps_and_none_that_were_cut_off() -> None:
    torch.manual_seed(0)
    settings = _SETTINGS.model_copy(update={"buffer_size": 150, "epochs": 1})
    rng = np.random.default_rng(0)
    network = GridNetwork(LAYOUT)
    algorithm = SoftQLearning(network, settings)
    envs = Environments(MinigridWorld(LAYOUT, Vocabulary()), 4, 1)
    rollout = collect(network, envs, envs.reset(), 120, rng)
    cut_off = int((rollout.truncated_TN & ~rollout.terminated_TN).sum())
    assert cut_off > 0
    figures = algorithm.update(rollout, Labels.nothing(len(rollout.states_UK), A), 0.0, rng)
    assert np.isfinite(list(figures.values())).all()
    buffer = algorithm.state()["buffer"]
    kept = (~rollout.truncated_TN | rollout.terminated_TN).ravel()
    obs_TNK = rollout.states_UK[rollout.which_TN]
    np.testing.assert_array_equal(buffer["obs"], obs_TNK.reshape(480, -1)[kept][-150:])
    following = np.concatenate([obs_TNK[1:], rollout.last_obs_NK[None]]).reshape(480, -1)
    np.testing.assert_array_equal(buffer["next_obs"], following[kept][-150:])

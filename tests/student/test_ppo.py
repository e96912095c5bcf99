"""The PPO update against its loss worked out independently, term by term, in plain float64 loops."""

import math

import numpy as np
import pytest
import torch

from student.distillation import Labels, agreement, kl_to_teacher
from student.envs import Environments, Vocabulary, layout_of
from student.networks import ActorCritic
from student.ppo import Batch, loss, update
from student.rollout import collect
from student.settings import TrainSettings

pytestmark = pytest.mark.unit

LAYOUT = layout_of("MiniGrid-LavaGapS5-v0")
B, A = 24, 7


def _settings(**changes: object) -> TrainSettings:
    return TrainSettings.model_validate({"lambda": 0.7, "entropy_coefficient": 0.05, **changes})


def _labels(rng: np.random.Generator, given: float = 0.6) -> Labels:
    probs_BA = rng.dirichlet(np.full(A, 0.5), B).astype(np.float32)
    probs_BA[:, 2] = 0  # as for an action that is fatal, or of no use
    probs_BA /= probs_BA.sum(1, keepdims=True)
    return Labels(torch.from_numpy(probs_BA), torch.from_numpy(rng.random(B) < given))


def _batch(seed: int, given: float = 0.6) -> tuple[ActorCritic, Batch]:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = ActorCritic(LAYOUT)
    torch.nn.init.normal_(network.actor.weight, std=0.3)
    envs = Environments(LAYOUT, Vocabulary(), B, seed)
    obs_BK = envs.reset()
    for _ in range(6):
        obs_BK = envs.step(rng.integers(0, 3, B)).obs_NK
    floats = lambda: torch.from_numpy(rng.normal(size=B).astype(np.float32))  # noqa: E731
    old_log_probs_B = -torch.rand(B) * 2 - 1
    actions_B = torch.from_numpy(rng.integers(0, A, B))
    batch = Batch(
        torch.from_numpy(obs_BK),
        actions_B,
        old_log_probs_B,
        floats(),
        floats(),
        floats(),
        _labels(rng, given),
    )
    return network, batch


def _by_hand(network: ActorCritic, batch: Batch, settings: TrainSettings) -> dict[str, float]:
    with torch.no_grad():
        logits_BA, values_B = (tensor.double().numpy() for tensor in network(batch.obs_BK))
    advantages = batch.advantages_B.double().numpy()
    if settings.normalise_advantages:
        mean = sum(advantages) / B
        spread = math.sqrt(sum((a - mean) ** 2 for a in advantages) / (B - 1))
        advantages = [(a - mean) / (spread + 1e-8) for a in advantages]
    policy = value = entropy = kl = 0.0
    labelled = 0
    for b in range(B):
        weights = [math.exp(logit - max(logits_BA[b])) for logit in logits_BA[b]]
        pi = [weight / sum(weights) for weight in weights]
        ratio = pi[int(batch.actions_B[b])] / math.exp(float(batch.log_probs_B[b]))
        clipped = min(max(ratio, 1 - settings.clip), 1 + settings.clip)
        policy -= min(ratio * advantages[b], clipped * advantages[b]) / B
        target, old = float(batch.returns_B[b]), float(batch.values_B[b])
        error = (values_B[b] - target) ** 2
        if settings.clip_values:
            near = old + min(max(values_B[b] - old, -settings.clip), settings.clip)
            error = max(error, (near - target) ** 2)
        value += 0.5 * error / B
        entropy -= sum(p * math.log(p) for p in pi) / B
        if batch.labels.given_B[b]:
            labelled += 1
            teacher = [float(p) for p in batch.labels.probs_BA[b]]
            kl += sum(p * math.log(p / q) for p, q in zip(teacher, pi, strict=True) if p > 0)
    kl /= max(labelled, 1)
    total = (
        policy
        + settings.value_coefficient * value
        - settings.entropy_coefficient * entropy
        + settings.teacher_lambda * kl
    )
    return {"policy_loss": policy, "value_loss": value, "entropy": entropy, "kl": kl, "total": total}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "changes", [{}, {"normalise_advantages": False}, {"clip_values": True}, {"lambda": 0.0}, {"clip": 0.05}]
)
def test_the_loss_is_equation_1(seed: int, changes: dict[str, object]) -> None:
    settings = _settings(**changes)
    network, batch = _batch(seed)
    total, parts = loss(network, batch, settings)
    expected = _by_hand(network, batch, settings)
    assert total.item() == pytest.approx(expected.pop("total"), rel=1e-4, abs=1e-5)
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_the_divergence_is_from_the_teacher_to_the_student() -> None:
    """KL(p || pi), not KL(pi || p): the latter is infinite where the teacher says 0."""
    labels = Labels(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([True]))
    log_probs_BA = torch.tensor([[0.25, 0.5, 0.25]]).log()
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.5)
    assert float(kl_to_teacher(log_probs_BA, labels)) == pytest.approx(expected)


def test_an_unlabelled_state_has_no_part_in_the_divergence() -> None:
    rng = np.random.default_rng(0)
    labels, log_probs_BA = _labels(rng), torch.randn(B, A).log_softmax(1)
    kept = labels[labels.given_B]
    assert float(kl_to_teacher(log_probs_BA, labels)) == pytest.approx(
        float(kl_to_teacher(log_probs_BA[labels.given_B], kept))
    )
    nothing = Labels(labels.probs_BA, torch.zeros(B, dtype=torch.bool))
    assert float(kl_to_teacher(log_probs_BA, nothing)) == 0
    assert math.isnan(agreement(log_probs_BA, nothing))


def test_without_labels_the_gradient_is_that_of_ppo_alone() -> None:
    network, batch = _batch(1, given=0.0)
    gradients = []
    for teacher_lambda in (0.0, 5.0):
        network.zero_grad()
        loss(network, batch, _settings(**{"lambda": teacher_lambda}))[0].backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_agreement_counts_every_best_action_of_the_teacher() -> None:
    labels = Labels(
        torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([True] * 3)
    )
    log_probs_BA = torch.tensor([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.1, 0.1, 0.8]]).log()
    assert agreement(log_probs_BA, labels) == pytest.approx(2 / 3)


def test_an_update_moves_the_student_towards_the_teacher() -> None:
    torch.manual_seed(0)
    settings = _settings(**{"lambda": 1.0, "learning_rate": 1e-3})
    network, rng = ActorCritic(LAYOUT), np.random.default_rng(0)
    optimiser = torch.optim.Adam(network.parameters(), settings.learning_rate)
    envs = Environments(LAYOUT, Vocabulary(), 8, 1)
    rollout = collect(network, envs, envs.reset(), 16, rng)
    probs_BA = torch.zeros(128, A)
    probs_BA[:, 1] = 1
    labels = Labels(probs_BA, torch.ones(128, dtype=torch.bool))
    figures = [update(network, optimiser, rollout, labels, settings, rng) for _ in range(10)]
    assert figures[-1]["kl"] < 0.3 * figures[0]["kl"]
    assert figures[-1]["agreement"] == 1.0

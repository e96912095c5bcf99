"""The A2C update against its loss and its gradient worked out independently, in plain float64 loops."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from student.algorithms.a2c import A2C, loss
from student.algorithms.base import Batch
from student.algorithms.distillation import Labels
from student.algorithms.networks import ActorCritic, GridNetwork
from student.algorithms.rollout import collect
from student.settings import TrainSettings
from tests.student.algorithms.batches import LAYOUT, A, B, batch_of, equation_1_by_hand, normalised, softmax
from worlds.minigrid import MinigridWorld, Vocabulary
from worlds.world import Environments

pytestmark = pytest.mark.unit


def _settings(**changes: object) -> TrainSettings:
    return TrainSettings.model_validate({"algo": "a2c", "entropy_coefficient": 0.05, **changes})


def _outputs(network: ActorCritic, batch: Batch) -> tuple[list[list[float]], list[float]]:
    """The policy's probabilities and the values, in float64."""
    with torch.no_grad():
        logits_BA, values_B = (
            tensor.double().tolist() for tensor in network.judge(batch.seen_UE[batch.which_B])
        )
    return [softmax(logits) for logits in logits_BA], values_B


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("teacher_lambda", [0.0, 0.7])
@pytest.mark.parametrize("normalise", [False, True])
def test_the_loss_is_equation_1(seed: int, teacher_lambda: float, normalise: bool) -> None:
    settings = _settings(normalise_advantages=normalise)
    network, batch = batch_of(seed)
    total, parts = loss(network, batch, teacher_lambda, settings)
    probs_BA, values_B = _outputs(network, batch)
    advantages = batch.advantages_B.double().tolist()
    if normalise:
        advantages = normalised(advantages)
    policy = value = 0.0
    for b in range(B):
        policy -= np.log(probs_BA[b][int(batch.actions_B[b])]) * advantages[b] / B
        value += 0.5 * (values_B[b] - float(batch.returns_B[b])) ** 2 / B
    expected = equation_1_by_hand(
        policy, value, probs_BA, batch.targets_U[batch.which_B], teacher_lambda, settings
    )
    assert total.item() == pytest.approx(expected.pop("total"), rel=1e-4, abs=1e-5)
    for name, figure in expected.items():
        assert float(parts[name]) == pytest.approx(figure, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("teacher_lambda", [0.0, 0.7])
def test_the_gradient_is_the_policy_gradients(teacher_lambda: float) -> None:
    """With respect to the heads' biases, which are added to every row's logits and value, in closed form.

    d(-log pi(a) A)/dz_k = A (pi_k - [k = a]); dH/dz_k = -pi_k (log pi_k + H); dKL/dz_k = pi_k - p_k.
    """
    settings = _settings()
    network, batch = batch_of(5)
    loss(network, batch, teacher_lambda, settings)[0].backward()
    probs_BA, values_B = (np.array(each) for each in _outputs(network, batch))
    taken_BA = np.eye(A)[batch.actions_B.numpy()]
    policy_A = (batch.advantages_B.double().numpy()[:, None] * (probs_BA - taken_BA)).mean(0)
    entropy_B1 = -(probs_BA * np.log(probs_BA)).sum(1, keepdims=True)
    entropy_A = -(probs_BA * (np.log(probs_BA) + entropy_B1)).mean(0)
    given_B = batch.targets_U[batch.which_B].given_B.numpy()
    kl_A = (probs_BA - batch.targets_U[batch.which_B].probs_BA.double().numpy())[given_B].mean(0)
    expected_A = policy_A - settings.entropy_coefficient * entropy_A + teacher_lambda * kl_A
    np.testing.assert_allclose(network.actor.bias.grad, expected_A, rtol=1e-3, atol=1e-5)
    expected = settings.value_coefficient * (values_B - batch.returns_B.double().numpy()).mean()
    assert network.critic.bias.grad.item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_an_update_is_one_step_of_rmsprop_on_the_whole_rollout() -> None:
    """From rest, RMSprop moves each weight by rate * g / (sqrt(0.01 g^2) + epsilon), g cut to the norm."""
    torch.manual_seed(0)
    settings = _settings(optimiser="rmsprop", learning_rate=1e-3)
    network, rng = GridNetwork(LAYOUT), np.random.default_rng(0)
    envs = Environments(MinigridWorld(LAYOUT, Vocabulary()), 8, 1)
    rollout = collect(network, envs, envs.reset(), 16, rng)
    states = len(rollout.states_UK)
    labels = Labels(torch.full((states, A), 1 / A), torch.ones(states, dtype=torch.bool))
    moved, before = copy.deepcopy(network), rng.bit_generator.state
    figures = A2C(moved, settings).update(rollout, labels, 0.0, rng)
    assert rng.bit_generator.state == before
    norm = torch.cat([p.grad.flatten() for p in moved.parameters() if p.grad is not None]).norm().item()
    assert norm == pytest.approx(min(figures["grad_norm"], settings.max_grad_norm), rel=1e-3)
    for old, new in zip(network.parameters(), moved.parameters(), strict=True):
        g = new.grad.double()
        step = settings.learning_rate * g / ((0.01 * g**2).sqrt() + settings.optimiser_epsilon)
        torch.testing.assert_close(new.data.double(), old.data.double() - step, rtol=1e-4, atol=1e-5)


def test_updates_move_the_student_towards_the_teacher() -> None:
    torch.manual_seed(0)
    settings = _settings()
    network, rng = GridNetwork(LAYOUT), np.random.default_rng(0)
    algorithm = A2C(network, settings)
    envs = Environments(MinigridWorld(LAYOUT, Vocabulary()), 8, 1)
    rollout = collect(network, envs, envs.reset(), 16, rng)
    probs_UA = torch.zeros(len(rollout.states_UK), A)
    probs_UA[:, 1] = 1
    labels = Labels(probs_UA, torch.ones(len(probs_UA), dtype=torch.bool))
    figures = [algorithm.update(rollout, labels, 1.0, rng) for _ in range(40)]
    assert figures[-1]["kl"] < 0.3 * figures[0]["kl"]
    log_probs_UA = collect(network, envs, rollout.last_obs_NK, 16, rng).log_probs_UA
    assert (log_probs_UA.argmax(1) == 1).all()


@pytest.mark.parametrize("failing", [0.0, 0.02, 0.05])
def test_an_update_changes_the_policy_less_the_fewer_episodes_fail(failing: float) -> None:
    torch.manual_seed(0)
    network, rng = GridNetwork(LAYOUT), np.random.default_rng(0)
    torch.nn.init.normal_(network.actor.weight)  # so that a step changes the policy a lot
    algorithm = A2C(network, TrainSettings(preset="fast", algo="a2c"))
    envs = Environments(MinigridWorld(LAYOUT, Vocabulary()), 64, 1)
    rollout = collect(network, envs, envs.reset(), 64, rng)
    large = replace(rollout, rewards_TN=100 * rollout.rewards_TN + 100)
    before = copy.deepcopy(network)
    algorithm.recover(failing)
    algorithm.update(large, Labels.nothing(len(rollout.states_UK), A), 0.0, rng)
    seen_UE = network.perceive(torch.from_numpy(rollout.states_UK))
    with torch.no_grad():
        old_UA, new_UA = (each.judge(seen_UE)[0].log_softmax(1).double() for each in (before, network))
    kl_U = (old_UA.exp() * (old_UA - new_UA)).sum(1)
    visits_U = np.bincount(rollout.which_TN.ravel(), minlength=len(kl_U))
    kl = float((kl_U * torch.from_numpy(visits_U)).sum() / visits_U.sum())
    limit = 0.02 * max(failing, 0.001)
    assert limit / 4 < kl < 1.05 * limit


def test_a_student_that_fails_mostly_learns_at_a_higher_rate() -> None:
    network = GridNetwork(LAYOUT)
    algorithm = A2C(network, _settings())
    rates = []
    for failing in (0.0, 0.7, 0.85, 1.0):
        algorithm.recover(failing)
        rates += [group["lr"] for group in algorithm.optimiser.param_groups]
    assert rates == pytest.approx([1e-3, 1e-3, 4e-3, 7e-3])


def test_a_student_that_succeeds_has_no_entropy_bonus() -> None:
    """Where all rewards are the same, only the bonus moves the policy."""
    moved = {}
    for failing in (1, 0.5, 0):
        torch.manual_seed(0)
        network, rng = GridNetwork(LAYOUT), np.random.default_rng(0)
        torch.nn.init.normal_(network.actor.weight, std=0.3)
        algorithm = A2C(network, _settings(optimiser_epsilon=1.0))
        envs = Environments(MinigridWorld(LAYOUT, Vocabulary()), 8, 1)
        rollout = collect(network, envs, envs.reset(), 8, rng)
        even = replace(rollout, rewards_TN=0 * rollout.rewards_TN, values_U=0 * rollout.values_U)
        even = replace(even, next_values_TN=0 * even.next_values_TN)
        before = network.actor.bias.data.clone()
        algorithm.recover(failing)
        algorithm.update(even, Labels.nothing(len(rollout.states_UK), A), 0.0, rng)
        moved[failing] = float((network.actor.bias.data - before).abs().sum())
    assert moved[0] == 0 < moved[0.5] < moved[1]

"""The distillation term against closed forms: the divergence, hard targets, lambda's schedule."""

import math

import numpy as np
import pytest
import torch

from student.algorithms.distillation import (
    Labels,
    Replay,
    agreement,
    doubt_at,
    kl_to_teacher,
    lambda_at,
    target_entropy,
    targets,
)
from student.algorithms.networks import GridNetwork
from student.settings import TrainSettings
from tests.student.algorithms.batches import LAYOUT, A, B, labels_of
from worlds.minigrid import MinigridWorld, Vocabulary
from worlds.world import Environments

pytestmark = pytest.mark.unit

_HARD = TrainSettings(targets="hard")


def test_the_divergence_is_from_the_teacher_to_the_student() -> None:
    """KL(p || pi), not KL(pi || p): the latter is infinite where the teacher says 0."""
    labels = Labels(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([True]))
    log_probs_BA = torch.tensor([[0.25, 0.5, 0.25]]).log()
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.5)
    assert float(kl_to_teacher(log_probs_BA, labels)) == pytest.approx(expected)


def test_an_unlabelled_state_has_no_part_in_the_divergence() -> None:
    rng = np.random.default_rng(0)
    labels, log_probs_BA = labels_of(rng, B), torch.randn(B, A).log_softmax(1)
    kept = labels[labels.given_B]
    assert float(kl_to_teacher(log_probs_BA, labels)) == pytest.approx(
        float(kl_to_teacher(log_probs_BA[labels.given_B], kept))
    )
    nothing = Labels(labels.probs_BA, torch.zeros(B, dtype=torch.bool))
    assert float(kl_to_teacher(log_probs_BA, nothing)) == 0
    assert math.isnan(agreement(log_probs_BA, nothing))


def test_agreement_counts_every_best_action_of_the_teacher() -> None:
    labels = Labels(
        torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([True] * 3)
    )
    log_probs_BA = torch.tensor([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.1, 0.1, 0.8]]).log()
    assert agreement(log_probs_BA, labels) == pytest.approx(2 / 3)


def test_hard_targets_are_the_teachers_most_probable_action() -> None:
    probs_BA = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0]])
    hard = targets(Labels(probs_BA, torch.tensor([True, True, False])), _HARD, doubt=0)
    assert hard.probs_BA.tolist()[:2] == [[0, 1, 0], [0, 1, 0]]
    assert hard.given_B.tolist() == [True, True, False]
    log_probs_BA = torch.tensor([[0.25, 0.25, 0.5], [0.3, 0.6, 0.1], [0.8, 0.1, 0.1]]).log()
    cross_entropy = -(math.log(0.25) + math.log(0.6)) / 2
    assert float(kl_to_teacher(log_probs_BA, hard)) == pytest.approx(cross_entropy)


def test_the_targets_entropy() -> None:
    labels = Labels(
        torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.3, 0.3, 0.4]]), torch.tensor([True, True, False])
    )
    assert target_entropy(labels) == pytest.approx(math.log(2) / 2)
    assert target_entropy(targets(labels, _HARD, doubt=0)) == 0
    assert math.isnan(target_entropy(Labels(labels.probs_BA, torch.zeros(3, dtype=torch.bool))))


def test_sharpened_targets_are_powers_of_the_probabilities() -> None:
    labels = Labels(torch.tensor([[0.6, 0.3, 0.1], [0.0, 0.0, 0.0]]), torch.tensor([True, False]))
    sharp = targets(labels, TrainSettings(teacher_temperature=0.5), doubt=0)
    expected = [p**2 / (0.36 + 0.09 + 0.01) for p in (0.6, 0.3, 0.1)]
    assert sharp.probs_BA[0].tolist() == pytest.approx(expected)
    assert torch.isfinite(sharp.probs_BA).all()
    tiny = targets(labels, TrainSettings(teacher_temperature=0.001), doubt=0)
    assert tiny.probs_BA[0].tolist() == pytest.approx([1, 0, 0])
    assert targets(labels, TrainSettings(teacher_temperature=1), doubt=0).probs_BA is labels.probs_BA


@pytest.mark.parametrize("settings", [_HARD, TrainSettings(teacher_temperature=0.5)])
def test_doubt_spreads_its_share_over_all_actions(settings: TrainSettings) -> None:
    labels = Labels(torch.tensor([[0.6, 0.3, 0.1], [0.0, 0.0, 0.0]]), torch.tensor([True, False]))
    sure_A = targets(labels, settings, doubt=0).probs_BA[0]
    doubted = targets(labels, settings, doubt=0.3)
    assert doubted.probs_BA[0].tolist() == pytest.approx([0.7 * p + 0.1 for p in sure_A.tolist()])
    assert doubted.given_B.tolist() == [True, False]
    assert targets(labels, settings, doubt=1).probs_BA[0].tolist() == pytest.approx([1 / 3] * 3)


def test_doubt_grows_with_time_where_the_student_fails() -> None:
    settings = TrainSettings(doubt=0.4, frames=2000, lambda_schedule="linear", lambda_frames=1000)
    assert [doubt_at(frames, 0.0, settings) for frames in (0, 500, 1000, 1500)] == [0, 0.2, 0.4, 0.4]
    assert [doubt_at(500, success, settings) for success in (0.25, 0.5, 1.0)] == [0.1, 0, 0]
    assert doubt_at(500, 0.0, TrainSettings(preset="paper")) == 0


def test_lambda_falls_in_a_line_to_0_within_its_frames() -> None:
    changes = {"lambda": 0.8, "frames": 2000, "lambda_frames": 1000}
    constant = TrainSettings.model_validate(changes | {"lambda_schedule": "constant"})
    linear = TrainSettings.model_validate(changes | {"lambda_schedule": "linear"})
    assert [lambda_at(frames, constant) for frames in (0, 500, 999, 1100)] == [0.8] * 4
    expected = pytest.approx([0.8, 0.6, 0.4, 0.0008, 0, 0])
    assert [lambda_at(frames, linear) for frames in (0, 250, 500, 999, 1000, 1100)] == expected
    whole_run = TrainSettings.model_validate(changes | {"lambda_schedule": "linear", "lambda_frames": 0})
    assert [lambda_at(frames, whole_run) for frames in (0, 1000, 2000)] == pytest.approx([0.8, 0.4, 0])


def test_replay_learns_the_labels_that_are_given_and_no_others() -> None:
    torch.manual_seed(0)
    settings = TrainSettings.model_validate({"replay_ratio": 64, "lambda": 1})
    network, rng = GridNetwork(LAYOUT), np.random.default_rng(0)
    obs_MK = Environments(MinigridWorld(LAYOUT, Vocabulary()), 40, 1).reset()
    probs_MA = torch.zeros(40, A)
    probs_MA[:20, 1] = probs_MA[20:, 4] = 1
    labels = Labels(probs_MA, torch.arange(40) < 20)
    replay = Replay(network, settings)
    first, last = (replay.learn(obs_MK, labels, 64, rng) for _ in range(2))
    assert last < 0.2 * first
    assert (network(torch.from_numpy(obs_MK))[0].argmax(1) == 1).all()


def test_replay_leaves_the_values_of_states_as_they_are() -> None:
    """Although both heads share the features, which change."""
    moved = []
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        settings = TrainSettings.model_validate({"replay_ratio": 64, "value_coefficient": weight})
        network, rng = GridNetwork(LAYOUT), np.random.default_rng(0)
        obs_MK = Environments(MinigridWorld(LAYOUT, Vocabulary()), 40, 1).reset()
        probs_MA = torch.nn.functional.one_hot(torch.arange(40) % A, A).float()
        labels = Labels(probs_MA, torch.ones(40, dtype=torch.bool))
        obs_M = torch.from_numpy(obs_MK)
        before_M = network(obs_M)[1].detach()
        Replay(network, settings).learn(obs_MK, labels, 200, rng)
        moved.append(float((network(obs_M)[1] - before_M).detach().abs().mean()))
    assert moved[1] < 0.1 * moved[0]


def test_replay_makes_as_many_steps_as_the_frames_and_the_share_call_for() -> None:
    replay, resumed = (Replay(GridNetwork(LAYOUT), TrainSettings(replay_ratio=3)) for _ in range(2))
    assert [replay.steps_due(32, 1.0) for _ in range(4)] == [0, 1, 1, 1]  # 0.75 steps each
    assert [replay.steps_due(32, 0.5) for _ in range(4)] == [0, 0, 1, 0]
    resumed.restore(replay.state())
    assert [each.steps_due(32, 1.0) for each in (replay, resumed)] == [1, 1]  # 0.5 was due already
    obs_MK = Environments(MinigridWorld(LAYOUT, Vocabulary()), 40, 1).reset()
    nothing = Labels.nothing(40, A)
    assert math.isnan(replay.learn(obs_MK, nothing, 1, np.random.default_rng(0)))


def test_a_label_counts_by_the_students_agreement_with_it() -> None:
    """For a label of one action, the gradient is that of the generalised cross-entropy (1 - pi(a)^q) / q,
    divided by the q-th power of the largest probability."""
    logits_BA = torch.randn(B, A, dtype=torch.float64, requires_grad=True)
    said_B = torch.arange(B) % A
    powers_B = torch.full((B,), 0.7, dtype=torch.float64)
    labels = Labels(torch.eye(A, dtype=torch.float64)[said_B], torch.ones(B, dtype=torch.bool), powers_B)
    (got,) = torch.autograd.grad(kl_to_teacher(logits_BA.log_softmax(1), labels), logits_BA)
    agreement_B = logits_BA.softmax(1).gather(1, said_B[:, None])
    most_B = logits_BA.softmax(1).amax(1, keepdim=True).detach()
    (expected,) = torch.autograd.grad(((1 - agreement_B**0.7) / 0.7 / most_B**0.7).mean(), logits_BA)
    torch.testing.assert_close(got, expected)

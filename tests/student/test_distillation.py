"""The distillation term against closed forms: the divergence, hard targets, lambda's schedule."""

import math

import numpy as np
import pytest
import torch

from student.distillation import Labels, agreement, kl_to_teacher, lambda_at, one_hot, target_entropy
from student.settings import TrainSettings
from tests.student.batches import A, B, labels_of

pytestmark = pytest.mark.unit


def test_the_divergence_is_from_the_teacher_to_the_student() -> None:
    """KL(p || pi), not KL(pi || p): the latter is infinite where the teacher says 0."""
    labels = Labels(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([True]))
    log_probs_BA = torch.tensor([[0.25, 0.5, 0.25]]).log()
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.5)
    assert float(kl_to_teacher(log_probs_BA, labels)) == pytest.approx(expected)


def test_an_unlabelled_state_has_no_part_in_the_divergence() -> None:
    rng = np.random.default_rng(0)
    labels, log_probs_BA = labels_of(rng), torch.randn(B, A).log_softmax(1)
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
    hard = one_hot(Labels(probs_BA, torch.tensor([True, True, False])))
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
    assert target_entropy(one_hot(labels)) == 0
    assert math.isnan(target_entropy(Labels(labels.probs_BA, torch.zeros(3, dtype=torch.bool))))


def test_lambda_falls_in_a_line_to_0_at_the_runs_last_frame() -> None:
    changes = {"lambda": 0.8, "frames": 1000}
    constant = TrainSettings.model_validate(changes)
    linear = TrainSettings.model_validate(changes | {"lambda_schedule": "linear"})
    assert [lambda_at(frames, constant) for frames in (0, 500, 999, 1100)] == [0.8] * 4
    expected = pytest.approx([0.8, 0.6, 0.4, 0.0008, 0, 0])
    assert [lambda_at(frames, linear) for frames in (0, 250, 500, 999, 1000, 1100)] == expected

"""The paper's equation 1, its distillation term: lambda * KL(teacher || student) over labelled states."""

from dataclasses import dataclass

import torch
from torch import Tensor

from student.settings import TrainSettings


@dataclass(frozen=True)
class Labels:
    """The teacher's probabilities [B, A] for a batch of states, and which of them it gave [B].

    A row without a label (not asked, or the answer failed) is left out: neither uniform nor zeros.
    """

    probs_BA: Tensor
    given_B: Tensor

    def __getitem__(self, rows: Tensor) -> "Labels":
        return Labels(self.probs_BA[rows], self.given_B[rows])


def kl_to_teacher(log_probs_BA: Tensor, labels: Labels) -> Tensor:
    """The mean of KL(p || pi) = sum_a p(a) (log p(a) - log pi(a)) over the labelled rows; 0 without any.

    Args:
        log_probs_BA: the student's log-probabilities.
        labels: p, the teacher's probabilities; p(a) = 0 adds 0.
    """
    kl_B = (torch.xlogy(labels.probs_BA, labels.probs_BA) - labels.probs_BA * log_probs_BA).sum(1)
    return torch.where(labels.given_B, kl_B, 0).sum() / labels.given_B.sum().clamp(min=1)


def agreement(log_probs_BA: Tensor, labels: Labels) -> float:
    """The share of labelled rows in which the student's most probable action is one of the teacher's."""
    if not labels.given_B.any():
        return float("nan")
    best_BA = labels.probs_BA >= labels.probs_BA.amax(1, keepdim=True) - 1e-6
    agrees_B = best_BA.gather(1, log_probs_BA.argmax(1, keepdim=True)).squeeze(1)
    return float(agrees_B[labels.given_B].float().mean())


def one_hot(labels: Labels) -> Labels:
    """Hard targets: all on the teacher's most probable action, the first of them where several are."""
    best_B = labels.probs_BA.argmax(1)
    hard_BA = torch.nn.functional.one_hot(best_B, labels.probs_BA.shape[1]).to(labels.probs_BA.dtype)
    return Labels(hard_BA, labels.given_B)


def target_entropy(labels: Labels) -> float:
    """The mean entropy of the labelled rows, in nats: 0 when hard; nan without any."""
    if not labels.given_B.any():
        return float("nan")
    return float(-torch.xlogy(labels.probs_BA, labels.probs_BA).sum(1)[labels.given_B].mean()) + 0.0


def lambda_at(frames: int, settings: TrainSettings) -> float:
    """Lambda of equation 1 for the update that begins after this many frames."""
    if settings.lambda_schedule == "constant":
        return settings.teacher_lambda
    return settings.teacher_lambda * max(1 - frames / settings.frames, 0.0)

"""The distillation term of the paper's equation 1: KL(teacher || student) over labelled states."""

from dataclasses import dataclass

import torch
from torch import Tensor


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

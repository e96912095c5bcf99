"""Distillation: lambda * KL(teacher || student) of the paper's equation 1, and replay of stored labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student.algorithms.networks import ActorCritic
from student.settings import TrainSettings

REPLAY_BATCH = 128
"""Labels in one gradient step of replay."""


@dataclass(frozen=True)
class Labels:
    """The teacher's probabilities [B, A] for B states, and whether it gave them [B].

    A state without a label (not asked about, or the question failed) has no part in the loss. A label counts
    by the student's agreement with it to the power `powers_B` (see `kl_to_teacher`); 0, or None for all: it
    counts fully.
    """

    probs_BA: Tensor
    given_B: Tensor
    powers_B: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> "Labels":
        powers_B = None if self.powers_B is None else self.powers_B[rows]
        return Labels(self.probs_BA[rows], self.given_B[rows], powers_B)

    @classmethod
    def nothing(cls, size: int, actions: int) -> "Labels":
        """Returns labels of `size` states, none of them given."""
        return cls(torch.zeros(size, actions), torch.zeros(size, dtype=torch.bool))


def kl_to_teacher(log_probs_BA: Tensor, labels: Labels, visits_B: Tensor | None = None) -> Tensor:
    """Returns the mean of w KL(p || pi) = w sum_a p(a) (log p(a) - log pi(a)) over labelled states; else 0.

    The weight w is a constant in the gradient: agreement ^ power, where the agreement is

        min(1, sum_a p(a) pi(a) / (max p * max pi)).

    For a label of one action, w times the gradient of KL is that of the generalised cross-entropy (Zhang and
    Sabuncu, arXiv 1805.07836) with q = power, divided by max pi ^ q. So a student without a preference, such
    as an untrained one, takes each label fully.

    Args:
        log_probs_BA: log pi, the student's log-probabilities.
        labels: p, the teacher's probabilities, and the powers; an action with p(a) = 0 adds 0.
        visits_B: the number of visits of each state; None: 1.
    """
    kl_B = (torch.xlogy(labels.probs_BA, labels.probs_BA) - labels.probs_BA * log_probs_BA).sum(1)
    if labels.powers_B is not None:
        policy_BA = log_probs_BA.detach().exp()
        most_B = labels.probs_BA.amax(1) * policy_BA.amax(1)
        agreement_B = (labels.probs_BA * policy_BA).sum(1) / most_B.clamp(min=1e-9)
        kl_B = kl_B * agreement_B.clamp(max=1) ** labels.powers_B
    counted_B = labels.given_B.long() if visits_B is None else labels.given_B * visits_B
    return (counted_B * torch.where(labels.given_B, kl_B, 0)).sum() / counted_B.sum().clamp(min=1)


def agreement(log_probs_BA: Tensor, labels: Labels) -> float:
    """Returns the share of labelled states where the student's best action is one of the teacher's best."""
    if not labels.given_B.any():
        return float("nan")
    best_BA = labels.probs_BA >= labels.probs_BA.amax(1, keepdim=True) - 1e-6
    agrees_B = best_BA.gather(1, log_probs_BA.argmax(1, keepdim=True)).squeeze(1)
    return float(agrees_B[labels.given_B].float().mean())


def targets(labels: Labels, settings: TrainSettings, doubt: float) -> Labels:
    """Returns the distillation targets that the settings `targets` and `teacher_temperature` make of labels.

    Soft: p(a) ^ (1 / temperature), normalised. Hard: probability 1 for the most probable action, the first of
    several.

    Args:
        doubt: the share of the result that is spread evenly over all actions, 0 to 1.
    """
    targets_BA = _soft_or_hard(labels.probs_BA, settings)
    if doubt > 0:
        targets_BA = torch.lerp(targets_BA, torch.full_like(targets_BA, 1 / targets_BA.shape[1]), doubt)
    return Labels(targets_BA, labels.given_B)


def _soft_or_hard(probs_BA: Tensor, settings: TrainSettings) -> Tensor:
    if settings.targets == "hard":
        hard_BA = torch.nn.functional.one_hot(probs_BA.argmax(1), probs_BA.shape[1])
        return hard_BA.to(probs_BA.dtype)
    if settings.teacher_temperature == 1:
        return probs_BA
    powers_BA = (probs_BA / probs_BA.amax(1, keepdim=True).clamp(min=1e-30)) ** (
        1 / settings.teacher_temperature
    )
    return powers_BA / powers_BA.sum(1, keepdim=True).clamp(min=1e-30)


def target_entropy(labels: Labels) -> float:
    """Returns the mean entropy of the labelled states in nats, 0 for hard targets; nan without labels."""
    if not labels.given_B.any():
        return float("nan")
    return float(-torch.xlogy(labels.probs_BA, labels.probs_BA).sum(1)[labels.given_B].mean()) + 0.0


def lambda_at(frames: float, settings: TrainSettings) -> float:
    """Returns lambda of equation 1 for the update that begins after so many frames."""
    if settings.lambda_schedule == "constant":
        return settings.teacher_lambda
    return settings.teacher_lambda * max(1 - frames / lambda_frames(settings), 0.0)


def doubt_at(frames: float, success: float, settings: TrainSettings) -> float:
    """Returns the share of the targets to spread over all actions in the update that begins after `frames`.

    The share grows with the frames where the student still fails: after a good teacher it would not.

    Args:
        success: the share of the recent training episodes that succeeded.
    """
    progress = min(frames / lambda_frames(settings), 1.0)
    return settings.doubt * progress * max(1 - 2 * success, 0.0)


def lambda_frames(settings: TrainSettings) -> int:
    """Returns the frames after which lambda is 0, or all frames of the run."""
    linear = settings.lambda_schedule == "linear"
    return settings.lambda_frames if linear and settings.lambda_frames else settings.frames


class Replay:
    """Supervised learning from the targets of all states met, which costs neither frames nor questions.

    It follows an update, so that the update still finds the log-probabilities of the policy that acted. The
    values of the states stay as they are: the two heads share their features, and without a term that keeps
    them, values come out far above any return (a squared error of 20 where returns are at most 1). Their
    advantages are then noise, and a student unlearns from rewards what it has learned from labels.
    """

    def __init__(self, network: ActorCritic, settings: TrainSettings) -> None:
        self._network = network
        self._settings = settings
        # Its own optimiser, whatever the algorithm uses: its steps have another size
        self._optimiser = torch.optim.Adam(network.parameters(), settings.replay_rate, eps=1e-5, fused=True)
        self._due = 0.0

    def steps_due(self, frames: int, share: float) -> int:
        """Returns the gradient steps that are due for so many frames; `share` scales their number."""
        self._due += self._settings.replay_ratio * frames * share / REPLAY_BATCH
        steps, self._due = divmod(self._due, 1)
        return int(steps)

    def learn(
        self, obs_MK: NDArray[np.uint8], targets_M: Labels, steps: int, rng: np.random.Generator
    ) -> float:
        """Takes gradient steps; returns the mean KL, nan without steps or targets.

        Args:
            obs_MK: all M states met.
            targets_M: their distillation targets.
        """
        given_G = targets_M.given_B.nonzero().squeeze(1)
        if not steps or not len(given_G):
            return float("nan")
        seen_GE = self._network.perceive(torch.from_numpy(obs_MK[given_G.numpy()]))
        targets_G = targets_M[given_G]
        with torch.no_grad():
            _, values_G = self._network.judge(seen_GE)
        divergences = []
        for rows_B in torch.from_numpy(rng.integers(0, len(given_G), (steps, REPLAY_BATCH))):
            logits_BA, values_B = self._network.judge(seen_GE[rows_B])
            kl = kl_to_teacher(logits_BA.log_softmax(1), targets_G[rows_B])
            moved = (values_B - values_G[rows_B]).square().mean()
            self._optimiser.zero_grad()
            torch.autograd.backward(kl + self._settings.value_coefficient * moved)
            self._optimiser.step()
            divergences.append(kl.detach())
        return float(torch.stack(divergences).mean())

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {"optimiser": self._optimiser.state_dict(), "due": self._due}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the state of a checkpoint."""
        self._optimiser.load_state_dict(state["optimiser"])
        self._due = state["due"]

"""The teacher's part: the paper's lambda * KL(teacher || student), and replay of stored labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student.algorithms.networks import ActorCritic
from student.settings import TrainSettings

REPLAY_BATCH = 128
"""Stored labels in one gradient step of replay."""


@dataclass(frozen=True)
class Labels:
    """The teacher's probabilities [B, A] for a batch of states, and which of them it gave [B].

    A row without a label (not asked, or the answer failed) is left out: neither uniform nor zeros.
    """

    probs_BA: Tensor
    given_B: Tensor

    def __getitem__(self, rows: Tensor) -> "Labels":
        return Labels(self.probs_BA[rows], self.given_B[rows])

    @classmethod
    def nothing(cls, size: int, actions: int) -> "Labels":
        """No label for any of `size` states."""
        return cls(torch.zeros(size, actions), torch.zeros(size, dtype=torch.bool))


def kl_to_teacher(log_probs_BA: Tensor, labels: Labels, visits_B: Tensor | None = None) -> Tensor:
    """The mean of KL(p || pi) = sum_a p(a) (log p(a) - log pi(a)) over the labelled rows; 0 without any.

    Args:
        log_probs_BA: the student's log-probabilities.
        labels: p, the teacher's probabilities; p(a) = 0 adds 0.
        visits_B: how often each row counts; None: once.
    """
    kl_B = (torch.xlogy(labels.probs_BA, labels.probs_BA) - labels.probs_BA * log_probs_BA).sum(1)
    counted_B = labels.given_B.long() if visits_B is None else labels.given_B * visits_B
    return (counted_B * torch.where(labels.given_B, kl_B, 0)).sum() / counted_B.sum().clamp(min=1)


def agreement(log_probs_BA: Tensor, labels: Labels) -> float:
    """The share of labelled rows in which the student's most probable action is one of the teacher's."""
    if not labels.given_B.any():
        return float("nan")
    best_BA = labels.probs_BA >= labels.probs_BA.amax(1, keepdim=True) - 1e-6
    agrees_B = best_BA.gather(1, log_probs_BA.argmax(1, keepdim=True)).squeeze(1)
    return float(agrees_B[labels.given_B].float().mean())


def targets(labels: Labels, settings: TrainSettings, doubt: float) -> Labels:
    """What the student is drawn to: the labels as --targets and --teacher-temperature take them.

    Soft: p(a) ^ (1 / temperature), normalised. Hard: all on the teacher's most probable action, the first
    of them where several are.

    Args:
        doubt: this share of the result is spread evenly over all actions: 0 to 1.
    """
    chosen_BA = _chosen(labels.probs_BA, settings)
    if doubt > 0:
        chosen_BA = torch.lerp(chosen_BA, torch.full_like(chosen_BA, 1 / chosen_BA.shape[1]), doubt)
    return Labels(chosen_BA, labels.given_B)


def _chosen(probs_BA: Tensor, settings: TrainSettings) -> Tensor:
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
    """The mean entropy of the labelled rows, in nats: 0 when hard; nan without any."""
    if not labels.given_B.any():
        return float("nan")
    return float(-torch.xlogy(labels.probs_BA, labels.probs_BA).sum(1)[labels.given_B].mean()) + 0.0


def lambda_at(frames: float, settings: TrainSettings) -> float:
    """Lambda of equation 1 for the update that begins after this many frames."""
    if settings.lambda_schedule == "constant":
        return settings.teacher_lambda
    return settings.teacher_lambda * max(1 - frames / taught_frames(settings), 0.0)


def doubt_at(frames: float, success: float, settings: TrainSettings) -> float:
    """The share of the targets that is spread over all actions, in the update that begins after these frames.

    It grows as the teacher's time runs out, where the student still fails: a good teacher's would not.

    Args:
        success: the share of the last training episodes that succeeded.
    """
    time = min(frames / taught_frames(settings), 1.0)
    return settings.doubt * time * max(1 - 2 * success, 0.0)


def taught_frames(settings: TrainSettings) -> int:
    """The frames after which lambda is 0, or all of the run's."""
    linear = settings.lambda_schedule == "linear"
    return settings.lambda_frames if linear and settings.lambda_frames else settings.frames


class Replay:
    """Supervised passes over all stored labels: they cost no frames and no questions.

    They come after an update, so that the log-probabilities of the rollout that it learns from are still
    those of the policy that acted. Their share falls with lambda.
    """

    def __init__(self, network: ActorCritic, settings: TrainSettings) -> None:
        self._network = network
        self._settings = settings
        # Of its own, whatever the algorithm uses: its steps are of another size
        self._optimiser = torch.optim.Adam(network.parameters(), settings.replay_rate, eps=1e-5, fused=True)
        self._due = 0.0

    def learn(
        self,
        obs_MK: NDArray[np.uint8],
        labels: Labels,
        frames: int,
        teacher_lambda: float,
        rng: np.random.Generator,
        doubt: float = 0.0,
    ) -> float:
        """As many gradient steps as the frames just played call for; the mean KL, nan without a step.

        Args:
            labels: of M states, of which those not given are left out.
            doubt: see `targets`.
        """
        share = teacher_lambda / self._settings.teacher_lambda if self._settings.teacher_lambda else 0.0
        self._due += self._settings.replay_ratio * frames * share / REPLAY_BATCH
        steps, self._due = divmod(self._due, 1)
        given_G = labels.given_B.nonzero().squeeze(1)
        if not steps or not len(given_G):
            return float("nan")
        seen_GE = self._network.perceive(torch.from_numpy(obs_MK[given_G.numpy()]))
        targets_G = targets(labels[given_G], self._settings, doubt)
        divergences = []
        for rows_B in torch.from_numpy(rng.integers(0, len(given_G), (int(steps), REPLAY_BATCH))):
            logits_BA, _ = self._network.judge(seen_GE[rows_B])
            kl = kl_to_teacher(logits_BA.log_softmax(1), targets_G[rows_B])
            self._optimiser.zero_grad()
            torch.autograd.backward(kl)
            self._optimiser.step()
            divergences.append(kl.detach())
        return float(torch.stack(divergences).mean())

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"optimiser": self._optimiser.state_dict(), "due": self._due}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self._optimiser.load_state_dict(state["optimiser"])
        self._due = state["due"]

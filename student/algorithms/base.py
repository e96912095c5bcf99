"""What the algorithms' updates share: a rollout as a batch, equation 1's sum, a gradient step, figures."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from student.algorithms.distillation import Labels, kl_to_teacher
from student.algorithms.networks import ActorCritic
from student.algorithms.rollout import Rollout, advantages
from student.settings import TrainSettings


class Algorithm(ABC):
    """How a network learns from rollouts and a teacher's labels."""

    def __init__(self, network: ActorCritic, settings: TrainSettings) -> None:
        self.network = network
        self.settings = settings
        self.optimiser = make_optimiser(network, settings)

    @abstractmethod
    def update(
        self, rollout: Rollout, targets_U: Labels, teacher_lambda: float, rng: np.random.Generator
    ) -> dict[str, float]:
        """Learns from one rollout; returns the figures of the update (see docs/reference/metrics.md).

        Args:
            targets_U: what the rollout's states are drawn to: [U, A].
            teacher_lambda: lambda of equation 1 in this update.
            rng: all that is random in the update comes from here, so that a resumed run repeats it.
        """

    def state(self) -> dict[str, Any]:
        """All that the algorithm holds beside the network, for a checkpoint."""
        return {"optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.optimiser.load_state_dict(state["optimiser"])


@dataclass(frozen=True)
class Batch:
    """B steps of a rollout, in any order; and the U states of the whole rollout."""

    seen_UE: Tensor
    """What the network's `perceive` makes of the states."""
    targets_U: Labels
    """What they are drawn to."""
    which_B: Tensor
    """The state that each step was taken in."""
    actions_B: Tensor
    log_probs_B: Tensor
    values_B: Tensor
    advantages_B: Tensor
    returns_B: Tensor

    def __getitem__(self, rows: Tensor) -> "Batch":
        return Batch(
            self.seen_UE,
            self.targets_U,
            self.which_B[rows],
            self.actions_B[rows],
            self.log_probs_B[rows],
            self.values_B[rows],
            self.advantages_B[rows],
            self.returns_B[rows],
        )

    def judged(self, network: ActorCritic) -> "Judged":
        """What a network says of the steps' states, each judged once."""
        states_V, which_B, visits_V = torch.unique(self.which_B, return_inverse=True, return_counts=True)
        logits_VA, values_V = network.judge(self.seen_UE[states_V])
        log_probs_VA = logits_VA.log_softmax(1)
        taken_B = which_B * logits_VA.shape[1] + self.actions_B
        return Judged(
            log_probs_VA.flatten().index_select(0, taken_B),
            values_V.index_select(0, which_B),
            log_probs_VA,
            self.targets_U[states_V],
            visits_V,
        )


@dataclass(frozen=True)
class Judged:
    """What a network says of B steps, taken in V states."""

    log_probs_B: Tensor
    """Of the actions taken."""
    values_B: Tensor
    log_probs_VA: Tensor
    """Of all actions, in each of the states."""
    targets_V: Labels
    """What the states are drawn to."""
    visits_V: Tensor
    """Steps taken in each of them."""


def batch_of(network: ActorCritic, rollout: Rollout, targets_U: Labels, settings: TrainSettings) -> Batch:
    """All steps of a rollout, B = T * N, with their advantages and returns."""
    advantages_TN = advantages(rollout, settings.gamma, settings.gae_lambda)
    return Batch(
        network.perceive(torch.from_numpy(rollout.states_UK)),
        targets_U,
        torch.from_numpy(rollout.which_TN.ravel()),
        torch.from_numpy(rollout.actions_TN.ravel()),
        torch.from_numpy(rollout.log_probs_TN.ravel()),
        torch.from_numpy(rollout.values_TN.ravel()),
        torch.from_numpy(advantages_TN.ravel()),
        torch.from_numpy((advantages_TN + rollout.values_TN).ravel()),
    )


def scaled_advantages(batch: Batch, settings: TrainSettings) -> Tensor:
    """The advantages [B], zero-mean and unit-variance where the settings ask for it."""
    if not settings.normalise_advantages:
        return batch.advantages_B
    return (batch.advantages_B - batch.advantages_B.mean()) / (batch.advantages_B.std() + 1e-8)


def equation_1(
    policy: Tensor, value: Tensor, judged: Judged, teacher_lambda: float, settings: TrainSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_RL + lambda * KL(teacher || student): equation 1 of the paper, and its terms by their figures' names.

    L_RL is an algorithm's policy loss and value loss, and the entropy bonus. All are means over steps.
    """
    entropies_V = -(judged.log_probs_VA.exp() * judged.log_probs_VA).sum(1)
    entropy = (judged.visits_V * entropies_V).sum() / len(judged.values_B)
    kl = kl_to_teacher(judged.log_probs_VA, judged.targets_V, judged.visits_V)
    total = (
        policy
        + settings.value_coefficient * value
        - settings.entropy_coefficient * entropy
        + teacher_lambda * kl
    )
    parts = {"policy_loss": policy, "value_loss": value, "entropy": entropy, "kl": kl}
    return total, {name: part.detach() for name, part in parts.items()}


def make_optimiser(network: ActorCritic, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser that the settings name."""
    parameters, rate, epsilon = network.parameters(), settings.learning_rate, settings.optimiser_epsilon
    if settings.optimiser == "rmsprop":
        return torch.optim.RMSprop(parameters, rate, alpha=0.99, eps=epsilon)
    return torch.optim.Adam(parameters, rate, eps=epsilon, fused=True)


def descend(
    network: ActorCritic,
    optimiser: torch.optim.Optimizer,
    total: Tensor,
    parts: dict[str, Tensor],
    settings: TrainSettings,
) -> dict[str, Tensor]:
    """One gradient step; returns the terms of the loss and the gradient's norm before it was cut."""
    optimiser.zero_grad()
    torch.autograd.backward(total)
    norm = nn.utils.clip_grad_norm_(network.parameters(), settings.max_grad_norm)
    optimiser.step()
    return parts | {"grad_norm": norm}


def means(steps: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """An update's figures: the means over its gradient steps."""
    return {name: float(torch.stack([step[name] for step in steps]).mean()) for name in steps[0]}

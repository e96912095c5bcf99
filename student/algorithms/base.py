"""The base of the algorithms: a rollout as a batch, equation 1 of the paper, and a gradient step."""

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
    """Updates a network from rollouts and a teacher's labels."""

    def __init__(self, network: ActorCritic, settings: TrainSettings) -> None:
        self.network = network
        self.settings = settings
        self.optimiser = make_optimiser(network, settings)

    @abstractmethod
    def update(
        self, rollout: Rollout, targets_U: Labels, teacher_lambda: float, rng: np.random.Generator
    ) -> dict[str, float]:
        """Learns from one rollout and returns the update's figures; docs/reference/metrics.md defines them.

        Args:
            targets_U: the distillation targets of the rollout's states [U, A].
            teacher_lambda: lambda of equation 1 in this update.
            rng: the only source of random numbers in the update, so that a resumed run repeats it.
        """

    def recover(self, failing: float) -> None:  # noqa: B027
        """Sets how the next rollouts and updates learn from rewards, for the setting `recover`.

        Args:
            failing: the share of the newest training episodes that failed.
        """

    def state(self) -> dict[str, Any]:
        """Returns the algorithm's state for a checkpoint, without the network."""
        return {"optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the state of a checkpoint."""
        self.optimiser.load_state_dict(state["optimiser"])


@dataclass(frozen=True)
class Batch:
    """B steps of a rollout, in any order, and the U states of the whole rollout.

    seen_UE: the states as `ActorCritic.perceive` returns them.
    targets_U: the distillation targets of the states [U, A].
    which_B: the state that each step was taken in, an index into U.
    """

    seen_UE: Tensor
    targets_U: Labels
    which_B: Tensor
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

    def output_of(self, network: ActorCritic) -> "Output":
        """Returns a network's output for the steps; it is computed once for each state."""
        states_V, which_B, visits_V = torch.unique(self.which_B, return_inverse=True, return_counts=True)
        logits_VA, values_V = network.judge(self.seen_UE[states_V])
        log_probs_VA = logits_VA.log_softmax(1)
        taken_B = which_B * logits_VA.shape[1] + self.actions_B
        return Output(
            log_probs_VA.flatten().index_select(0, taken_B),
            values_V.index_select(0, which_B),
            log_probs_VA,
            self.targets_U[states_V],
            visits_V,
        )


@dataclass(frozen=True)
class Output:
    """A network's output for B steps, taken in V states.

    log_probs_B: of the actions taken.
    log_probs_VA: of all actions, by state.
    targets_V: the distillation targets of the states [V, A].
    visits_V: the number of steps in each state.
    """

    log_probs_B: Tensor
    values_B: Tensor
    log_probs_VA: Tensor
    targets_V: Labels
    visits_V: Tensor


def batch_of(network: ActorCritic, rollout: Rollout, targets_U: Labels, settings: TrainSettings) -> Batch:
    """Returns all steps of a rollout, B = T * N, with their advantages and returns."""
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
    """Returns the advantages [B], scaled to mean 0 and variance 1 if the settings ask for it."""
    if not settings.normalise_advantages:
        return batch.advantages_B
    return (batch.advantages_B - batch.advantages_B.mean()) / (batch.advantages_B.std() + 1e-8)


def equation_1(
    policy: Tensor, value: Tensor, output: Output, teacher_lambda: float, settings: TrainSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns L_RL + lambda * KL(teacher || student), equation 1 of the paper, and its terms by figure.

    L_RL is the sum of an algorithm's policy loss, its value loss and the entropy bonus, means over steps; KL
    is the mean over labelled steps.
    """
    entropies_V = -(output.log_probs_VA.exp() * output.log_probs_VA).sum(1)
    entropy = (output.visits_V * entropies_V).sum() / len(output.values_B)
    kl = kl_to_teacher(output.log_probs_VA, output.targets_V, output.visits_V)
    total = (
        policy
        + settings.value_coefficient * value
        - settings.entropy_coefficient * entropy
        + teacher_lambda * kl
    )
    parts = {"policy_loss": policy, "value_loss": value, "entropy": entropy, "kl": kl}
    return total, {name: part.detach() for name, part in parts.items()}


def make_optimiser(network: ActorCritic, settings: TrainSettings) -> torch.optim.Optimizer:
    """Returns the optimiser of the settings."""
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
    """Takes one gradient step; returns the terms of the loss and the norm of the gradient before clipping."""
    optimiser.zero_grad()
    torch.autograd.backward(total)
    norm = nn.utils.clip_grad_norm_(network.parameters(), settings.max_grad_norm)
    optimiser.step()
    return parts | {"grad_norm": norm}


def means(steps: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Returns an update's figures: the means over its gradient steps."""
    return {name: float(torch.stack([step[name] for step in steps]).mean()) for name in steps[0]}

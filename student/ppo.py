"""Proximal policy optimisation (Schulman et al., arXiv 1707.06347) with a teacher's term beside it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from student.distillation import Labels, agreement, kl_to_teacher
from student.networks import ActorCritic
from student.rollout import Rollout, advantages
from student.settings import TrainSettings


@dataclass(frozen=True)
class Batch:
    """B steps of a rollout, in any order."""

    obs_BK: Tensor
    actions_B: Tensor
    log_probs_B: Tensor
    values_B: Tensor
    advantages_B: Tensor
    returns_B: Tensor
    labels: Labels

    def __getitem__(self, rows: Tensor) -> "Batch":
        return Batch(
            self.obs_BK[rows],
            self.actions_B[rows],
            self.log_probs_B[rows],
            self.values_B[rows],
            self.advantages_B[rows],
            self.returns_B[rows],
            self.labels[rows],
        )


def update(
    network: ActorCritic,
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    labels: Labels,
    settings: TrainSettings,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Several epochs over a rollout in minibatches; returns the means of what `loss` reports.

    Args:
        labels: of the rollout's states, step by step: [T * N, A].
    """
    batch = _flatten(rollout, labels, settings)
    size = len(batch.actions_B)
    reports: list[dict[str, float]] = []
    for _ in range(settings.epochs):
        order = torch.from_numpy(rng.permutation(size))
        for rows in torch.split(order, settings.minibatch_size):
            total, report = loss(network, batch[rows], settings)
            optimiser.zero_grad()
            torch.autograd.backward(total)
            norm = nn.utils.clip_grad_norm_(network.parameters(), settings.max_grad_norm)
            optimiser.step()
            reports.append(
                {name: float(value) for name, value in report.items()} | {"grad_norm": float(norm)}
            )
    means = {name: float(np.mean([report[name] for report in reports])) for name in reports[0]}
    means["agreement"] = math.nan
    if labels.given_B.any():
        with torch.inference_mode():
            means["agreement"] = agreement(network(batch.obs_BK)[0], labels)
    return means


def loss(network: ActorCritic, batch: Batch, settings: TrainSettings) -> tuple[Tensor, dict[str, Tensor]]:
    """L_RL + lambda * KL(teacher || student): equation 1 of the paper, with PPO's clipped L_RL."""
    logits_BA, values_B = network(batch.obs_BK)
    log_probs_BA = logits_BA.log_softmax(1)
    log_probs_B = log_probs_BA.gather(1, batch.actions_B[:, None]).squeeze(1)
    advantages_B = batch.advantages_B
    if settings.normalise_advantages:
        advantages_B = (advantages_B - advantages_B.mean()) / (advantages_B.std() + 1e-8)
    ratio_B = (log_probs_B - batch.log_probs_B).exp()
    clipped_B = ratio_B.clamp(1 - settings.clip, 1 + settings.clip)
    policy = -torch.minimum(ratio_B * advantages_B, clipped_B * advantages_B).mean()
    errors_B = (values_B - batch.returns_B).square()
    if settings.clip_values:
        near_B = batch.values_B + (values_B - batch.values_B).clamp(-settings.clip, settings.clip)
        errors_B = torch.maximum(errors_B, (near_B - batch.returns_B).square())
    value = 0.5 * errors_B.mean()
    entropy = -(log_probs_BA.exp() * log_probs_BA).sum(1).mean()
    kl = kl_to_teacher(log_probs_BA, batch.labels)
    total = (
        policy
        + settings.value_coefficient * value
        - settings.entropy_coefficient * entropy
        + settings.teacher_lambda * kl
    )
    parts = {"policy_loss": policy, "value_loss": value, "entropy": entropy, "kl": kl}
    return total, {name: part.detach() for name, part in parts.items()}


def _flatten(rollout: Rollout, labels: Labels, settings: TrainSettings) -> Batch:
    advantages_TN = advantages(rollout, settings.gamma, settings.gae_lambda)
    return Batch(
        torch.from_numpy(rollout.obs_TNK.reshape(-1, rollout.obs_TNK.shape[-1])),
        torch.from_numpy(rollout.actions_TN.ravel()),
        torch.from_numpy(rollout.log_probs_TN.ravel()),
        torch.from_numpy(rollout.values_TN.ravel()),
        torch.from_numpy(advantages_TN.ravel()),
        torch.from_numpy((advantages_TN + rollout.values_TN).ravel()),
        labels,
    )

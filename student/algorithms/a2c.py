"""Advantage actor-critic, the synchronous form of Mnih et al. (arXiv 1602.01783), with distillation."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from student.algorithms.base import Algorithm, Batch, batch_of, descend, equation_1, means, scaled_advantages
from student.algorithms.distillation import Labels
from student.algorithms.networks import ActorCritic
from student.algorithms.rollout import Rollout
from student.settings import TrainSettings

_RATE, _EPSILON, _STEPS = 1e-3, 1e-5, 2
"""The learning rate, Adam's epsilon and the gradient steps of a rollout, for `recover`."""
_MOST_FAIL, _FASTER = 0.7, 0.02
"""Where more than `_MOST_FAIL` of the episodes fail, the rate grows by `_FASTER` times the share above it."""
_CHANGE, _LEAST_FAILING = 0.02, 0.001
"""An update changes the policy by a KL divergence of at most `_CHANGE` times the share of failed episodes, or
times `_LEAST_FAILING` where fewer fail."""


class A2C(Algorithm):
    """Takes one gradient step on the whole rollout; after `recover`, one on each half, within a limit."""

    def __init__(self, network: ActorCritic, settings: TrainSettings) -> None:
        super().__init__(network, settings)
        self._given, self._steps, self._most_change = settings, 1, math.inf

    def recover(self, failing: float) -> None:
        """Learns fast, and changes the policy less the fewer episodes fail.

        Without failures the advantages are noise, and Adam makes steps of full size of gradients of any size:
        such a student unlearns. So it does by the entropy bonus, whose gradient is small but always the same,
        where advantages are noisy. Therefore both the limit and the bonus fall with the share of failures.
        Where most episodes fail, the rate is higher: the limit keeps the steps in bounds.
        """
        rate = _RATE + _FASTER * max(failing - _MOST_FAIL, 0.0)
        for group in self.optimiser.param_groups:
            group["lr"], group["eps"] = rate, _EPSILON
        entropy = self._given.entropy_coefficient * failing
        self.settings = self._given.model_copy(update={"entropy_coefficient": entropy})
        self._steps, self._most_change = _STEPS, _CHANGE * max(failing, _LEAST_FAILING)

    def update(
        self, rollout: Rollout, targets_U: Labels, teacher_lambda: float, rng: np.random.Generator
    ) -> dict[str, float]:
        batch = batch_of(self.network, rollout, targets_U, self.settings)
        limited = self._most_change < math.inf
        before = [each.detach().clone() for each in self.network.parameters()] if limited else []
        steps = []
        for first in range(self._steps):
            part = batch[torch.arange(first, len(batch.actions_B), self._steps)]
            total, parts = loss(self.network, part, teacher_lambda, self.settings)
            steps.append(descend(self.network, self.optimiser, total, parts, self.settings))
        if limited:
            self._limit_change(batch, torch.from_numpy(rollout.log_probs_UA), before)
        return means(steps)

    @torch.no_grad()
    def _limit_change(self, batch: Batch, acted_UA: Tensor, before: Sequence[Tensor]) -> None:
        """Moves the parameters back towards those before the update, as far as the limit asks for.

        The change, KL(old || new), grows with the square of the step, as in TRPO (Schulman et al., arXiv
        1502.05477).

        Args:
            acted_UA: the log-probabilities of the policy that acted.
            before: the parameters before the update.
        """
        output = batch.output_of(self.network)
        kl_U = (acted_UA.exp() * (acted_UA - output.log_probs_VA)).sum(1)
        change = float((output.visits_V * kl_U).sum() / output.visits_V.sum())
        if change > self._most_change:
            for now, old in zip(self.network.parameters(), before, strict=True):
                now.lerp_(old, 1 - math.sqrt(self._most_change / change))


def loss(
    network: ActorCritic, batch: Batch, teacher_lambda: float, settings: TrainSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns equation 1 of the paper with A2C's L_RL, the unclipped policy gradient, and its terms."""
    output = batch.output_of(network)
    policy = -(output.log_probs_B * scaled_advantages(batch, settings)).mean()
    value = 0.5 * (output.values_B - batch.returns_B).square().mean()
    return equation_1(policy, value, output, teacher_lambda, settings)

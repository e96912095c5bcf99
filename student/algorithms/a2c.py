"""Advantage actor-critic, the synchronous form of Mnih et al. (arXiv 1602.01783), with distillation."""

import numpy as np
import torch
from torch import Tensor

from student.algorithms.base import Algorithm, Batch, batch_of, descend, equation_1, means, scaled_advantages
from student.algorithms.distillation import Labels
from student.algorithms.networks import ActorCritic
from student.algorithms.rollout import Rollout
from student.settings import TrainSettings

_RATE, _EPSILON, _STEPS = 1e-3, 1e-5, 2
"""The learning rate, Adam's epsilon and the gradient steps of a rollout of a student that fails often."""
_OFTEN = 0.5
"""The share of failed episodes from which a student fails often; rate and epsilon change gradually to it."""


class A2C(Algorithm):
    """Takes one gradient step on the whole rollout, or one on each half while the student fails often."""

    def __init__(self, network: ActorCritic, settings: TrainSettings) -> None:
        super().__init__(network, settings)
        self._steps, self._present = 1, settings

    def recover(self, failing: float) -> None:
        """Raises the learning rate with the share of failed episodes, lowers Adam's epsilon, and weighs the
        entropy bonus by that share.

        Without failures the advantages are noise, and Adam makes steps of full size of gradients of any size
        unless its epsilon is larger: such a student unlearns. So it does by the entropy bonus, whose gradient
        is small but always the same, where advantages are noisy. A student that fails often takes a step on
        each half of the rollout.
        """
        share = min(failing / _OFTEN, 1)
        entropy = self.settings.entropy_coefficient * failing
        self._present = self.settings.model_copy(update={"entropy_coefficient": entropy})
        rate, epsilon = self.settings.learning_rate, self.settings.optimiser_epsilon
        for group in self.optimiser.param_groups:
            group["lr"] = rate + share * (_RATE - rate)
            group["eps"] = epsilon * (_EPSILON / epsilon) ** share
        self._steps = _STEPS if share == 1 else 1

    def update(
        self, rollout: Rollout, targets_U: Labels, teacher_lambda: float, rng: np.random.Generator
    ) -> dict[str, float]:
        batch = batch_of(self.network, rollout, targets_U, self.settings)
        steps = []
        for first in range(self._steps):
            part = (
                batch if self._steps == 1 else batch[torch.arange(first, len(batch.actions_B), self._steps)]
            )
            total, parts = loss(self.network, part, teacher_lambda, self._present)
            steps.append(descend(self.network, self.optimiser, total, parts, self.settings))
        return means(steps)


def loss(
    network: ActorCritic, batch: Batch, teacher_lambda: float, settings: TrainSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns equation 1 of the paper with A2C's L_RL, the unclipped policy gradient, and its terms."""
    output = batch.output_of(network)
    policy = -(output.log_probs_B * scaled_advantages(batch, settings)).mean()
    value = 0.5 * (output.values_B - batch.returns_B).square().mean()
    return equation_1(policy, value, output, teacher_lambda, settings)

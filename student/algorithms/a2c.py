"""Advantage actor-critic, the synchronous form of Mnih et al. (arXiv 1602.01783), with distillation."""

import numpy as np
from torch import Tensor

from student.algorithms.base import Algorithm, Batch, batch_of, descend, equation_1, means, scaled_advantages
from student.algorithms.distillation import Labels
from student.algorithms.networks import ActorCritic
from student.algorithms.rollout import Rollout
from student.settings import TrainSettings

_RATE = 1e-3
"""The learning rate of a student that fails in half of its episodes or more."""
_EPSILON = 1e-5
"""Adam's epsilon for a student that fails in a tenth of its episodes or more."""


class A2C(Algorithm):
    """Takes one gradient step on the whole rollout."""

    def recover(self, failing: float) -> None:
        """Raises the learning rate with the share of failed episodes, and lowers Adam's epsilon.

        Without failures the advantages are noise, and Adam makes steps of full size of gradients of any size
        unless its epsilon is larger: such a student unlearns.
        """
        rate, epsilon = self.settings.learning_rate, self.settings.optimiser_epsilon
        for group in self.optimiser.param_groups:
            group["lr"] = rate + min(2 * failing, 1) * (_RATE - rate)
            group["eps"] = epsilon * (_EPSILON / epsilon) ** min(10 * failing, 1)

    def update(
        self, rollout: Rollout, targets_U: Labels, teacher_lambda: float, rng: np.random.Generator
    ) -> dict[str, float]:
        batch = batch_of(self.network, rollout, targets_U, self.settings)
        total, parts = loss(self.network, batch, teacher_lambda, self.settings)
        return means([descend(self.network, self.optimiser, total, parts, self.settings)])


def loss(
    network: ActorCritic, batch: Batch, teacher_lambda: float, settings: TrainSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns equation 1 of the paper with A2C's L_RL, the unclipped policy gradient, and its terms."""
    output = batch.output_of(network)
    policy = -(output.log_probs_B * scaled_advantages(batch, settings)).mean()
    value = 0.5 * (output.values_B - batch.returns_B).square().mean()
    return equation_1(policy, value, output, teacher_lambda, settings)

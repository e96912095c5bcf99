"""Advantage actor-critic, the synchronous form of Mnih et al. (arXiv 1602.01783), with distillation."""

import numpy as np
from torch import Tensor

from student.algorithms.base import Algorithm, Batch, batch_of, descend, equation_1, means, scaled_advantages
from student.algorithms.distillation import Labels
from student.algorithms.networks import ActorCritic
from student.algorithms.rollout import Rollout
from student.settings import TrainSettings


class A2C(Algorithm):
    """Takes one gradient step on the whole rollout."""

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

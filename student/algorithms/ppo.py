"""Proximal policy optimisation (Schulman et al., arXiv 1707.06347), with distillation."""

import numpy as np
import torch
from torch import Tensor

from student.algorithms.base import Algorithm, Batch, batch_of, descend, equation_1, means, scaled_advantages
from student.algorithms.distillation import Labels
from student.algorithms.networks import ActorCritic
from student.algorithms.rollout import Rollout
from student.settings import TrainSettings

_FAILING, _NEARLY_ALWAYS = 0.03, 0.95
"""The shares of failed episodes above which a student learns from rewards with `_RECOVERY`, and with longer
rollouts."""
_RECOVERY = {"epochs": 4, "minibatch_size": 256, "learning_rate": 1e-3, "normalise_advantages": True}
"""The settings of the preset `alone`, with which a student learns fastest from rewards.

One that succeeds keeps the others: normalisation makes its advantages, which are noise, as large as real
ones. It has no entropy bonus either: the bonus makes the policy random where nothing is at stake, and then
where something is.
"""
_LONG_ROLLOUT = 2048
"""Steps in all environments of a longer rollout, as in the preset `alone`. With fewer, a student that has not
yet succeeded learns from collisions to stand still; one that has learns faster with fewer."""


class PPO(Algorithm):
    """Takes several epochs over a rollout, in minibatches."""

    def __init__(self, network: ActorCritic, settings: TrainSettings) -> None:
        super().__init__(network, settings)
        self._succeeding = settings.model_copy(update={"entropy_coefficient": 0.0})
        self._failing = settings.model_copy(update=_RECOVERY)
        longer = max(settings.rollout_steps, _LONG_ROLLOUT // settings.environments)
        self._nearly_always_failing = self._failing.model_copy(update={"rollout_steps": longer})

    def recover(self, failing: float) -> None:
        if failing > _FAILING:
            self.settings = self._nearly_always_failing if failing > _NEARLY_ALWAYS else self._failing
        else:
            self.settings = self._succeeding
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate

    def update(
        self, rollout: Rollout, targets_U: Labels, teacher_lambda: float, rng: np.random.Generator
    ) -> dict[str, float]:
        batch = batch_of(self.network, rollout, targets_U, self.settings)
        steps = []
        for _ in range(self.settings.epochs):
            order = torch.from_numpy(rng.permutation(len(batch.actions_B)))
            for rows in torch.split(order, self.settings.minibatch_size):
                total, parts = loss(self.network, batch[rows], teacher_lambda, self.settings)
                steps.append(descend(self.network, self.optimiser, total, parts, self.settings))
        return means(steps)


def loss(
    network: ActorCritic, batch: Batch, teacher_lambda: float, settings: TrainSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns equation 1 of the paper with PPO's clipped L_RL, and its terms."""
    output = batch.output_of(network)
    advantages_B = scaled_advantages(batch, settings)
    ratio_B = (output.log_probs_B - batch.log_probs_B).exp()
    clipped_B = ratio_B.clamp(1 - settings.clip, 1 + settings.clip)
    policy = -torch.minimum(ratio_B * advantages_B, clipped_B * advantages_B).mean()
    errors_B = (output.values_B - batch.returns_B).square()
    if settings.clip_values:
        near_B = batch.values_B + (output.values_B - batch.values_B).clamp(-settings.clip, settings.clip)
        errors_B = torch.maximum(errors_B, (near_B - batch.returns_B).square())
    value = 0.5 * errors_B.mean()
    return equation_1(policy, value, output, teacher_lambda, settings)

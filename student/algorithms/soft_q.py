"""Soft Q-learning from a replay buffer, with a target network and distillation.

The network's two heads are a dueling Q-function, Q(s, a) = V(s) + tau log pi(a|s), and the policy is its
softmax (Haarnoja et al., arXiv 1702.08165, equations 5 to 7; tau is the setting `entropy_coefficient`). So
rollouts, evaluation and distillation are the same as for the other algorithms. The targets of Q come from a
copy of the network that follows slowly, as in DQN (Mnih et al., Nature 518).
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from student.algorithms.base import Algorithm, descend, means
from student.algorithms.distillation import Labels, kl_to_teacher
from student.algorithms.networks import ActorCritic
from student.algorithms.rollout import Rollout
from student.settings import TrainSettings


class SoftQLearning(Algorithm):
    """Takes as many steps on minibatches of the buffer as `epochs` passes over a rollout would be."""

    def __init__(self, network: ActorCritic, settings: TrainSettings) -> None:
        super().__init__(network, settings)
        self._target = copy.deepcopy(network).requires_grad_(False)
        self._buffer: dict[str, Tensor] = {}

    def update(
        self, rollout: Rollout, targets_U: Labels, teacher_lambda: float, rng: np.random.Generator
    ) -> dict[str, float]:
        self._remember(rollout, targets_U)
        settings, size = self.settings, len(self._buffer["actions"])
        steps = []
        for _ in range(-(-settings.epochs * rollout.actions_TN.size // settings.minibatch_size)):
            rows = torch.from_numpy(rng.integers(0, size, settings.minibatch_size))
            batch = {name: values[rows] for name, values in self._buffer.items()}
            total, parts = loss(self.network, self._target, batch, teacher_lambda, settings)
            steps.append(descend(self.network, self.optimiser, total, parts, settings))
            with torch.no_grad():
                for slow, fast in zip(self._target.parameters(), self.network.parameters(), strict=True):
                    slow.lerp_(fast, settings.target_rate)
        return means(steps)

    def state(self) -> dict[str, Any]:
        return super().state() | {"target": self._target.state_dict(), "buffer": self._buffer}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._target.load_state_dict(state["target"])
        self._buffer = state["buffer"]
        if self._buffer:  # earlier versions had no powers
            self._buffer.setdefault("powers", torch.zeros(len(self._buffer["given"])))

    def _remember(self, rollout: Rollout, targets_U: Labels) -> None:
        """Adds a rollout's steps to the buffer, except truncated ones, whose next state is not in it."""
        obs_TNK = rollout.states_UK[rollout.which_TN]
        next_TNK = np.concatenate([obs_TNK[1:], rollout.last_obs_NK[None]])
        targets = targets_U[torch.from_numpy(rollout.which_TN.ravel())]
        kept_B = torch.from_numpy((~rollout.truncated_TN | rollout.terminated_TN).ravel())
        new = {
            "obs": torch.from_numpy(obs_TNK.reshape(len(kept_B), -1)),
            "next_obs": torch.from_numpy(next_TNK.reshape(len(kept_B), -1)),
            "actions": torch.from_numpy(rollout.actions_TN.ravel()),
            "rewards": torch.from_numpy(rollout.rewards_TN.ravel()),
            "terminated": torch.from_numpy(rollout.terminated_TN.ravel()),
            "probs": targets.probs_BA,
            "given": targets.given_B,
            "powers": torch.zeros(len(kept_B)) if targets.powers_B is None else targets.powers_B,
        }
        for name, values in new.items():
            before = [self._buffer[name]] if self._buffer else []
            new[name] = torch.cat([*before, values[kept_B]])[-self.settings.buffer_size :]
        self._buffer = new


def loss(
    network: ActorCritic,
    target: ActorCritic,
    batch: dict[str, Tensor],
    teacher_lambda: float,
    settings: TrainSettings,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns (Q(s, a) - r - gamma V'(s'))^2 / (2 tau) + lambda KL(teacher || student), and its terms.

    Both are means over a batch; V' is the target network's value. Dividing by tau gives the error the weight
    of an advantage in the gradient of log pi.
    """
    tau = max(settings.entropy_coefficient, 1e-6)
    with torch.no_grad():
        _, next_values_B = target(batch["next_obs"])
        wanted_B = batch["rewards"] + settings.gamma * torch.where(batch["terminated"], 0, next_values_B)
    logits_BA, values_B = network(batch["obs"])
    log_probs_BA = logits_BA.log_softmax(1)
    q_B = values_B + tau * log_probs_BA.gather(1, batch["actions"][:, None]).squeeze(1)
    error = (q_B - wanted_B).square().mean() / (2 * tau)
    kl = kl_to_teacher(log_probs_BA, Labels(batch["probs"], batch["given"], batch["powers"]))
    entropy = -(log_probs_BA.exp() * log_probs_BA).sum(1).mean()
    parts = {"value_loss": error, "entropy": entropy, "kl": kl}
    return error + teacher_lambda * kl, {name: part.detach() for name, part in parts.items()}

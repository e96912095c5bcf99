"""Small batches of real observations with made-up figures, and the terms that both losses share, by hand."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from student.algorithms.base import Batch
from student.algorithms.distillation import Labels
from student.algorithms.networks import ActorCritic, GridNetwork
from student.settings import TrainSettings
from worlds.minigrid import MinigridWorld, Vocabulary, layout_of
from worlds.world import Environments

LAYOUT = layout_of("MiniGrid-LavaGapS5-v0")
B, A = 24, 7


def labels_of(rng: np.random.Generator, size: int, given: float = 0.6) -> Labels:
    """Random labels; an action has probability 0, as one that is fatal, or of no use."""
    probs_BA = rng.dirichlet(np.full(A, 0.5), size).astype(np.float32)
    probs_BA[:, 2] = 0
    probs_BA /= probs_BA.sum(1, keepdims=True)
    return Labels(torch.from_numpy(probs_BA), torch.from_numpy(rng.random(size) < given))


def batch_of(seed: int, given: float = 0.6) -> tuple[ActorCritic, Batch]:
    """A network and B steps, some of them taken in the same state."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = GridNetwork(LAYOUT)
    torch.nn.init.normal_(network.actor.weight, std=0.3)
    envs = Environments(MinigridWorld(LAYOUT, Vocabulary()), B, seed)
    envs.reset()
    for _ in range(6):
        states_UK = envs.step(rng.integers(0, 3, B)).obs_NK[: B // 2]
    floats = lambda: torch.from_numpy(rng.normal(size=B).astype(np.float32))  # noqa: E731
    old_log_probs_B = -torch.rand(B) * 2 - 1
    actions_B = torch.from_numpy(rng.integers(0, A, B))
    batch = Batch(
        network.perceive(torch.from_numpy(states_UK)),
        labels_of(rng, len(states_UK), given),
        torch.from_numpy(rng.integers(0, len(states_UK), B)),
        actions_B,
        old_log_probs_B,
        floats(),
        floats(),
        floats(),
    )
    return network, batch


def normalised(values: Sequence[float]) -> list[float]:
    """Zero-mean, unit-variance, as `normalise_advantages` says."""
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return [(v - mean) / (spread + 1e-8) for v in values]


def softmax(logits: Sequence[float]) -> list[float]:
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def equation_1_by_hand(
    policy: float,
    value: float,
    probs_BA: Sequence[Sequence[float]],
    targets: Labels,
    teacher_lambda: float,
    settings: TrainSettings,
) -> dict[str, float]:
    """The terms of equation 1 and their sum, in float64 loops."""
    entropy = -sum(p * math.log(p) for pi in probs_BA for p in pi) / len(probs_BA)
    kls = [
        sum(p * math.log(p / q) for p, q in zip(teacher, pi, strict=True) if p > 0)
        for teacher, pi, given in zip(
            targets.probs_BA.double().tolist(), probs_BA, targets.given_B.tolist(), strict=True
        )
        if given
    ]
    kl = sum(kls) / max(len(kls), 1)
    total = (
        policy
        + settings.value_coefficient * value
        - settings.entropy_coefficient * entropy
        + teacher_lambda * kl
    )
    return {"policy_loss": policy, "value_loss": value, "entropy": entropy, "kl": kl, "total": total}

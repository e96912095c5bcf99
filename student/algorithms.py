"""The algorithms that a run can learn by; another one is a file with an `update` and a line in ALGORITHMS."""

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:  # names must be known to the flags, which answer before torch is loaded
    import numpy as np
    import torch

    from student.distillation import Labels
    from student.networks import ActorCritic
    from student.rollout import Rollout
    from student.settings import TrainSettings

ALGORITHMS = {"ppo": "student.ppo", "a2c": "student.a2c"}
"""The modules, by their names for --algo."""


class Algorithm(Protocol):
    """What a module in ALGORITHMS offers."""

    def update(
        self,
        network: "ActorCritic",
        optimiser: "torch.optim.Optimizer",
        rollout: "Rollout",
        labels: "Labels",
        teacher_lambda: float,
        settings: "TrainSettings",
        rng: "np.random.Generator",
    ) -> dict[str, float]:
        """Learns from one rollout; returns the figures of the update (see docs/metrics.md).

        Args:
            labels: the teacher's, of the rollout's states, step by step: [T * N, A].
            teacher_lambda: lambda of equation 1 in this update.
            rng: all that is random in the update comes from here, so that a resumed run repeats it.
        """
        ...


def algorithm(name: str) -> Algorithm:
    """The algorithm with this name."""
    return cast("Algorithm", import_module(ALGORITHMS[name]))

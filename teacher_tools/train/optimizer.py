"""The optimizer: Muon for the weight matrices of a model trained from scratch, AdamW for everything else."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_BETAS = (0.9, 0.98)
_WEIGHT_DECAY = 0.01


class Optimizer:
    """AdamW, combined with Muon (Jordan et al. 2024) for the given matrices.

    Muon orthogonalises each matrix's momentum, so that all of its directions are trained from the first
    steps on. Its steps are scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982), so that one
    learning rate suits both.

    Args:
        matrices: two-dimensional parameters for Muon; may be empty.
        rest: all other parameters.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], rest: Iterable[nn.Parameter], learning_rate: float
    ) -> None:
        self._learning_rate = learning_rate
        matrices, rest = list(matrices), list(rest)
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=learning_rate, betas=_BETAS, weight_decay=_WEIGHT_DECAY)
        ]
        if matrices:
            self._parts.append(
                torch.optim.Muon(
                    matrices, lr=learning_rate, weight_decay=_WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
                )
            )

    def step(self, share: float) -> None:
        """Takes a step at this share of the learning rate, then clears the gradients."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = self._learning_rate * share
            part.step()
            part.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        """Returns the state of both optimizers."""
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restores what `state_dict` returned."""
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)

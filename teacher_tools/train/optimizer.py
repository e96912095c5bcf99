"""How weights are moved: Muon for the matrices of a model from scratch, AdamW for everything else."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_BETAS = (0.9, 0.98)
_DECAY = 0.01


class Optimizer:
    """AdamW, with Muon (Jordan et al. 2024) for those matrices that are given to it.

    Muon takes the direction of each matrix's momentum and none of its lengths, so that all of a matrix
    learns from the first steps on; its steps are scaled to be as long as AdamW's (Liu et al. 2025,
    arXiv:2502.16982), and one learning rate is right for both.

    Args:
        matrices: parameters of two dimensions, for Muon; may be none.
        rest: all others.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], rest: Iterable[nn.Parameter], learning_rate: float
    ) -> None:
        self._learning_rate = learning_rate
        matrices, rest = list(matrices), list(rest)
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=learning_rate, betas=_BETAS, weight_decay=_DECAY)
        ]
        if matrices:
            self._parts.append(
                torch.optim.Muon(
                    matrices, lr=learning_rate, weight_decay=_DECAY, adjust_lr_fn="match_rms_adamw"
                )
            )

    def step(self, share: float) -> None:
        """Takes a step by the gradients there are, at this share of the learning rate, and drops them."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = self._learning_rate * share
            part.step()
            part.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        """What it remembers of the steps so far."""
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Goes back to a state."""
        for part, kept in zip(self._parts, state, strict=True):
            part.load_state_dict(kept)

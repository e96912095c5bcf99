"""Forward passes in training: the losses of a batch, and the share of predictions that are right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from teacher_server.engines.transformers.pictures import language_inputs, picture_features
from teacher_tools.train.batches import IGNORED, PLACE_SIZES, ROLE_SIZES, TILE_SIZES, Batch


class AuxiliaryHeads(nn.Module):
    """Linear read-outs that guide a model trained from scratch; a served checkpoint has none of them.

    Attributes:
        tiles: visual token -> logits of its cell's content and position, one part for each of TILE_SIZES.
        places: text token, half way through the language model -> logits of the row and the column of the
            cell that the text is about.
        roles: visual token, half way too -> logits of its cell being a target or a hazard.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tiles = nn.Linear(width, sum(TILE_SIZES))
        self.places = nn.Linear(width, sum(PLACE_SIZES))
        self.roles = nn.Linear(width, sum(ROLE_SIZES))


@dataclass(frozen=True, eq=False)
class BatchResult:
    """The losses of a batch in nats, with gradients, and how many predictions are right.

    Attributes:
        losses: tiles, or analysis, actions and numbers, with heads also places and roles: the mean over all
            targets of a step, of which a batch that is a part of it has its part.
        right: right predictions, and all of them.
            tile, place and role: all parts of the prediction are right. value: a value's token, given the
            right tokens before it. whole: an analysis without a wrong token. action: the arg-max is optimal.
    """

    losses: dict[str, torch.Tensor]
    right: dict[str, tuple[int, int]]

    @property
    def loss(self) -> torch.Tensor:
        """The sum of all losses."""
        return torch.stack(list(self.losses.values())).sum()


def picture_losses(model: Any, heads: AuxiliaryHeads, batch: Batch, of: Mapping[str, float]) -> BatchResult:
    """Runs the vision tower alone, which is what the first phase trains.

    Args:
        of: the step's targets of each kind: the sum of `Batch.targets` over the batches that are its parts.
    """
    known_N = batch.tiles_N5[:, 0] != IGNORED
    logits = heads.tiles(_features(model, batch)[known_N])
    loss, right = _read_out(logits, TILE_SIZES, batch.tiles_N5[known_N], of["tiles"])
    return BatchResult({"tiles": loss}, {"tile": right})


def conversation_losses(
    model: Any, heads: AuxiliaryHeads | None, batch: Batch, of: Mapping[str, float]
) -> BatchResult:
    """Runs whole conversations, as the engines do: the analysis token by token, then the action.

    The vision tower gets no gradients: it is trained in the first phase. The action's loss is the
    cross-entropy with the planner's probabilities, so that the model's confidence approaches the planner's.

    Args:
        of: as `picture_losses` takes it.
    """
    with torch.no_grad():
        features_NX = _features(model, batch)
    is_image_BL = batch.ids_BL == model.config.image_token_id
    positions_3BL, _ = model.model.get_rope_index(
        batch.ids_BL,
        mm_token_type_ids=is_image_BL.int(),
        image_grid_thw=batch.grids_B3,
        attention_mask=batch.mask_BL,
    )
    # No attention mask: padding is on the right, where causal attention does not reach
    output = model.model.language_model(
        **language_inputs(model, batch.ids_BL, is_image_BL, features_NX),
        position_ids=positions_3BL,
        use_cache=False,
        output_hidden_states=heads is not None,
    )
    hidden_BLH = output.last_hidden_state
    has_target_BL = batch.targets_BL != IGNORED
    logits_NV = model.lm_head(hidden_BLH[has_target_BL]).float()
    targets_N = batch.targets_BL[has_target_BL]
    last_BH = hidden_BLH[torch.arange(len(batch.last_B), device=batch.last_B.device), batch.last_B]
    action_BV = model.lm_head(last_BH).float()[:, : batch.action_BV.shape[1]]
    right_N = logits_NV.argmax(-1) == targets_N
    wrong_BL = torch.zeros_like(has_target_BL)
    wrong_BL[has_target_BL] = ~right_N
    best_B1 = action_BV.argmax(-1, keepdim=True)
    by_label_B = batch.action_BV.any(1)
    right = {
        "value": _count(right_N[batch.values_BL[has_target_BL]]),
        "whole": _count(~wrong_BL.any(1)[has_target_BL.any(1)]),
        "action": _count(batch.optimal_BV.gather(1, best_B1)[batch.optimal_BV.any(1)] > 0),
    }
    has_number_BL = batch.numbers_BL != IGNORED
    logits_MV = model.lm_head(hidden_BLH[has_number_BL]).float()
    learned = {
        "analysis": (logits_NV, targets_N),
        "actions": (action_BV[by_label_B], batch.action_BV[by_label_B]),
        "numbers": (logits_MV, batch.numbers_BL[has_number_BL]),
    }
    # A batch need not have each kind of target
    losses = {
        name: functional.cross_entropy(*both, reduction="sum") / of[name]
        for name, both in learned.items()
        if len(both[1])
    }
    if heads is not None:
        halfway_BLH = output.hidden_states[len(output.hidden_states) // 2]
        has_cell_BL = batch.cells_BL2[..., 0] != IGNORED
        losses["places"], right["place"] = _read_out(
            heads.places(halfway_BLH[has_cell_BL]), PLACE_SIZES, batch.cells_BL2[has_cell_BL], of["places"]
        )
        has_role_N = batch.roles_N1[:, 0] != IGNORED
        losses["roles"], right["role"] = _read_out(
            heads.roles(halfway_BLH[is_image_BL][has_role_N]),
            ROLE_SIZES,
            batch.roles_N1[has_role_N],
            of["roles"],
        )
    return BatchResult(losses, right)


def _features(model: Any, batch: Batch) -> torch.Tensor:
    return torch.cat(picture_features(model, batch.patches_PX, batch.grids_B3))


def _read_out(
    logits_NX: torch.Tensor, sizes: Sequence[int], targets_NK: torch.Tensor, of: float
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Returns the summed loss of K predictions at N of a step's positions, and where K are right.

    Args:
        logits_NX: K parts side by side; part k has `sizes[k]` logits.
        of: the step's positions.
    """
    parts = torch.split(logits_NX.float(), list(sizes), dim=-1)
    if not len(targets_NK):
        return logits_NX.float().sum(), (0, 0)
    losses = [
        functional.cross_entropy(part, targets_NK[:, i], reduction="sum") / of for i, part in enumerate(parts)
    ]
    predicted_NK = torch.stack([part.argmax(-1) for part in parts], dim=-1)
    return torch.stack(losses).sum(), _count((predicted_NK == targets_NK).all(-1))


def _count(truths: torch.Tensor) -> tuple[int, int]:
    return int(truths.sum()), truths.numel()

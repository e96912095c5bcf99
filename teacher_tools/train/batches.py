"""Batches of training examples as tensors, with little padding and cached picture patches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from gridworld.views import View, uncode
from teacher_server.prompting.preparation import PreparedPicture
from teacher_tools.train.examples import TrainingExample
from teacher_tools.train.samples import Labelled

IGNORED = -100
"""A target that adds nothing to the loss: the `ignore_index` of torch's cross-entropy."""
TILE_SIZES = (11, 6, 5, 25, 25)
"""How many kinds, colours, headings (0: no agent), rows and columns a cell can have."""
PLACE_SIZES = TILE_SIZES[3:]
"""Rows and columns."""
ROLE_SIZES = (2,)
"""A target or a hazard."""


class Patches:
    """Turns pictures into the processor's patches, cached by the pixels of each visual token.

    MiniGrid draws few distinct cells, so nearly all patches come from the cache.

    Args:
        processor: the checkpoint's picture processor.

    Attributes:
        merge: patches a side of a visual token.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.merge: int = processor.merge_size
        self._indices: dict[bytes, int] = {}
        self._patches: list[torch.Tensor] = []

    def of(self, picture: PreparedPicture) -> list[torch.Tensor]:
        """Returns the patches [M, P] of each visual token, row by row."""
        pixels_HWC, (rows, columns), side = np.asarray(picture.image), picture.grid, picture.side
        cut = pixels_HWC.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(rows * columns, -1)
        keys = [token.tobytes() for token in cut]
        if any(key not in self._indices for key in keys):
            processed = self._processor(images=[pixels_HWC], return_tensors="pt")["pixel_values"]
            for key, patches in zip(keys, processed.chunk(len(keys)), strict=True):
                if key not in self._indices:
                    self._indices[key] = len(self._patches)
                    self._patches.append(patches)
        return [self._patches[self._indices[key]] for key in keys]


@dataclass(frozen=True, eq=False)
class Batch:
    """B examples of at most L tokens, padded on the right; the vocabulary has V tokens.

    Attributes:
        ids_BL: token ids.
        mask_BL: 1 at tokens, 0 at padding.
        patches_PX, grids_B3: the vision tower's input.
        targets_BL: the next token within the analysis, elsewhere IGNORED.
        numbers_BL: the next token within the written probabilities, elsewhere IGNORED.
        values_BL: whether the target is a value of the analysis rather than punctuation.
        cells_BL2: row and column of the cell that the text is about, elsewhere IGNORED.
        last_B: the position before the action's label.
        action_BV: the planner's probability of each label there; 0 for all where probabilities are written.
        optimal_BV: 1 at the labels of optimal actions.
        tiles_N5: content and position of each visual token's cell, with TILE_SIZES values; IGNORED in the
            margin. N counts the visual tokens of the whole batch.
        roles_N1: 0 where the cell is a target, 1 where it is a hazard, elsewhere IGNORED.
    """

    ids_BL: torch.Tensor
    mask_BL: torch.Tensor
    patches_PX: torch.Tensor
    grids_B3: torch.Tensor
    targets_BL: torch.Tensor
    numbers_BL: torch.Tensor
    values_BL: torch.Tensor
    cells_BL2: torch.Tensor
    last_B: torch.Tensor
    action_BV: torch.Tensor
    optimal_BV: torch.Tensor
    tiles_N5: torch.Tensor
    roles_N1: torch.Tensor

    @classmethod
    def of(
        cls, examples: Sequence[TrainingExample], patches: Patches, *, vocabulary: int, padding: int
    ) -> Self:
        """Returns the batch of some examples; `vocabulary` is V, `padding` the token that fills up."""
        count, longest = len(examples), max(len(example.token_ids) for example in examples)
        ids_BL = np.full((count, longest), padding)
        mask_BL = np.zeros((count, longest), np.int64)
        targets_BL = np.full((count, longest), IGNORED)
        numbers_BL = np.full((count, longest), IGNORED)
        values_BL = np.zeros((count, longest), np.bool_)
        cells_BL2 = np.full((count, longest, 2), IGNORED)
        action_BV, optimal_BV = torch.zeros(count, vocabulary), torch.zeros(count, vocabulary)
        all_patches: list[torch.Tensor] = []
        grids, tiles, roles = [], [], []
        for i, example in enumerate(examples):
            ids = example.token_ids
            ids_BL[i, : len(ids)] = ids
            mask_BL[i, : len(ids)] = 1
            for targets, positions in ((targets_BL, example.analysis), (numbers_BL, example.numbers)):
                if positions:
                    targets[i, positions.start - 1 : positions.stop - 1] = ids[
                        positions.start : positions.stop
                    ]
            values_BL[i, [position - 1 for position in example.values]] = True
            for position, cell in example.cells.items():
                cells_BL2[i, position] = cell
            for token, probability in example.action.items():
                action_BV[i, token] = probability
            optimal_BV[i, list(example.optimal)] = 1
            all_patches += patches.of(example.picture)
            rows, columns = example.picture.grid
            grids.append((1, patches.merge * rows, patches.merge * columns))
            tiles.append(_tiles(example.state.view, rows, columns))
            roles.append(_roles(example.state, rows, columns))
        return cls(
            ids_BL=torch.from_numpy(ids_BL),
            mask_BL=torch.from_numpy(mask_BL),
            patches_PX=torch.cat(all_patches),
            grids_B3=torch.tensor(grids),
            targets_BL=torch.from_numpy(targets_BL),
            numbers_BL=torch.from_numpy(numbers_BL),
            values_BL=torch.from_numpy(values_BL),
            cells_BL2=torch.from_numpy(cells_BL2),
            last_B=torch.tensor([len(example.token_ids) - 1 for example in examples]),
            action_BV=action_BV,
            optimal_BV=optimal_BV,
            tiles_N5=torch.from_numpy(np.concatenate(tiles)),
            roles_N1=torch.from_numpy(np.concatenate(roles)),
        )

    @property
    def targets(self) -> dict[str, int]:
        """How many targets of each kind the batch has, by the names of the losses."""
        found = {
            "tiles": self.tiles_N5[:, 0] != IGNORED,
            "analysis": self.targets_BL != IGNORED,
            "actions": self.action_BV.any(1),
            "numbers": self.numbers_BL != IGNORED,
            "places": self.cells_BL2[..., 0] != IGNORED,
            "roles": self.roles_N1[:, 0] != IGNORED,
        }
        return {name: int(mask.sum()) for name, mask in found.items()}

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch on a device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def _tiles(view: View | None, rows: int, columns: int) -> NDArray[np.int64]:
    """Returns content and position of each visual token's cell, [rows * columns, 5]."""
    if view is None:
        return np.full((rows * columns, len(TILE_SIZES)), IGNORED)
    tiles_HW5 = np.zeros((*view.cells_HW.shape, len(TILE_SIZES)), np.int64)
    tiles_HW5[..., 0], tiles_HW5[..., 1], _ = np.vectorize(uncode)(view.cells_HW)
    tiles_HW5[view.y, view.x, 2] = view.heading + 1
    tiles_HW5[..., 3], tiles_HW5[..., 4] = np.indices(view.cells_HW.shape)
    return _per_visual_token(tiles_HW5, rows, columns)


def _roles(state: Labelled, rows: int, columns: int) -> NDArray[np.int64]:
    """Returns the role of each visual token's cell, [rows * columns, 1]."""
    if state.view is None:
        return np.full((rows * columns, 1), IGNORED)
    roles_HW1 = np.full((*state.view.cells_HW.shape, 1), IGNORED)
    for role, cells in enumerate((state.targets, state.hazards)):
        for cell in cells:
            roles_HW1[cell] = role
    return _per_visual_token(roles_HW1, rows, columns)


def _per_visual_token(cells_HWX: NDArray[np.int64], rows: int, columns: int) -> NDArray[np.int64]:
    """Maps values of cells to visual tokens; the margin, at the top and the left, gets IGNORED."""
    height, width, size = cells_HWX.shape
    tokens_RCX = np.full((rows, columns, size), IGNORED)
    if (rows - height, columns - width) in ((0, 0), (1, 1)):
        tokens_RCX[rows - height :, columns - width :] = cells_HWX
    return tokens_RCX.reshape(rows * columns, size)


def batches_by_length(
    examples: Sequence[TrainingExample], size: int, rng: np.random.Generator
) -> Iterator[list[TrainingExample]]:
    """Yields all examples in batches of similar length, in random order."""
    by_length = sorted(examples, key=lambda example: len(example.token_ids))
    batches = [by_length[i : i + size] for i in range(0, len(by_length), size)]
    for i in rng.permutation(len(batches)):
        yield batches[i]


def parts_by_tokens(examples: Sequence[TrainingExample], most: int | None) -> list[list[TrainingExample]]:
    """Divides examples into parts of at most so many tokens, padding included, or of one example.

    Args:
        most: None: no limit.
    """
    parts: list[list[TrainingExample]] = []
    for example in sorted(examples, key=lambda example: len(example.token_ids)):
        longest = len(example.token_ids)
        if parts and (most is None or (len(parts[-1]) + 1) * longest <= most):
            parts[-1].append(example)
        else:
            parts.append([example])
    return parts

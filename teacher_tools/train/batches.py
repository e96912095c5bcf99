"""Lessons as tensors: padded little, with each visual token's patches cut once for all pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from gridworld.scenes import Scene
from gridworld.views import View, uncode
from teacher_server.prompting.preparation import SIDE
from teacher_tools.train.conversation import Lesson

UNTOLD = -100
"""A target that nothing is learned from."""
TILE_SIZES = (11, 6, 5, 25, 25)
"""How many kinds, colours, headings (0: no agent), rows and columns a cell can have."""
PLACE_SIZES = TILE_SIZES[3:]
"""Rows and columns."""
ROLE_SIZES = (2,)
"""A target, or a hazard."""


class Patches:
    """Turns pictures into the processor's patches, each visual token's kept by its pixels.

    MiniGrid draws few different cells, so that nearly all come from memory.

    Args:
        processor: the checkpoint's picture processor.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._places: dict[bytes, int] = {}
        self._kept: list[torch.Tensor] = []

    def of(self, pixels_HWC: NDArray[np.uint8]) -> list[torch.Tensor]:
        """The patches [4, P] of each visual token, row by row."""
        rows, columns = pixels_HWC.shape[0] // SIDE, pixels_HWC.shape[1] // SIDE
        cut = pixels_HWC.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2).reshape(rows * columns, -1)
        keys = [token.tobytes() for token in cut]
        if any(key not in self._places for key in keys):
            processed = self._processor(images=[pixels_HWC], return_tensors="pt")["pixel_values"]
            for key, patches in zip(keys, processed.reshape(len(keys), 4, -1), strict=True):
                if key not in self._places:
                    self._places[key] = len(self._kept)
                    self._kept.append(patches)
        return [self._kept[self._places[key]] for key in keys]


@dataclass(frozen=True, eq=False)
class Batch:
    """B lessons of at most L tokens, padded at the right, of a vocabulary of V.

    Attributes:
        ids_BL, mask_BL: token ids, and 1 where they are none to fill up.
        patches_PX, grids_B3: what the vision tower takes.
        targets_BL: the next token where stage 1 speaks, else UNTOLD; values_BL: whether it is a value's.
        meant_BL2: row and column of the cell that is spoken of, else UNTOLD.
        last_B: the place before the action's label.
        action_BV: the planner's probabilities of labels there; optimal_BV: 1 at those that are optimal.
        tiles_N5: what each of N visual tokens shows, as TILE_SIZES counts it; UNTOLD in the margin.
        roles_N1: 0 where that is a target, 1 where it is a hazard, else UNTOLD.
    """

    ids_BL: torch.Tensor
    mask_BL: torch.Tensor
    patches_PX: torch.Tensor
    grids_B3: torch.Tensor
    targets_BL: torch.Tensor
    values_BL: torch.Tensor
    meant_BL2: torch.Tensor
    last_B: torch.Tensor
    action_BV: torch.Tensor
    optimal_BV: torch.Tensor
    tiles_N5: torch.Tensor
    roles_N1: torch.Tensor

    @classmethod
    def of(cls, lessons: Sequence[Lesson], patches: Patches, *, vocabulary: int, padding: int) -> Self:
        """Puts lessons together; `vocabulary` is V, `padding` the token to fill up with."""
        count, longest = len(lessons), max(len(lesson.token_ids) for lesson in lessons)
        ids_BL = np.full((count, longest), padding)
        mask_BL = np.zeros((count, longest), np.int64)
        targets_BL = np.full((count, longest), UNTOLD)
        values_BL = np.zeros((count, longest), np.bool_)
        meant_BL2 = np.full((count, longest, 2), UNTOLD)
        action_BV, optimal_BV = torch.zeros(count, vocabulary), torch.zeros(count, vocabulary)
        seen: list[torch.Tensor] = []
        grids, tiles, roles = [], [], []
        for i, lesson in enumerate(lessons):
            ids, said = lesson.token_ids, lesson.analysis
            ids_BL[i, : len(ids)] = ids
            mask_BL[i, : len(ids)] = 1
            targets_BL[i, said.start - 1 : said.stop - 1] = ids[said.start : said.stop]
            values_BL[i, [place - 1 for place in lesson.values]] = True
            for place, cell in lesson.meant.items():
                meant_BL2[i, place] = cell
            for token, probability in lesson.action.items():
                action_BV[i, token] = probability
            optimal_BV[i, list(lesson.optimal)] = 1
            pixels_HWC = np.asarray(lesson.picture.image)
            seen += patches.of(pixels_HWC)
            rows, columns = pixels_HWC.shape[0] // SIDE, pixels_HWC.shape[1] // SIDE
            grids.append((1, 2 * rows, 2 * columns))
            tiles.append(_tiles(lesson.sample.scene.view, rows, columns))
            roles.append(_roles(lesson.sample.scene, rows, columns))
        return cls(
            ids_BL=torch.from_numpy(ids_BL),
            mask_BL=torch.from_numpy(mask_BL),
            patches_PX=torch.cat(seen),
            grids_B3=torch.tensor(grids),
            targets_BL=torch.from_numpy(targets_BL),
            values_BL=torch.from_numpy(values_BL),
            meant_BL2=torch.from_numpy(meant_BL2),
            last_B=torch.tensor([len(lesson.token_ids) - 1 for lesson in lessons]),
            action_BV=action_BV,
            optimal_BV=optimal_BV,
            tiles_N5=torch.from_numpy(np.concatenate(tiles)),
            roles_N1=torch.from_numpy(np.concatenate(roles)),
        )

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def _tiles(view: View, rows: int, columns: int) -> NDArray[np.int64]:
    """What the visual tokens show, [rows * columns, 5]."""
    tiles_HW5 = np.zeros((*view.cells_HW.shape, len(TILE_SIZES)), np.int64)
    tiles_HW5[..., 0], tiles_HW5[..., 1], _ = np.vectorize(uncode)(view.cells_HW)
    tiles_HW5[view.y, view.x, 2] = view.heading + 1
    tiles_HW5[..., 3], tiles_HW5[..., 4] = np.indices(view.cells_HW.shape)
    return _of_tokens(tiles_HW5, rows, columns)


def _roles(scene: Scene, rows: int, columns: int) -> NDArray[np.int64]:
    """What the mission and the rules make of what the visual tokens show, [rows * columns, 1]."""
    roles_HW1 = np.full((*scene.view.cells_HW.shape, 1), UNTOLD)
    for role, cells in enumerate((scene.targets, scene.hazards)):
        for cell in cells:
            roles_HW1[cell] = role
    return _of_tokens(roles_HW1, rows, columns)


def _of_tokens(cells_HWX: NDArray[np.int64], rows: int, columns: int) -> NDArray[np.int64]:
    """What is told of cells, told of visual tokens; the margin, at the top and the left, is untold."""
    height, width, size = cells_HWX.shape
    tokens_RCX = np.full((rows, columns, size), UNTOLD)
    if (rows - height, columns - width) in ((0, 0), (1, 1)):
        tokens_RCX[rows - height :, columns - width :] = cells_HWX
    return tokens_RCX.reshape(rows * columns, size)


def in_batches(lessons: Sequence[Lesson], size: int, rng: np.random.Generator) -> Iterator[list[Lesson]]:
    """Batches of lessons of about one length, in random order; all lessons are in one of them."""
    by_length = sorted(lessons, key=lambda lesson: len(lesson.token_ids))
    batches = [by_length[i : i + size] for i in range(0, len(by_length), size)]
    for i in rng.permutation(len(batches)):
        yield batches[i]

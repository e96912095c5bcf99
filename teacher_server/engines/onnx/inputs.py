"""What the graphs get besides tokens: patches of pictures, windows, and rotations by position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teacher_server.checkpoints.architectures import QWEN2_5
from teacher_server.checkpoints.dimensions import Dimensions

_MEAN, _STD = np.array([QWEN2_5.image_mean, QWEN2_5.image_std], np.float32)
_HIDDEN = np.float32(-1e30)


@dataclass(frozen=True)
class Rotation:
    """Rotary embeddings of a model: frequencies [D / 2], and the position that each follows [D / 2]."""

    frequencies_F: NDArray[np.float32]
    axes_F: NDArray[np.intp]

    def of(self, positions_AR: NDArray[np.integer]) -> dict[str, NDArray[np.float32]]:
        """Returns the inputs `cosines` and `sines` [R, D / 2] at R places, given along A axes."""
        angles_RF = positions_AR.T.astype(np.float32)[:, self.axes_F] * self.frequencies_F
        return {"cosines": np.cos(angles_RF), "sines": np.sin(angles_RF)}


def language_rotation(dimensions: Dimensions, rope: Mapping[str, Any], theta: float) -> Rotation:
    """Returns the rotation by time, row and column; the config's sections say how many numbers each has."""
    d = dimensions.head_dim
    frequencies_F = 1 / theta ** (np.arange(0, d, 2, dtype=np.float32) / np.float32(d))
    return Rotation(frequencies_F.astype(np.float32), np.repeat([0, 1, 2], rope["mrope_section"]))


def _vision_rotation(dimensions: Dimensions) -> Rotation:
    """Returns the rotation by row and column, with half of the frequencies each."""
    half = dimensions.vision.width // dimensions.vision.num_heads // 2
    once_F = 1 / 10000.0 ** (np.arange(0, half, 2, dtype=np.float32) / np.float32(half))
    return Rotation(np.tile(once_F, 2).astype(np.float32), np.repeat([0, 1], len(once_F)))


class VisionInputs:
    """Makes the inputs of the vision graph.

    The four patches of a visual token follow one another, and the tokens row by row.

    Args:
        window: pixels a side of a window.
    """

    def __init__(self, dimensions: Dimensions, window: int) -> None:
        vision = dimensions.vision
        self._patch, self._merge, self._window = vision.patch_size, vision.spatial_merge_size, window
        self._rotation = _vision_rotation(dimensions)
        self._of_size = lru_cache(maxsize=64)(self._layout)

    def of(self, image: Image.Image) -> dict[str, NDArray[Any]]:
        """Returns the inputs for a prepared picture."""
        patch, merge = self._patch, self._merge
        pixels_HWC = (np.asarray(image.convert("RGB"), np.float32) / 255 - _MEAN) / _STD
        rows, columns = (side // (patch * merge) for side in pixels_HWC.shape[:2])
        cut = pixels_HWC.reshape(rows, merge, patch, columns, merge, patch, 3)
        patches_PX = cut.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns * merge**2, -1)
        return {"patches": patches_PX, **self._of_size(rows, columns)}

    def _layout(self, rows: int, columns: int) -> dict[str, NDArray[Any]]:
        """Returns what depends on the number of visual tokens alone."""
        merge, side = self._merge, self._window // self._patch
        places = np.indices((rows, columns, merge, merge)).reshape(4, -1)
        row_P, column_P = places[0] * merge + places[2], places[1] * merge + places[3]
        group_P = (row_P // side) * -(-columns * merge // side) + column_P // side
        _, which_P, counts_W = np.unique(group_P, return_inverse=True, return_counts=True)
        order_P, longest = np.argsort(which_P, kind="stable"), int(counts_W.max())
        taken_WL = np.arange(longest) < counts_W[:, None]
        windows_WL = np.zeros(taken_WL.shape, np.int64)
        windows_WL[taken_WL] = order_P
        places_P = np.empty(len(order_P), np.int64)
        places_P[order_P] = np.flatnonzero(taken_WL)
        hidden_W1LL = np.where(taken_WL, np.float32(0), _HIDDEN)[:, None, None, :].repeat(longest, 2)
        return {
            "rows": np.arange(len(order_P))[None],
            **self._rotation.of(np.stack([row_P, column_P])),
            "windows": windows_WL,
            "hidden": hidden_W1LL,
            "places": places_P,
        }


def positions(pictures: Sequence[tuple[int, int]], image_L: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the positions [3, L] of a prompt's tokens: time, row and column.

    Text counts on by one; a picture's tokens lie on a grid that begins where the text has stopped, and the
    text after it goes on beyond the longer side.

    Args:
        pictures: rows and columns of each picture's visual tokens.
        image_L: which tokens are visual.
    """
    found, start, at = [], 0, 0
    for rows, columns in pictures:
        before = int(np.argmax(image_L[at:]))
        found.append(np.tile(np.arange(start, start + before), (3, 1)))
        start, at = start + before, at + before + rows * columns
        found.append(np.indices((1, rows, columns)).reshape(3, -1) + start)
        start += max(rows, columns)
    found.append(np.tile(np.arange(start, start + len(image_L) - at), (3, 1)))
    return np.concatenate(found, axis=1)

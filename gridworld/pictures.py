"""Views to pictures and back: MiniGrid's own tiles, put together and recognised again."""

import io
import math
from functools import lru_cache

import numpy as np
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.grid import Grid
from minigrid.core.world_object import WorldObj
from numpy.typing import NDArray
from PIL import Image

from gridworld.views import EMPTY, View, code, uncode

Picture = NDArray[np.uint8]
"""uint8 [height, width, 3], RGB."""

TILE = 28
"""Pixels a tile, unless said otherwise: the size of one visual token of Qwen2.5-VL."""
TILE_SIZES = range(8, 65)
"""Tile sizes in pixels that can be read back."""

_LOSSY_FROM = 16
"""Pixels a tile from which a lossy copy (JPEG) can be read: below it, its blurred colours hide the shapes."""
_LARGEST_ERROR = 30.0
"""Root mean square difference, in grey levels, that a tile may have from MiniGrid's drawing."""
_LARGEST_RATIO = 0.8
"""... and how much of the difference from the second nearest drawing that may be."""

_AGENT_CAN_STAND_ON = [
    EMPTY,
    code("goal", "green"),
    code("lava", "red"),
    *(code("floor", colour) for colour in COLOR_NAMES),
    *(code("door", colour, 0) for colour in COLOR_NAMES),
]
# A wall in another colour than grey is left out: in green it is the same picture as the goal.
_OTHERS = [
    code("wall", "grey"),
    *(code(kind, colour) for kind in ("key", "ball", "box") for colour in COLOR_NAMES),
    *(code("door", colour, state) for state in (1, 2) for colour in COLOR_NAMES),
]
_LOOKS: list[tuple[int, int | None]] = [
    *((cell, None) for cell in _AGENT_CAN_STAND_ON + _OTHERS),
    *((cell, heading) for cell in _AGENT_CAN_STAND_ON for heading in range(4)),
]
"""All that a tile can show: (cell code, heading of the agent on it or None)."""


class UnreadablePicture(ValueError):
    """A picture that is no full view of a grid; the message says which tile."""


@lru_cache(maxsize=4096)
def _tile(cell: int, heading: int | None, tile: int) -> Picture:
    drawn = Grid.render_tile(WorldObj.decode(*uncode(cell)), agent_dir=heading, tile_size=tile)
    return np.asarray(drawn).astype(np.uint8)  # floats, which MiniGrid too cuts off


def draw(view: View, tile: int = TILE) -> Picture:
    """The picture that MiniGrid draws of a view without highlighting: uint8 [H * tile, W * tile, 3]."""
    height, width = view.cells_HW.shape
    picture = np.empty((height * tile, width * tile, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            heading = view.heading if (x, y) == (view.x, view.y) else None
            picture[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile] = _tile(
                int(view.cells_HW[y, x]), heading, tile
            )
    return picture


def encode_png(picture: Picture) -> bytes:
    """The picture as a PNG file; the same picture gives the same bytes."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return file.getvalue()


def read(picture: Picture) -> View:
    """The view that a picture shows, its tile size found out from the picture.

    Reads MiniGrid's drawing exactly, and a lossy copy of it (JPEG, 16 px a tile or more) to the nearest tile.

    Args:
        picture: uint8 [height, width, 3], a full view drawn without highlighting, 8 to 64 px a tile.

    Raises:
        UnreadablePicture: no tile size fits, a tile is unknown, or there is not exactly one agent.
    """
    height, width = picture.shape[:2]
    sizes = [t for t in TILE_SIZES if height % t == 0 and width % t == 0 and min(height, width) >= 3 * t]
    if not sizes:
        raise UnreadablePicture(
            f"a picture of {width} x {height} pixels is no grid of square tiles of {TILE_SIZES[0]} to"
            f" {TILE_SIZES[-1]} pixels"
        )
    # The agent is drawn to scale, so that at most one size can fit: the usual one is tried first
    for tile in sorted(sizes, key=lambda t: t != TILE):
        looks = _match_exactly(picture, tile)
        if looks is not None and sum(heading is not None for _, heading in looks) == 1:
            return _view(looks, width // tile)
    return _read_nearest(picture, sizes)


def _cut(picture: Picture, tile: int) -> Picture:
    """The tiles of a picture, row by row: uint8 [tiles, tile * tile * 3]."""
    rows, columns = picture.shape[0] // tile, picture.shape[1] // tile
    tiles = picture.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles).reshape(rows * columns, tile * tile * 3)


@lru_cache(maxsize=len(TILE_SIZES))
def _exact_looks(tile: int) -> dict[bytes, tuple[int, int | None]]:
    return {_tile(cell, heading, tile).tobytes(): (cell, heading) for cell, heading in _LOOKS}


def _match_exactly(picture: Picture, tile: int) -> list[tuple[int, int | None]] | None:
    known = _exact_looks(tile)
    looks = []
    for pixels_P in _cut(picture, tile):
        look = known.get(pixels_P.tobytes())
        if look is None:
            return None
        looks.append(look)
    return looks


def _average(tiles_TP: Picture, tile: int) -> NDArray[np.float32]:
    """The tiles at half the resolution, at which JPEG keeps colours."""
    half = tile // 2
    pixels = tiles_TP.reshape(-1, tile, tile, 3)[:, : 2 * half, : 2 * half].astype(np.float32)
    means: NDArray[np.float32] = pixels.reshape(-1, half, 2, half, 2, 3).mean((2, 4))
    return means.reshape(len(tiles_TP), -1)


@lru_cache(maxsize=8)
def _average_looks(tile: int) -> NDArray[np.float32]:
    return _average(np.stack([_tile(cell, heading, tile).ravel() for cell, heading in _LOOKS]), tile)


def _read_nearest(picture: Picture, sizes: list[int]) -> View:
    """Reads at the tile size whose worst tile is the best, each tile as the look nearest to it."""
    best = (math.inf, math.inf, sizes[-1], 0, np.zeros(0, np.intp))
    for tile in (size for size in sizes if size >= _LOSSY_FROM):
        tiles_TP = _average(_cut(picture, tile), tile)
        looks_LP = _average_looks(tile)
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab, so that no [T, L, P] array is made
        squares_TL = np.square(tiles_TP).sum(1)[:, None] + np.square(looks_LP).sum(1)
        squares_TL -= 2 * tiles_TP @ looks_LP.T
        errors_TL = np.sqrt(np.maximum(squares_TL, 0) / tiles_TP.shape[1])
        nearest_T2 = np.partition(errors_TL, 1, axis=1)[:, :2]
        worst = int(nearest_T2[:, 0].argmax())
        error, second = nearest_T2[worst]
        best = min(best, (error, error / second, tile, worst, errors_TL.argmin(1)), key=lambda b: b[0])
    error, ratio, tile, worst, nearest_T = best
    columns = picture.shape[1] // tile
    if error > _LARGEST_ERROR or ratio > _LARGEST_RATIO:
        raise UnreadablePicture(
            f"the tile in column {worst % columns}, row {worst // columns} (counted from 0, {tile} pixels a"
            " tile) shows nothing that MiniGrid draws"
        )
    looks = [_LOOKS[i] for i in nearest_T]
    agents = [divmod(i, columns) for i, (_, heading) in enumerate(looks) if heading is not None]
    if len(agents) != 1:
        where = ", ".join(f"column {x}, row {y}" for y, x in agents)
        found = f"{len(agents)} agents ({where})" if agents else "no agent"
        raise UnreadablePicture(f"the picture shows {found}; it must show one")
    return _view(looks, columns)


def _view(looks: list[tuple[int, int | None]], columns: int) -> View:
    cells_HW = np.array([cell for cell, _ in looks], np.uint8).reshape(-1, columns)
    at, heading = next((i, heading) for i, (_, heading) in enumerate(looks) if heading is not None)
    y, x = divmod(at, columns)
    return View(cells_HW, x, y, heading)

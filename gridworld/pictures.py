"""Views to pictures and back: MiniGrid's own tiles, put together and recognised again."""

import io
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

_MOST_TILES = 50
"""Tiles a side: MiniGrid's largest grid has 25."""

_Look = tuple[int, int | None]
"""What a tile can show: a cell code, and the heading of the agent on it or None."""

_AGENT_CAN_STAND_ON = [
    EMPTY,
    code("goal", "green"),
    code("lava", "red"),
    *(code("floor", colour) for colour in COLOR_NAMES),
    *(code("door", colour, 0) for colour in COLOR_NAMES),
]
_LOOKS: list[_Look] = [
    # A wall in another colour than grey is left out: in green it is the same picture as the goal
    (code("wall", "grey"), None),
    *((EMPTY, heading) for heading in (None, 0, 1, 2, 3)),
    *((cell, None) for cell in _AGENT_CAN_STAND_ON if cell != EMPTY),
    *((code(kind, colour), None) for kind in ("ball", "key", "box") for colour in COLOR_NAMES),
    *((code("door", colour, state), None) for state in (1, 2) for colour in COLOR_NAMES),
    *((cell, heading) for cell in _AGENT_CAN_STAND_ON if cell != EMPTY for heading in range(4)),
]
"""All looks, common ones first: MiniGrid takes long to draw one for the first time."""


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

    Reads MiniGrid's drawing exactly. A lossy copy (JPEG) is read where each tile is clearly nearest to one
    drawing: at quality 75 and more, and 16, 20, 24, 28 or 32 px a tile, all of them are.

    Args:
        picture: uint8 [height, width, 3], a full view drawn without highlighting, 8 to 64 px a tile.

    Raises:
        UnreadablePicture: no tile size fits, a tile is unknown, or there is not exactly one agent.
    """
    tile, looks = _find_tile(picture)
    return _view(looks or _nearest_looks(picture, tile), picture.shape[1] // tile, tile)


def tile_size(picture: Picture) -> int:
    """Pixels a tile of a picture, found out as `read` does, whatever single tiles and agents it shows.

    Raises:
        UnreadablePicture: no tile size fits.
    """
    return _find_tile(picture)[0]


def _find_tile(picture: Picture) -> tuple[int, list[_Look | None]]:
    """Pixels a tile, and what the tiles show if the picture is MiniGrid's exactly, else nothing."""
    height, width = picture.shape[:2]
    usual_first = sorted(TILE_SIZES, key=lambda tile: tile != TILE)
    sizes = [tile for tile in usual_first if _divides(tile, height) and _divides(tile, width)]
    if not sizes:
        raise UnreadablePicture(
            f"a picture of {width} x {height} pixels is no grid of 3 to {_MOST_TILES} square tiles a side,"
            f" {TILE_SIZES[0]} to {TILE_SIZES[-1]} pixels each"
        )
    closest: tuple[float, list[_Look | None], int] = (0.5, [], 0)
    for tile in sizes:
        tiles_TP = _cut(picture, tile)
        # Every grid has an empty cell, whose lines tell the size: few tiles of other sizes need be drawn
        if (tiles_TP == _tile(EMPTY, None, tile).ravel()).all(1).any():
            looks = [_recognise(pixels_P.tobytes(), tile) for pixels_P in tiles_TP]
            known = sum(look is not None for look in looks) / len(looks)
            if known == 1:
                return tile, looks
            closest = max(closest, (known, looks, tile), key=lambda c: c[0])
    _, looks, tile = closest
    return (tile, looks) if looks else (_nearest_tile(picture, sizes), [])


def _divides(tile: int, side: int) -> bool:
    return side % tile == 0 and 3 <= side // tile <= _MOST_TILES


def _cut(picture: Picture, tile: int) -> Picture:
    """The tiles of a picture, row by row: uint8 [tiles, tile * tile * 3]."""
    rows, columns = picture.shape[0] // tile, picture.shape[1] // tile
    tiles = picture.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles).reshape(rows * columns, tile * tile * 3)


@lru_cache(maxsize=4096)
def _recognise(pixels: bytes, tile: int) -> _Look | None:
    """Compares with one look after the other, so that only those up to it are ever drawn."""
    return next((look for look in _LOOKS if _tile(*look, tile).tobytes() == pixels), None)


def _average(tiles_TP: Picture, tile: int) -> NDArray[np.float32]:
    """The tiles at half the resolution, at which JPEG keeps colours."""
    half = tile // 2
    pixels = tiles_TP.reshape(-1, tile, tile, 3)[:, : 2 * half, : 2 * half].astype(np.float32)
    means: NDArray[np.float32] = pixels.reshape(-1, half, 2, half, 2, 3).mean((2, 4))
    return means.reshape(len(tiles_TP), -1)


@lru_cache(maxsize=8)
def _average_looks(tile: int) -> NDArray[np.float32]:
    return _average(np.stack([_tile(cell, heading, tile).ravel() for cell, heading in _LOOKS]), tile)


def _nearest_tile(picture: Picture, sizes: list[int]) -> int:
    """The tile size at which an empty cell is nearest to a tile."""
    empty = {
        tile: _errors(
            _average(_cut(picture, tile), tile), _average(_tile(EMPTY, None, tile).reshape(1, -1), tile)
        ).min()
        for tile in sizes
        if tile >= _LOSSY_FROM
    }
    tile = min(empty, key=lambda tile: empty[tile], default=0)
    if not tile or empty[tile] > _LARGEST_ERROR:
        raise UnreadablePicture(
            "no tile of the picture shows an empty cell as MiniGrid draws it, whatever the size of a tile"
        )
    return tile


def _nearest_looks(picture: Picture, tile: int) -> list[_Look | None]:
    """Reads each tile as the look nearest to it, where one is clearly nearest."""
    errors_TL = _errors(_average(_cut(picture, tile), tile), _average_looks(tile))
    error_T2 = np.partition(errors_TL, 1, axis=1)[:, :2]
    clear_T = (error_T2[:, 0] <= _LARGEST_ERROR) & (error_T2[:, 0] <= _LARGEST_RATIO * error_T2[:, 1])
    return [_LOOKS[i] if clear else None for i, clear in zip(errors_TL.argmin(1), clear_T, strict=True)]


def _errors(tiles_TP: NDArray[np.float32], looks_LP: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root mean square differences [T, L], by |a - b|^2 = |a|^2 + |b|^2 - 2ab: no [T, L, P] array is made."""
    squares_TL = np.square(tiles_TP).sum(1)[:, None] + np.square(looks_LP).sum(1)
    squares_TL -= 2 * tiles_TP @ looks_LP.T
    errors_TL: NDArray[np.float32] = np.sqrt(np.maximum(squares_TL, 0) / tiles_TP.shape[1])
    return errors_TL


def _view(looks: list[_Look | None], columns: int, tile: int) -> View:
    """The view that the looks of all tiles make; None is a tile that was not recognised."""
    for i, look in enumerate(looks):
        if look is None:
            raise UnreadablePicture(
                f"the tile in column {i % columns}, row {i // columns} (counted from 0, {tile} pixels a tile)"
                " shows nothing that MiniGrid draws"
            )
    cells = [look[0] for look in looks if look is not None]
    agents = [(i, look[1]) for i, look in enumerate(looks) if look is not None and look[1] is not None]
    if len(agents) != 1:
        where = ", ".join(f"column {i % columns}, row {i // columns}" for i, _ in agents)
        found = f"{len(agents)} agents ({where})" if agents else "no agent"
        raise UnreadablePicture(f"the picture shows {found}; it must show one")
    at, heading = agents[0]
    return View(np.array(cells, np.uint8).reshape(-1, columns), at % columns, at // columns, heading)

"""Views to pictures and back: MiniGrid's own tiles, put together and recognised again."""

import io
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gridworld.tiles import tile_picture
from gridworld.views import COLOURS, EMPTY, View, code, names_of

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


class _Look(NamedTuple):
    """What a tile can show: a cell code, the heading of the agent on it if it is there, and a highlight."""

    cell: int
    heading: int | None = None
    highlighted: bool = False


_BESIDE = [
    EMPTY,
    # A wall in another colour than grey is left out: it is the same picture as the goal of that colour
    code("wall", "grey"),
    *(code("goal", colour) for colour in COLOURS if colour != "grey"),
    code("lava"),
    *(code(kind, colour) for kind in ("floor", "ball", "key", "box") for colour in COLOURS),
    *(code("door", colour, state) for state in range(3) for colour in COLOURS),
]
"""What can be seen in a cell without the agent..."""
_UNDER = [cell for cell in _BESIDE if cell not in (code("wall", "grey"), code("goal", "red"))]
_UNDER.append(code("goal", "grey"))
"""... and beneath it. On a red goal the agent, as red, cannot be seen."""
_GROUPS = [
    [_Look(cell, heading, highlighted) for cells, headings in group for cell in cells for heading in headings]
    for highlighted in (False, True)
    for group in (
        [(_BESIDE, (None,)), ([EMPTY], range(4))],
        [([cell for cell in _UNDER if cell != EMPTY], range(4))],
    )
]
"""All looks, common ones first: drawing them for the first time takes a while."""
_LOOKS = [look for group in _GROUPS for look in group]
_FREE = [look for look in _LOOKS if look.heading is None and names_of(look.cell)[0] in ("empty", "floor")]
"""Every grid shows one of these somewhere: their lines tell the size of a tile."""


class UnreadablePicture(ValueError):
    """A picture that is no full view of a grid; the message says which tile."""


def draw(view: View, tile: int = TILE) -> Picture:
    """The picture that MiniGrid draws of a view without highlighting: uint8 [H * tile, W * tile, 3]."""
    height, width = view.cells_HW.shape
    picture = np.empty((height * tile, width * tile, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            heading = view.heading if (x, y) == (view.x, view.y) else None
            picture[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile] = tile_picture(
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

    Reads MiniGrid's drawing exactly, whether or not the cells that the agent sees are highlighted. A lossy
    copy (JPEG) is read where each tile is clearly nearest to one drawing: at quality 75 and more, and 16, 20,
    24, 28 or 32 px a tile, all of them are.

    MiniGrid draws a wall as it draws a goal of the same colour: a grey one is read as a wall, another one as
    a goal.

    Args:
        picture: uint8 [height, width, 3], a full view, 8 to 64 px a tile.

    Raises:
        UnreadablePicture: no tile size fits, a tile is unknown, there is not exactly one agent, or it is the
            agent's own view.
    """
    tile, looks = _looks_in(picture)
    return _view(looks, picture.shape[1] // tile, tile)


def without_highlights(picture: Picture) -> Picture:
    """The picture as MiniGrid draws it with highlight=False; one that shows no highlighted grid, as it is.

    Gymnasium's `rgb_array` of a MiniGrid environment highlights the cells that the agent sees.
    """
    red, green, blue = (picture[..., channel] for channel in range(3))
    like_agent = (red > 230) & (green > 50) & (green < 102) & (blue > 50) & (blue < 102)
    if not like_agent.any():  # its own cell is highlighted always
        return picture
    try:
        tile, looks = _looks_in(picture)
        view = _view(looks, picture.shape[1] // tile, tile)
    except UnreadablePicture:
        return picture
    return draw(view, tile) if any(look is not None and look.highlighted for look in looks) else picture


def tile_size(picture: Picture) -> int:
    """Pixels a tile of a picture, found out as `read` does, whatever single tiles and agents it shows.

    Raises:
        UnreadablePicture: no tile size fits.
    """
    return _find_tile(picture)[0]


def _looks_in(picture: Picture) -> tuple[int, list[_Look | None]]:
    """Pixels a tile, and what each tile shows, row by row; None: nothing that is known."""
    tile, looks = _find_tile(picture)
    return tile, looks or _nearest_looks(picture, tile)


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
        tiles = [pixels_P.tobytes() for pixels_P in _cut(picture, tile)]
        # Few tiles of other sizes need be drawn
        if not _free(tile).isdisjoint(tiles):
            looks = [_recognise(pixels, tile) for pixels in tiles]
            known = sum(look is not None for look in looks) / len(looks)
            if known == 1:
                return tile, looks
            closest = max(closest, (known, looks, tile), key=lambda c: c[0])
    _, looks, tile = closest
    return (tile, looks) if looks else (_nearest_tile(picture, sizes), [])


@lru_cache(maxsize=len(TILE_SIZES))
def _free(tile: int) -> frozenset[bytes]:
    """The pixels of cells with nothing in them."""
    return frozenset(_pixels(look, tile).tobytes() for look in _FREE)


def _recognise(pixels: bytes, tile: int) -> _Look | None:
    looks = (_drawn(tile, group).get(pixels) for group in range(len(_GROUPS)))
    return next((look for look in looks if look is not None), None)


@lru_cache(maxsize=32)
def _drawn(tile: int, group: int) -> dict[bytes, _Look]:
    """The looks of a group by their pixels."""
    return {_pixels(look, tile).tobytes(): look for look in _GROUPS[group]}


def _pixels(look: _Look, tile: int) -> Picture:
    return tile_picture(look.cell, look.heading, tile, look.highlighted)


def _divides(tile: int, side: int) -> bool:
    return side % tile == 0 and 3 <= side // tile <= _MOST_TILES


def _cut(picture: Picture, tile: int) -> Picture:
    """The tiles of a picture, row by row: uint8 [tiles, tile * tile * 3]."""
    rows, columns = picture.shape[0] // tile, picture.shape[1] // tile
    tiles = picture.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles).reshape(rows * columns, tile * tile * 3)


def _average(tiles_TP: Picture, tile: int) -> NDArray[np.float32]:
    """The tiles at half the resolution, at which JPEG keeps colours."""
    half = tile // 2
    pixels = tiles_TP.reshape(-1, tile, tile, 3)[:, : 2 * half, : 2 * half].astype(np.float32)
    means: NDArray[np.float32] = pixels.reshape(-1, half, 2, half, 2, 3).mean((2, 4))
    return means.reshape(len(tiles_TP), -1)


@lru_cache(maxsize=8)
def _average_looks(tile: int) -> NDArray[np.float32]:
    return _average_of(_LOOKS, tile)


def _average_of(looks: list[_Look], tile: int) -> NDArray[np.float32]:
    return _average(np.stack([_pixels(look, tile).ravel() for look in looks]), tile)


def _nearest_tile(picture: Picture, sizes: list[int]) -> int:
    """The tile size at which a free cell is nearest to a tile."""
    nearest = {
        tile: _errors(_average(_cut(picture, tile), tile), _average_of(_FREE, tile)).min()
        for tile in sizes
        if tile >= _LOSSY_FROM
    }
    tile = min(nearest, key=lambda tile: nearest[tile], default=0)
    if not tile or nearest[tile] > _LARGEST_ERROR:
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
    known = [look for look in looks if look is not None]
    agents = [(i, look.heading) for i, look in enumerate(known) if look.heading is not None]
    if len(agents) != 1:
        where = ", ".join(f"column {i % columns}, row {i // columns}" for i, _ in agents)
        found = f"{len(agents)} agents ({where})" if agents else "no agent"
        raise UnreadablePicture(f"the picture shows {found}; it must show one")
    at, heading = agents[0]
    cells_HW = np.array([look.cell for look in known], np.uint8).reshape(-1, columns)
    view = View(cells_HW, at % columns, at // columns, heading)
    if known[at].highlighted and view.y == len(cells_HW) - 1:
        raise UnreadablePicture(
            "the picture is the agent's own view (agent_pov): a full view of the grid is needed"
        )
    return view

"""Draws views as MiniGrid does, with what the agent carries, and reads pictures back into views."""

import io
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gridworld.tiles import tile_picture
from gridworld.views import COLOURS, EMPTY, PICKABLE, View, code, names_of

Picture = NDArray[np.uint8]
"""uint8 [height, width, 3], RGB."""

TILE = 28
"""Default pixels per tile: the size of one visual token of Qwen2.5-VL."""
TILE_SIZES = range(8, 65)
"""Tile sizes in pixels that `read` recognises."""

_LOSSY_FROM = 16
"""The smallest tile size at which `read` accepts a lossy copy (JPEG): in smaller tiles, blur hides shapes."""
_LARGEST_ERROR = 30.0
"""The largest root mean square difference of a tile from MiniGrid's drawing, in grey levels."""
_LARGEST_RATIO = 0.8
"""The largest ratio of that difference to the difference from the second nearest drawing."""

_MOST_TILES = 50
"""Tiles per side; MiniGrid's largest grid has 25."""


class _Content(NamedTuple):
    """What a tile shows: a cell code, the heading of an agent on the cell, and a highlight."""

    cell: int
    heading: int | None = None
    highlighted: bool = False


_WALL = code("wall", "grey")
_BESIDE = [
    EMPTY,
    # Only grey walls: a wall of another colour has the same picture as the goal of that colour
    _WALL,
    *(code("goal", colour) for colour in COLOURS if colour != "grey"),
    code("lava"),
    *(code(kind, colour) for kind in ("floor", "ball", "key", "box") for colour in COLOURS),
    *(code("door", colour, state) for state in range(3) for colour in COLOURS),
]
"""Cell codes that a tile without the agent can show."""
_UNDER = [cell for cell in _BESIDE if cell not in (_WALL, code("goal", "red"))]
_UNDER.append(code("goal", "grey"))
"""Cell codes that a tile can show under the agent; on a red goal the agent, also red, is invisible."""
_GROUPS = [
    [
        _Content(cell, heading, highlighted)
        for cells, headings in group
        for cell in cells
        for heading in headings
    ]
    for highlighted in (False, True)
    for group in (
        [(_BESIDE, (None,)), ([EMPTY], range(4))],
        [([cell for cell in _UNDER if cell != EMPTY], range(4))],
    )
]
"""All contents in groups, common ones first, so that rare ones are drawn only when needed."""
_CONTENTS = [content for group in _GROUPS for content in group]
_FREE = [
    content
    for content in _CONTENTS
    if content.heading is None and names_of(content.cell)[0] in ("empty", "floor")
]
"""Nearly every grid shows one of these; their lines give away the tile size."""
_AGENTS = [content for content in _CONTENTS if content.heading is not None and content.cell == EMPTY]
"""A grid without a free cell shows one of these."""


class UnreadablePicture(ValueError):
    """A picture is no full view of a grid; the message names the tile."""


def draw(view: View, tile: int = TILE) -> Picture:
    """Returns MiniGrid's picture of a view, without highlighting: uint8 [H * tile, W * tile, 3].

    MiniGrid does not draw what the agent carries. Here it is drawn in the top left corner of the outer wall,
    where nothing lies and nobody walks. A grid without grey walls there is drawn without it.
    """
    height, width = view.cells_HW.shape
    cells_HW = view.cells_HW
    if view.carried is not None and cells_HW[0, 0] == _WALL and _has_corner(cells_HW):
        cells_HW = cells_HW.copy()
        cells_HW[0, 0] = view.carried
    picture = np.empty((height * tile, width * tile, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            heading = view.heading if (x, y) == (view.x, view.y) else None
            picture[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile] = tile_picture(
                int(cells_HW[y, x]), heading, tile
            )
    return picture


def _has_corner(cells_HW: NDArray[np.uint8]) -> bool:
    """Returns whether the top left cell is between two grey walls."""
    return bool(cells_HW[0, 1] == cells_HW[1, 0] == _WALL)


def encode_png(picture: Picture) -> bytes:
    """Returns a picture as a PNG file; equal pictures give equal bytes."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return file.getvalue()


def read(picture: Picture) -> View:
    """Returns the view that a picture shows; the tile size is detected.

    MiniGrid's drawing is read exactly, with or without the highlight of the cells that the agent sees. A
    lossy copy (JPEG) is read if each tile is clearly nearest to one drawing. That holds for all tiles at
    quality 75 and higher with 16, 20, 24, 28 or 32 px per tile; for what is carried, with 20, 28 or 32 px.

    MiniGrid draws walls and goals of one colour alike: grey is read as a wall, any other colour as a goal.
    A key, ball or box in the top left corner, between two grey walls, is what the agent carries.

    Args:
        picture: uint8 [height, width, 3], a full view, 8 to 64 px per tile.

    Raises:
        UnreadablePicture: no tile size fits, a tile is unknown, the number of agents is not one, or the
            picture is the agent's own view.
    """
    tile, contents = _contents_of(picture)
    return _view(contents, picture.shape[1] // tile, tile)


def without_highlights(picture: Picture) -> Picture:
    """Returns a picture as MiniGrid draws it with highlight=False; a picture without highlights is unchanged.

    Gymnasium's `rgb_array` of a MiniGrid environment highlights the cells that the agent sees.
    """
    red, green, blue = (picture[..., channel] for channel in range(3))
    like_agent = (red > 230) & (green > 50) & (green < 102) & (blue > 50) & (blue < 102)
    if not like_agent.any():  # the agent's own cell is always highlighted
        return picture
    try:
        tile, contents = _contents_of(picture)
        view = _view(contents, picture.shape[1] // tile, tile)
    except UnreadablePicture:
        return picture
    return (
        draw(view, tile)
        if any(content is not None and content.highlighted for content in contents)
        else picture
    )


def tile_size(picture: Picture) -> int:
    """Returns the pixels per tile, detected as in `read`; single tiles may be unknown.

    Raises:
        UnreadablePicture: no tile size fits.
    """
    return _find_tile(picture)[0]


def _contents_of(picture: Picture) -> tuple[int, list[_Content | None]]:
    """Returns the pixels per tile and each tile's content, row by row; None: an unknown tile."""
    tile, contents = _find_tile(picture)
    return tile, contents or _nearest_contents(picture, tile)


def _find_tile(picture: Picture) -> tuple[int, list[_Content | None]]:
    """Returns the pixels per tile, and the contents of an exact drawing; an empty list for others."""
    height, width = picture.shape[:2]
    usual_first = sorted(TILE_SIZES, key=lambda tile: tile != TILE)
    sizes = [tile for tile in usual_first if _divides(tile, height) and _divides(tile, width)]
    if not sizes:
        raise UnreadablePicture(
            f"a picture of {width} x {height} pixels is no grid of 3 to {_MOST_TILES} square tiles a side,"
            f" {TILE_SIZES[0]} to {TILE_SIZES[-1]} pixels each"
        )
    closest: tuple[float, list[_Content | None], int] = (0.5, [], 0)
    for tile in sizes:
        tiles = [pixels_P.tobytes() for pixels_P in _cut(picture, tile)]
        # Drawing these cells alone rules out most sizes
        if not _clues(tile).isdisjoint(tiles):
            contents = [_recognise(pixels, tile) for pixels in tiles]
            known = sum(content is not None for content in contents) / len(contents)
            if known == 1:
                return tile, contents
            closest = max(closest, (known, contents, tile), key=lambda c: c[0])
    _, contents, tile = closest
    return (tile, contents) if contents else (_nearest_tile(picture, sizes), [])


@lru_cache(maxsize=len(TILE_SIZES))
def _clues(tile: int) -> frozenset[bytes]:
    """Returns the pixels of each free cell, and of the agent on an empty one."""
    return frozenset(_pixels(content, tile).tobytes() for content in _FREE + _AGENTS)


def _recognise(pixels: bytes, tile: int) -> _Content | None:
    contents = (_drawn(tile, group).get(pixels) for group in range(len(_GROUPS)))
    return next((content for content in contents if content is not None), None)


@lru_cache(maxsize=32)
def _drawn(tile: int, group: int) -> dict[bytes, _Content]:
    """Returns the contents of a group by their pixels."""
    return {_pixels(content, tile).tobytes(): content for content in _GROUPS[group]}


def _pixels(content: _Content, tile: int) -> Picture:
    return tile_picture(content.cell, content.heading, tile, content.highlighted)


def _divides(tile: int, side: int) -> bool:
    return side % tile == 0 and 3 <= side // tile <= _MOST_TILES


def _cut(picture: Picture, tile: int) -> Picture:
    """Returns the tiles of a picture, row by row: uint8 [tiles, tile * tile * 3]."""
    rows, columns = picture.shape[0] // tile, picture.shape[1] // tile
    tiles = picture.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles).reshape(rows * columns, tile * tile * 3)


def _average(tiles_TP: Picture, tile: int) -> NDArray[np.float32]:
    """Returns the tiles at half the resolution, at which JPEG stores colours."""
    half = tile // 2
    pixels = tiles_TP.reshape(-1, tile, tile, 3)[:, : 2 * half, : 2 * half].astype(np.float32)
    means: NDArray[np.float32] = pixels.reshape(-1, half, 2, half, 2, 3).mean((2, 4))
    return means.reshape(len(tiles_TP), -1)


@lru_cache(maxsize=8)
def _average_contents(tile: int) -> NDArray[np.float32]:
    return _average_of(_CONTENTS, tile)


def _average_of(contents: list[_Content], tile: int) -> NDArray[np.float32]:
    return _average(np.stack([_pixels(content, tile).ravel() for content in contents]), tile)


def _nearest_tile(picture: Picture, sizes: list[int]) -> int:
    """Returns the tile size at which some tile is nearest to a free cell, or else to the agent on one."""
    for contents in (_FREE, _AGENTS):
        nearest = {
            tile: _errors(_average(_cut(picture, tile), tile), _average_of(contents, tile)).min()
            for tile in sizes
            if tile >= _LOSSY_FROM
        }
        tile = min(nearest, key=lambda tile: nearest[tile], default=0)
        if tile and nearest[tile] <= _LARGEST_ERROR:
            return tile
    raise UnreadablePicture(
        "no tile of the picture shows an empty cell as MiniGrid draws it, at any tile size"
    )


def _nearest_contents(picture: Picture, tile: int) -> list[_Content | None]:
    """Returns each tile's nearest content; None where no content is clearly nearest."""
    errors_TC = _errors(_average(_cut(picture, tile), tile), _average_contents(tile))
    error_T2 = np.partition(errors_TC, 1, axis=1)[:, :2]
    clear_T = (error_T2[:, 0] <= _LARGEST_ERROR) & (error_T2[:, 0] <= _LARGEST_RATIO * error_T2[:, 1])
    return [_CONTENTS[i] if clear else None for i, clear in zip(errors_TC.argmin(1), clear_T, strict=True)]


def _errors(tiles_TP: NDArray[np.float32], contents_CP: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns root mean square differences [T, C].

    By |a - b|^2 = |a|^2 + |b|^2 - 2ab, which needs no array [T, C, P].
    """
    squares_TC = np.square(tiles_TP).sum(1)[:, None] + np.square(contents_CP).sum(1)
    squares_TC -= 2 * tiles_TP @ contents_CP.T
    errors_TC: NDArray[np.float32] = np.sqrt(np.maximum(squares_TC, 0) / tiles_TP.shape[1])
    return errors_TC


def _view(contents: list[_Content | None], columns: int, tile: int) -> View:
    """Returns the view that all tiles make; None is an unknown tile."""
    for i, content in enumerate(contents):
        if content is None:
            raise UnreadablePicture(
                f"the tile in column {i % columns}, row {i // columns} (counted from 0, {tile} pixels a tile)"
                " shows nothing that MiniGrid draws"
            )
    known = [content for content in contents if content is not None]
    agents = [(i, content.heading) for i, content in enumerate(known) if content.heading is not None]
    if len(agents) != 1:
        where = ", ".join(f"column {i % columns}, row {i // columns}" for i, _ in agents)
        found = f"{len(agents)} agents ({where})" if agents else "no agent"
        raise UnreadablePicture(f"the picture shows {found}; it must show one")
    at, heading = agents[0]
    cells_HW = np.array([content.cell for content in known], np.uint8).reshape(-1, columns)
    carried = int(cells_HW[0, 0]) if cells_HW[0, 0] in PICKABLE and _has_corner(cells_HW) else None
    if carried is not None:
        cells_HW[0, 0] = _WALL
    view = View(cells_HW, at % columns, at // columns, heading, carried)
    if known[at].highlighted and view.y == len(cells_HW) - 1:
        raise UnreadablePicture(
            "the picture is the agent's own view (agent_pov): a full view of the grid is needed"
        )
    return view

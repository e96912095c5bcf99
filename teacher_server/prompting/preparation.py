"""Prepares a question's picture for a checkpoint: tile size, margin and picture size."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gridworld.pictures import TILE, UnreadablePicture, tile_size

SIDE = 28
"""Pixels a side of the visual tokens for which prompt sets state sizes: those of Qwen2-VL and Qwen2.5-VL."""
_LARGEST_RATIO = 200
_FONT_SHARE = 0.6
"""Font size as a share of a tile's side, at which two-digit numbers fit."""


@dataclass(frozen=True, eq=False)
class PreparedPicture:
    """A picture for a checkpoint's processor: RGB, with sides that are multiples of a visual token's.

    Attributes:
        digest: SHA-256, in hexadecimal, of the size and the pixels.
        side: pixels a side of a visual token.
    """

    image: Image.Image
    digest: str
    side: int = SIDE

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens."""
        return self.image.height // self.side, self.image.width // self.side

    @property
    def tokens(self) -> int:
        """Number of visual tokens."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class Preparation:
    """How pictures are prepared.

    Sizes are stated for visual tokens of 28 x 28 pixels. Other tokens get them in proportion, and so as many
    for each tile.

    Attributes:
        tile: pixels a side to which tiles are scaled (bicubic); None: tiles keep their size.
        cell: pixels a side of the tiles in the environment's pictures; None: found, as MiniGrid draws them.
        margin: number columns and rows from 0, in a white margin at the top and the left.
        max_pixels: larger pictures are scaled down to it; smaller ones are scaled up to four visual tokens.
        side: pixels a side of the checkpoint's visual tokens.
    """

    tile: int | None = None
    margin: bool = False
    max_pixels: int = 1280 * SIDE * SIDE
    side: int = SIDE
    cell: int | None = None

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 1:
            raise ValueError(f"tile is {self.tile}; it must be 1 pixel or more")
        if self.max_pixels < (least := least_pixels(SIDE)):
            raise ValueError(f"max_pixels is {self.max_pixels}; it must be {least} or more")

    @property
    def drawn(self) -> int:
        """Pixels a side at which to draw a tile for a picture that can be prepared."""
        return self.cell or TILE

    @property
    def bounds(self) -> tuple[int, int]:
        """Least and most pixels of a prepared picture."""
        return least_pixels(self.side), self.max_pixels * self.side**2 // SIDE**2

    def prepare(self, picture: NDArray[np.uint8]) -> PreparedPicture:
        """Prepares a picture; its sides become multiples of a visual token's.

        Args:
            picture: uint8 [H, W, 3], RGB.

        Raises:
            UnreadablePicture: a tile size or a margin is set and the picture shows no grid of tiles, or one
                side is too long for the other.
        """
        image = Image.fromarray(picture)
        if self.tile is not None or self.margin:
            image = self._tiled(image, self.cell or tile_size(picture))
        image = _fit(image, self.side, *self.bounds)
        width, height = image.size
        digest = hashlib.sha256(b"%d x %d\n" % (width, height) + image.tobytes())
        return PreparedPicture(image, digest.hexdigest(), self.side)

    def _tiled(self, image: Image.Image, found: int) -> Image.Image:
        tile = found if self.tile is None else round(self.tile * self.side / SIDE)
        if image.width % found or image.height % found:
            raise UnreadablePicture(
                f"a picture of {image.width} x {image.height} pixels has no whole cells of {found} pixels"
            )
        columns, rows = image.width // found, image.height // found
        if tile != found:
            image = image.resize((columns * tile, rows * tile), Image.Resampling.BICUBIC)
        if not self.margin:
            return image
        framed = Image.new("RGB", ((columns + 1) * tile, (rows + 1) * tile), "white")
        framed.paste(_numbers(columns, tile, across=True), (tile, 0))
        framed.paste(_numbers(rows, tile, across=False), (0, tile))
        framed.paste(image, (tile, tile))
        return framed


def least_pixels(side: int) -> int:
    """Returns the pixels of four visual tokens, the least that a prepared picture has."""
    return 4 * side**2


@lru_cache(maxsize=256)
def _numbers(count: int, tile: int, *, across: bool) -> Image.Image:
    """Draws 0, 1, 2 ... in black on white, in the middle of each tile of a row or a column."""
    strip = Image.new("RGB", (count * tile, tile) if across else (tile, count * tile), "white")
    pen = ImageDraw.Draw(strip)
    font = ImageFont.load_default(max(1.0, tile * _FONT_SHARE))
    for i in range(count):
        along, middle = (i + 0.5) * tile, tile / 2
        at = (along, middle) if across else (middle, along)
        pen.text(at, str(i), fill="black", font=font, anchor="mm")
    return strip


def _fit(image: Image.Image, side: int, least: int, most: int) -> Image.Image:
    """Scales the sides to multiples of a visual token's within the bounds, as qwen-vl-utils does."""
    try:
        fetch_image = _qwen_fetch_image()
        if fetch_image is not None:
            # In it, a visual token has two patches a side
            fitted: Image.Image = fetch_image(
                {"image": image, "min_pixels": least, "max_pixels": most}, image_patch_size=side / 2
            )
            return fitted
        return image.resize(_fitting_size(*image.size, side, least, most))
    except (ValueError, ZeroDivisionError) as error:
        raise UnreadablePicture(
            f"a picture of {image.width} x {image.height} pixels is too narrow for its length: one side can"
            f" be at most {_LARGEST_RATIO} times the other, less where all has to fit in {most} pixels"
        ) from error


@cache
def _qwen_fetch_image() -> Callable[..., Any] | None:
    """Returns qwen-vl-utils' fetch_image, or None if it is not installed; it needs torch and torchvision."""
    try:
        from qwen_vl_utils import fetch_image  # noqa: PLC0415 - takes seconds, and is optional
    except ImportError:
        return None
    loader: Callable[..., Any] = fetch_image
    return loader


def _fitting_size(width: int, height: int, side: int, least: int, most: int) -> tuple[int, int]:
    """Returns (width, height) by the formula of qwen-vl-utils' smart_resize.

    Raises:
        ValueError: one side is more than 200 times the other.
        ZeroDivisionError: a side is 0.
    """
    if max(height, width) / min(height, width) > _LARGEST_RATIO:
        raise ValueError("one side is too long for the other")
    fitted = [max(side, round(length / side) * side) for length in (width, height)]
    if math.prod(fitted) > most:
        shrink = math.sqrt(height * width / most)
        fitted = [math.floor(length / shrink / side) * side for length in (width, height)]
    elif math.prod(fitted) < least:
        grow = math.sqrt(least / (height * width))
        fitted = [math.ceil(length * grow / side) * side for length in (width, height)]
    return fitted[0], fitted[1]

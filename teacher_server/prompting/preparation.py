"""Prepares a question's picture for Qwen2.5-VL: tile size, margin and picture size."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gridworld.pictures import UnreadablePicture, tile_size

SIDE = 28
"""Pixels a side of a visual token: 2 x 2 patches of 14 x 14 pixels."""
MIN_PIXELS = 4 * SIDE * SIDE
_LARGEST_RATIO = 200
_FONT_SHARE = 0.6
"""Font size as a share of a tile's side, at which two-digit numbers fit."""


@dataclass(frozen=True, eq=False)
class PreparedPicture:
    """A picture for a checkpoint's processor: RGB, with sides that are multiples of 28 pixels.

    Attributes:
        digest: SHA-256, in hexadecimal, of the size and the pixels.
    """

    image: Image.Image
    digest: str


@dataclass(frozen=True)
class Preparation:
    """How pictures are prepared.

    Attributes:
        tile: pixels a side to which tiles are scaled (bicubic); None: tiles keep their size.
        margin: number columns and rows from 0, in a white margin at the top and the left.
        max_pixels: larger pictures are scaled down to it.
        min_pixels: smaller pictures are scaled up to it.
    """

    tile: int | None = None
    margin: bool = False
    max_pixels: int = 1280 * SIDE * SIDE
    min_pixels: ClassVar[int] = MIN_PIXELS

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 1:
            raise ValueError(f"tile is {self.tile}; it must be 1 pixel or more")
        if self.max_pixels < MIN_PIXELS:
            raise ValueError(f"max_pixels is {self.max_pixels}; it must be {MIN_PIXELS} or more")

    def prepare(self, picture: NDArray[np.uint8]) -> PreparedPicture:
        """Prepares a picture; its sides become multiples of 28 pixels.

        Args:
            picture: uint8 [H, W, 3], RGB.

        Raises:
            UnreadablePicture: a tile size or a margin is set and the picture shows no grid of tiles, or one
                side is too long for the other.
        """
        image = Image.fromarray(picture)
        if self.tile is not None or self.margin:
            image = self._tiled(image, tile_size(picture))
        image = _fit(image, self.max_pixels)
        width, height = image.size
        digest = hashlib.sha256(b"%d x %d\n" % (width, height) + image.tobytes())
        return PreparedPicture(image, digest.hexdigest())

    def _tiled(self, image: Image.Image, found: int) -> Image.Image:
        tile = self.tile or found
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


def visual_tokens(picture: PreparedPicture) -> int:
    """Returns the number of tokens that Qwen2.5-VL makes of a picture."""
    width, height = picture.image.size
    return (width // SIDE) * (height // SIDE)


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


def _fit(image: Image.Image, max_pixels: int) -> Image.Image:
    """Scales the sides to multiples of 28 pixels within the bounds, as qwen-vl-utils does."""
    try:
        fetch_image = _qwen_fetch_image()
        if fetch_image is not None:
            fitted: Image.Image = fetch_image(
                {"image": image, "min_pixels": MIN_PIXELS, "max_pixels": max_pixels}
            )
            return fitted
        return image.resize(_fitting_size(*image.size, max_pixels))
    except (ValueError, ZeroDivisionError) as error:
        raise UnreadablePicture(
            f"a picture of {image.width} x {image.height} pixels is too narrow for its length: one side can"
            f" be at most {_LARGEST_RATIO} times the other, less where all has to fit in {max_pixels} pixels"
        ) from error


@cache
def _qwen_fetch_image() -> Callable[[dict[str, Any]], Any] | None:
    """Returns qwen-vl-utils' fetch_image, or None if it is not installed; it needs torch and torchvision."""
    try:
        from qwen_vl_utils import fetch_image  # noqa: PLC0415 - takes seconds, and is optional
    except ImportError:
        return None
    loader: Callable[[dict[str, Any]], Any] = fetch_image
    return loader


def _fitting_size(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Returns (width, height) by the formula of qwen-vl-utils' smart_resize.

    Raises:
        ValueError: one side is more than 200 times the other.
        ZeroDivisionError: a side is 0.
    """
    if max(height, width) / min(height, width) > _LARGEST_RATIO:
        raise ValueError("one side is too long for the other")
    sides = [max(SIDE, round(side / SIDE) * SIDE) for side in (width, height)]
    if math.prod(sides) > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        sides = [math.floor(side / shrink / SIDE) * SIDE for side in (width, height)]
    elif math.prod(sides) < MIN_PIXELS:
        grow = math.sqrt(MIN_PIXELS / (height * width))
        sides = [math.ceil(side * grow / SIDE) * SIDE for side in (width, height)]
    return sides[0], sides[1]

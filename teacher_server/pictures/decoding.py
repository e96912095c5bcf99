"""Decodes pictures from base64 to pixels, and refuses a picture that is too large before unpacking it."""

import base64
import binascii
import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from gridworld.pictures import without_highlights
from teacher_server.pictures.colours import to_srgb
from teacher_server.pictures.files import NotOnePicture, essence

# `decode` has its own limit; Pillow's would print warnings to stderr
Image.MAX_IMAGE_PIXELS = None
# Pillow's warnings about pictures do not belong into the service's log
warnings.filterwarnings("ignore", module="PIL")

_DEPTH_AT = 24
"""The offset of the bit depth in a PNG file, whose header comes first."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The rotation or reflection for each value of EXIF's orientation."""


class BadPicture(ValueError):
    """The picture cannot be used; `too_large` is true if it exceeds a limit."""

    def __init__(self, reason: str, *, too_large: bool = False) -> None:
        super().__init__(reason)
        self.too_large = too_large


def from_base64(text: str) -> bytes:
    """Returns the bytes of a picture's file.

    Raises:
        BadPicture: The text is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadPicture(f"the picture is not base64: {error}") from error


def decode(file: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Returns the pixels of a PNG or JPEG file as on a screen: uint8 [height, width, 3], sRGB, upright.

    The highlighted cells of MiniGrid's `rgb_array` (the agent's view) are returned without the highlight, so
    that the teacher sees the same picture in both cases.

    The size is read from the header, so that a small file of a huge picture costs nothing. Only the parts of
    the file that make the picture are unpacked.

    Raises:
        BadPicture: The file is not a PNG or JPEG or is broken; the picture is transparent, animated or in
            unknown colours; or it has more than `max_pixels` pixels.
    """
    try:
        file = essence(file)
        with Image.open(io.BytesIO(file), formats=("PNG", "JPEG")) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise BadPicture(
                    f"the picture has {width} x {height} pixels; at most {max_pixels} are allowed",
                    too_large=True,
                )
            picture.load()
            depth = file[_DEPTH_AT] if picture.format == "PNG" else 8
            _check_palette(picture)
            return without_highlights(np.asarray(_upright(to_srgb(picture, depth), picture)))
    except BadPicture:
        raise
    except NotOnePicture as error:
        raise BadPicture(f"the picture cannot be used: {error}") from error
    except UnidentifiedImageError as error:
        raise BadPicture("the picture is neither a PNG nor a JPEG file") from error
    except Exception as error:  # Pillow raises a dozen kinds of error for broken files
        raise BadPicture(f"the picture is broken: {error}") from error


def _check_palette(picture: Image.Image) -> None:
    if picture.mode == "P" and picture.palette is not None:
        colours, highest = len(picture.palette.palette) // 3, int(np.asarray(picture).max())
        if highest >= colours:
            raise ValueError(f"a pixel has colour {highest}, but the palette has {colours} colours")


def _upright(rgb: Image.Image, opened: Image.Image) -> Image.Image:
    """Returns the picture rotated by its EXIF orientation, or unchanged if that cannot be read."""
    try:
        orientation = opened.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data raises many kinds of error
        return rgb
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else rgb.transpose(turn)

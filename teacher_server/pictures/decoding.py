"""From the base64 of a question to pixels, refusing what is too large before it is unpacked."""

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

# Our own limit comes first; Pillow's would warn on stderr in between
Image.MAX_IMAGE_PIXELS = None
# What is odd about a picture is no matter of the service's log
warnings.filterwarnings("ignore", module="PIL")

_DEPTH_AT = 24
"""Of a PNG file, where the bits of a sample stand: its header comes first."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What EXIF's orientation asks for."""


class BadPicture(ValueError):
    """The picture cannot be used; `too_large` tells a limit from a fault."""

    def __init__(self, reason: str, *, too_large: bool = False) -> None:
        super().__init__(reason)
        self.too_large = too_large


def from_base64(text: str) -> bytes:
    """The bytes of the picture's file.

    Raises:
        BadPicture: the text is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadPicture(f"the picture is not base64: {error}") from error


def decode(file: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """The pixels of a PNG or JPEG file as they look on a screen: uint8 [height, width, 3], RGB, upright.

    A grid whose cells are highlighted where the agent sees them (gymnasium's rgb_array) comes without that:
    what is asked, answered and stored is the same picture.

    Raises:
        BadPicture: it is neither, is broken, is no one opaque picture in colours that are known here, or has
            more than `max_pixels` pixels; the size is read from the header, so that a small file of a huge
            picture costs nothing, and what is not its pixels is never unpacked.
    """
    try:
        file = essence(file)
        with Image.open(io.BytesIO(file), formats=("PNG", "JPEG")) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise BadPicture(
                    f"the picture has {width} x {height} pixels; at most {max_pixels} are taken",
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
            raise ValueError(f"it has a pixel of colour {highest}, and a palette of {colours}")


def _upright(rgb: Image.Image, opened: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data says; data that cannot be read says nothing."""
    try:
        orientation = opened.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as many kinds as there are ways to break it
        return rgb
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else rgb.transpose(turn)

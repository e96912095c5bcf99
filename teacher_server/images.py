"""From the base64 of a question to pixels, refusing what is too large before it is unpacked."""

import base64
import binascii
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from teacher_server.picture_files import essence

# Our own limit comes first; Pillow's would warn on stderr in between
Image.MAX_IMAGE_PIXELS = None


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
    """The pixels of a PNG or JPEG file: uint8 [height, width, 3], RGB.

    Raises:
        BadPicture: it is neither, is broken, or has more than `max_pixels` pixels; the size is read
            from the header, so that a small file of a huge picture costs nothing, and what is not its
            pixels is never unpacked.
    """
    try:
        with Image.open(io.BytesIO(essence(file)), formats=("PNG", "JPEG")) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise BadPicture(
                    f"the picture has {width} x {height} pixels; at most {max_pixels} are taken",
                    too_large=True,
                )
            return np.asarray(picture.convert("RGB"))
    except BadPicture:
        raise
    except UnidentifiedImageError as error:
        raise BadPicture("the picture is neither a PNG nor a JPEG file") from error
    except Exception as error:  # Pillow raises a dozen kinds of error for broken files
        raise BadPicture(f"the picture is broken: {error}") from error

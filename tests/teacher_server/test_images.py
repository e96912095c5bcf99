"""Pictures are decoded, and refused with a reason, before they cost much."""

import base64
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from teacher_server.images import BadPicture, decode, from_base64

pytestmark = pytest.mark.unit

MAX_PIXELS = 4096 * 4096


def _file(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (64, 48), "red").save(file, kind)
    return file.getvalue()


def black_png(width: int, height: int) -> bytes:
    """A whole PNG of one bit a pixel: the size of a huge one is small."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + (width + 7) // 8) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB")])
def test_png_and_jpeg_become_rgb(kind: str, mode: str) -> None:
    picture = decode(_file(kind, mode), max_pixels=MAX_PIXELS)
    assert picture.shape == (48, 64, 3)
    assert picture.dtype == np.uint8
    assert picture[0, 0, 0] > 250
    assert picture[0, 0, 1] < 5


def test_base64_is_taken_literally() -> None:
    assert from_base64(base64.b64encode(b"abc").decode()) == b"abc"
    for text in ("abc", "YW Jj", "YWJj\n", "ä", "data:image/png;base64,YWJj"):
        with pytest.raises(BadPicture, match="not base64"):
            from_base64(text)


@pytest.mark.parametrize("file", [b"", b"hello", _file("GIF"), _file("BMP"), b"\x89PNG\r\n\x1a\n"])
def test_what_is_neither_png_nor_jpeg_is_refused(file: bytes) -> None:
    with pytest.raises(BadPicture, match="neither a PNG nor a JPEG"):
        decode(file, max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    file = _file(kind)
    with pytest.raises(BadPicture, match=r"broken|neither") as caught:
        decode(file[: len(file) * 2 // 3], max_pixels=MAX_PIXELS)
    assert not caught.value.too_large


def test_a_huge_picture_is_refused_from_its_header() -> None:
    file = black_png(20_000, 20_000)
    tracemalloc.start()
    try:
        with pytest.raises(BadPicture, match="20000 x 20000") as caught:
            decode(file, max_pixels=MAX_PIXELS)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert caught.value.too_large

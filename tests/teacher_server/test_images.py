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


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


_BOMB = zlib.compress(bytes(64 << 20), 9)
_JPEG = _file("JPEG")
_PROGRESSIVE = io.BytesIO()
Image.new("RGB", (64, 48), "red").save(_PROGRESSIVE, "JPEG", progressive=True)
_LAST_SCAN = _PROGRESSIVE.getvalue()[_PROGRESSIVE.getvalue().rindex(b"\xff\xda") : -2]


def _with_chunks(chunks: bytes) -> bytes:
    """A PNG with something between its header and its pixels."""
    png = _file("PNG")
    return png[:33] + chunks + png[33:]


@pytest.mark.parametrize(
    "file",
    [
        _with_chunks(_chunk(b"iCCP", b"x\0\0" + _BOMB)),
        _with_chunks(_chunk(b"zTXt", b"x\0\0" + _BOMB)),
        _with_chunks(_chunk(b"iTXt", b"x\0\1\0\0\0" + _BOMB)),
        _with_chunks(_chunk(b"acTL", struct.pack(">II", 2**31, 0)) + _chunk(b"fdAT", bytes(4) + _BOMB)),
        _JPEG[:2] + _segment(0xE2, b"MPF\0" + bytes(60)) + _segment(0xE1, b"Exif\0\0junk") + _JPEG[2:],
    ],
    ids=["profile", "text", "unicode text", "animation", "previews"],
)
def test_what_is_not_the_picture_is_never_unpacked(file: bytes) -> None:
    plain = decode(_JPEG if file.startswith(b"\xff") else _file("PNG"), max_pixels=MAX_PIXELS)
    tracemalloc.start()
    try:
        assert (decode(file, max_pixels=MAX_PIXELS) == plain).all()
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "file",
    [
        _with_chunks(_chunk(b"teSt", b"") * 100_000),
        _JPEG[:2] + _segment(0xFE, b"") * 100_000 + _JPEG[2:],
        _JPEG[:2] + b"\xff" * 100_000 + _JPEG[2:],
        _PROGRESSIVE.getvalue()[:-2] + _LAST_SCAN * 100 + b"\xff\xd9",
    ],
    ids=["chunks", "comments", "fill bytes", "scans"],
)
def test_more_parts_than_a_picture_has_are_refused(file: bytes) -> None:
    with pytest.raises(BadPicture, match=r"broken: it has more than \d+ (parts|scans)"):
        decode(file, max_pixels=MAX_PIXELS)


def test_a_progressive_jpeg_is_read() -> None:
    assert decode(_PROGRESSIVE.getvalue(), max_pixels=MAX_PIXELS).shape == (48, 64, 3)

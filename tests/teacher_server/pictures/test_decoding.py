"""Pictures are decoded, and refused with a reason, before they cost much."""

import base64
import io
import struct
import tracemalloc
import zlib
from typing import Any

import gymnasium
import minigrid  # noqa: F401  (registers the environments)
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from gridworld.pictures import encode_png
from teacher_server.pictures.decoding import BadPicture, decode, from_base64

pytestmark = pytest.mark.unit

MAX_PIXELS = 4096 * 4096
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGB_ALPHA: 4}
"""By the number of a PNG's kind of colours."""


def _file(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (64, 48), "red").save(file, kind)
    return file.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(
    width: int, height: int, depth: int, kind: int, lines: bytes, *chunks: bytes, lace: int = 0
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, lace)
    parts = [_chunk(b"IHDR", header), *chunks, _chunk(b"IDAT", zlib.compress(lines)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def black_png(width: int, height: int) -> bytes:
    """A whole PNG of one bit a pixel: the size of a huge one is small."""
    return _png(width, height, 1, _GREY, bytes((1 + (width + 7) // 8) * height))


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB")])
def test_png_and_jpeg_become_rgb(kind: str, mode: str) -> None:
    picture = decode(_file(kind, mode), max_pixels=MAX_PIXELS)
    assert picture.shape == (48, 64, 3)
    assert picture.dtype == np.uint8
    assert picture[0, 0, 0] > 250
    assert picture[0, 0, 1] < 5


def test_a_picture_of_gymnasiums_own_is_the_plain_picture() -> None:
    """MiniGrid's `rgb_array` highlights what the agent sees."""
    env: Any = gymnasium.make("MiniGrid-Fetch-6x6-N2-v0", render_mode="rgb_array").unwrapped
    env.reset(seed=3)
    shown, plain = env.render(), env.get_frame(highlight=False)
    assert (shown != plain).any()
    np.testing.assert_array_equal(decode(encode_png(shown), max_pixels=MAX_PIXELS), plain)


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
    ("file", "said"),
    [
        (_with_chunks(_chunk(b"zTXt", b"x\0\0" + _BOMB)), None),
        (_with_chunks(_chunk(b"iTXt", b"x\0\1\0\0\0" + _BOMB)), None),
        (_with_chunks(_chunk(b"fdAT", bytes(4) + _BOMB)), None),
        (
            _JPEG[:2] + _segment(0xE2, b"MPF\0" + bytes(60)) + _segment(0xE1, b"Exif\0\0junk") + _JPEG[2:],
            None,
        ),
        (_with_chunks(_chunk(b"iCCP", b"x\0\0" + _BOMB)), "more than 524288 bytes"),
        (_with_chunks(_chunk(b"acTL", struct.pack(">II", 2**31, 0))), "animation of 2147483648 pictures"),
    ],
    ids=["text", "unicode text", "frames", "previews", "profile", "animation"],
)
def test_what_is_not_the_picture_is_never_unpacked(file: bytes, said: str | None) -> None:
    plain = decode(_JPEG if file.startswith(b"\xff") else _file("PNG"), max_pixels=MAX_PIXELS)
    tracemalloc.start()
    try:
        if said:
            with pytest.raises(BadPicture, match=said):
                decode(file, max_pixels=MAX_PIXELS)
        else:
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
    with pytest.raises(BadPicture, match=r"broken: the file has more than \d+ (parts|scans)"):
        decode(file, max_pixels=MAX_PIXELS)


def test_a_progressive_jpeg_is_read() -> None:
    assert decode(_PROGRESSIVE.getvalue(), max_pixels=MAX_PIXELS).shape == (48, 64, 3)


def _lines(samples_HWC: NDArray[np.int64], depth: int) -> bytes:
    """A PNG's lines, unfiltered."""
    bits = np.arange(depth - 1, -1, -1)
    lines = (samples_HWC.reshape(len(samples_HWC), -1, 1) >> bits & 1).reshape(len(samples_HWC), -1)
    return b"".join(b"\0" + np.packbits(line.astype(np.uint8)).tobytes() for line in lines)


def _interlaced(samples_HWC: NDArray[np.int64], depth: int) -> bytes:
    """Adam7's seven passes, by row, column and their steps."""
    passes = (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    )
    return b"".join(_lines(samples_HWC[y::down, x::right], depth) for y, x, down, right in passes)


_KINDS = [(_GREY, depth) for depth in (1, 2, 4, 8, 16)] + [(_PALETTE, depth) for depth in (1, 2, 4, 8)]
_KINDS += [(kind, depth) for kind in (_RGB, _GREY_ALPHA, _RGB_ALPHA) for depth in (8, 16)]


@pytest.mark.parametrize(("kind", "depth"), _KINDS)
def test_every_kind_of_png_is_read_as_its_standard_says(kind: int, depth: int) -> None:
    rng, channels, most = np.random.default_rng(depth), _CHANNELS[kind], 2**depth - 1
    samples_HWC = rng.integers(0, most + 1, (13, 11, channels))
    colours = rng.integers(0, 256, (most + 1, 3))
    palette = [_chunk(b"PLTE", colours.astype(np.uint8).tobytes())] if kind == _PALETTE else []
    shown = channels - (kind in (_GREY_ALPHA, _RGB_ALPHA))
    samples_HWC[..., shown:] = most
    levels = samples_HWC[..., :shown] * 255 / most
    expected = colours[samples_HWC[..., 0]] if palette else np.broadcast_to(levels, (13, 11, 3))

    def read(lines: bytes, *chunks: bytes, lace: int = 0) -> NDArray[np.uint8]:
        return decode(_png(11, 13, depth, kind, lines, *palette, *chunks, lace=lace), max_pixels=MAX_PIXELS)

    for picture in (read(_lines(samples_HWC, depth)), read(_interlaced(samples_HWC, depth), lace=1)):
        assert picture.dtype == np.uint8
        assert np.abs(picture - expected).max() < (1 if depth == 16 else 1e-6)

    # The same with one pixel that is not opaque, in all the ways in which it may be that
    some = samples_HWC[5, 5]
    if kind == _PALETTE:
        clear = _chunk(b"tRNS", bytes([255] * int(some[0]) + [254]))
    else:
        clear = _chunk(b"tRNS", struct.pack(f">{shown}H", *some[:shown]))
    if kind in (_GREY_ALPHA, _RGB_ALPHA):
        samples_HWC[5, 5, -1] = most - 256 if depth == 16 else most - 1
    with pytest.raises(BadPicture, match=r"transparent in places.*save it without transparency"):
        read(_lines(samples_HWC, depth), *([clear] if shown == channels else []))


def test_a_colour_that_would_be_clear_and_is_not_there_changes_nothing() -> None:
    pixels = _lines(np.full((4, 4, 1), 3), 8)
    for kind, chunks in (
        (_GREY, [_chunk(b"tRNS", b"\0\4")]),
        (_PALETTE, [_chunk(b"PLTE", bytes(15)), _chunk(b"tRNS", b"\xff" * 4 + b"\0")]),
    ):
        assert decode(_png(4, 4, 8, kind, pixels, *chunks), max_pixels=MAX_PIXELS).shape == (4, 4, 3)
    with pytest.raises(BadPicture, match="a pixel has colour 3, but the palette has 2 colours"):
        decode(_png(4, 4, 8, _PALETTE, pixels, _chunk(b"PLTE", bytes(6))), max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(10))
def test_a_picture_is_turned_as_its_exif_data_says(kind: str, orientation: int) -> None:
    corners = np.zeros((32, 48, 3), np.uint8)
    corners[:16, :24], corners[:16, 24:], corners[16:, :24] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    # Where the stored rows and columns belong, by EXIF 2.3
    turned = {
        2: corners[:, ::-1],
        3: corners[::-1, ::-1],
        4: corners[::-1],
        5: corners.swapaxes(0, 1),
        6: corners.swapaxes(0, 1)[:, ::-1],
        7: corners[::-1, ::-1].swapaxes(0, 1),
        8: corners.swapaxes(0, 1)[::-1],
    }.get(orientation, corners)
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(corners).save(
        file, kind, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {})
    )
    picture = decode(file.getvalue(), max_pixels=MAX_PIXELS)
    assert picture.shape == turned.shape
    assert np.abs(picture.astype(int) - turned).max() < 8


def _profile(kind: str) -> bytes:
    """sRGB's, or another one whose red is sRGB's green."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    return profile if kind == "sRGB" else exchanged


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_colours_of_a_profile_become_those_of_srgb(kind: str) -> None:
    def read(colour: str, **profile: bytes) -> NDArray[np.uint8]:
        file = io.BytesIO()
        Image.new("RGB", (16, 16), colour).save(file, kind, **profile)
        return decode(file.getvalue(), max_pixels=MAX_PIXELS)

    for colour in ("red", "#123456", "#fedcba"):
        assert (read(colour, icc_profile=_profile("sRGB")) == read(colour)).all()
    assert np.abs(read("red", icc_profile=_profile("exchanged")).astype(int) - read("#00ff00")).max() < 8
    with pytest.raises(BadPicture, match=r"colour profile cannot be used .*save it with sRGB colours"):
        read("red", icc_profile=b"junk" * 40)


_P3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        (_chunk(b"gAMA", struct.pack(">I", 45455)), None),
        (_chunk(b"gAMA", struct.pack(">I", 100000)), "its gamma is 1, "),
        (_chunk(b"gAMA", struct.pack(">I", 100000)) + _chunk(b"sRGB", b"\0"), None),
        (_chunk(b"cHRM", _P3), "its primary colours"),
        (_chunk(b"cICP", b"\x01\x0d\0\x01"), None),
        (_chunk(b"cICP", b"\x0c\x0d\0\x01"), "its colours are not sRGB "),
        (_chunk(b"acTL", struct.pack(">II", 1, 0)), None),
        (
            _chunk(b"acTL", struct.pack(">II", 2, 0)),
            "an animation of 2 pictures .* send a single picture",
        ),
        (_chunk(b"iCCP", b"x\0\0no zlib"), None),
    ],
)
def test_what_else_a_png_says_of_its_colours(chunks: bytes, said: str | None) -> None:
    file = _with_chunks(chunks)
    if said is None:
        assert (decode(file, max_pixels=MAX_PIXELS) == decode(_file("PNG"), max_pixels=MAX_PIXELS)).all()
    else:
        with pytest.raises(BadPicture, match=f"cannot be used: .*{said}"):
            decode(file, max_pixels=MAX_PIXELS)


def test_the_colours_of_print_are_refused_and_grey_ones_read() -> None:
    with pytest.raises(BadPicture, match="CMYK"):
        decode(_file("JPEG", "CMYK"), max_pixels=MAX_PIXELS)
    assert (decode(_file("JPEG", "L"), max_pixels=MAX_PIXELS) == 76).all()


def test_a_damaged_part_is_refused() -> None:
    file = bytearray(_with_chunks(_chunk(b"gAMA", struct.pack(">I", 45455))))
    file[33 + 8] ^= 1
    with pytest.raises(BadPicture, match="the checksum of its chunk gAMA is wrong"):
        decode(bytes(file), max_pixels=MAX_PIXELS)

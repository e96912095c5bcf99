"""Hostile files and texts: the fuzzers' seeds and mutations."""

import io
import random
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.chaos.bodies import chunk

_BOMB = zlib.compress(bytes(16 << 20), 9)
_JSON_VALUE = re.compile(rb'"[^"]*"|true|false|null|-?\d[\d.eE+-]*')
_JSON_VALUES = [
    *(b'""', b'"left"', b'"right"', b"0", b"1", b"0.5", b"-1", b"1e-400", b"1e400", b"NaN", b"[]", b"{}"),
    *(b"true", b"null", b"9" * 40, b"1" * 5000, b'"\\ud800"', b'"\\u0000"', b"[" * 2000, b'"both"'),
]
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(
    width: int, height: int, depth: int = 8, colour: int = 2, *, interlaced: int = 0, data: bytes
) -> bytes:
    """Returns a PNG file with this header and any data, which is compressed here."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = chunk(b"IDAT", zlib.compress(data))
    return _SIGNATURE + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def picture_files(pictures: list[bytes]) -> list[bytes]:
    """Returns valid files and decompression bombs as seeds.

    Args:
        pictures: PNG files that a teacher can read.
    """
    files = list(pictures)
    for source in pictures[:4]:
        with Image.open(io.BytesIO(source)) as opened:
            picture = opened.convert("RGB")
        for mode in ("L", "1", "P", "LA", "RGBA", "I;16"):
            files.append(_saved(picture.convert("L" if mode == "I;16" else mode), "PNG", mode))
        for options in ({}, {"progressive": True}, {"quality": 95, "subsampling": 0}):
            files.append(_saved(picture, "JPEG", "RGB", **options))
        files.append(_saved(picture.convert("CMYK"), "JPEG", "CMYK"))
        files.append(_saved(picture, "PNG", "RGB", save_all=True, append_images=[picture.rotate(90)]))
        files.append(_with_chunk(source, b"PLTE", bytes(range(48))))
    for kind, data in (
        (b"iCCP", b"x\0\0" + _BOMB),
        (b"zTXt", b"x\0\0" + _BOMB),
        (b"iTXt", b"x\0\1\0\0\0" + _BOMB),
        (b"fdAT", bytes(4) + _BOMB),
        (b"acTL", struct.pack(">II", 2**31, 0)),
    ):
        files.append(_with_chunk(pictures[0], kind, data))
    for width, height in (
        (0, 0),
        (1, 1),
        (2**31 - 1, 1),
        (1, 2**31 - 1),
        (2**31, 2**31),
        (4097, 4096),
        (8, 9),
    ):
        files.append(png(width, height, data=bytes(1000)))
    files += [png(64, 64, depth=16, colour=c, data=bytes(64 * 64 * 8 + 64)) for c in (0, 2, 4, 6)]
    files += [png(40, 40, interlaced=1, data=bytes(40 * 40 * 3 + 200)), png(4, 4, data=bytes(16 << 20))]
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    return [*files, _saved(Image.fromarray(noise), "PNG", "RGB"), b"", _SIGNATURE, b"\xff\xd8\xff"]


def answer_texts() -> list[bytes]:
    """Returns texts that a model or a damaged store might contain."""
    texts = [
        '{"left": 0.2, "right": 0.3, "forward": 0.5}',
        '{"left": 1e-400, "right": 1e400, "forward": -0.0}',
        '{"left": NaN, "right": Infinity, "forward": true}',
        '{"left": "0.5", "right": null, "forward": [0.5]}',
        '{"left": 0.5, "left": 0.5, "right": 0.2, "forward": 0.3}',
        '{"left": 99999999999999999999999999999999, "right": 0, "forward": 0}',
        '{"left": ' + "9" * 5000 + ', "right": 0, "forward": 0}',
        "[" * 5000,
        '{"a":' * 5000,
        "\ufeff{}",
        "null",
        '"\\ud800"',
        "```json\n{}\n```",
    ]
    return [text.encode("utf-8", "surrogatepass") for text in texts]


def mutated(source: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Returns the bytes with one to eight mutations: bits, numbers, pieces cut, doubled or spliced in."""
    data = bytearray(source)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        rng.choice(_IN_JSON if source[:1] == b"{" else _IN_FILES)(data, rng, others)
    changed = bytes(data)
    # A correct checksum lets the mutation past the first check
    return _with_right_checksums(changed) if rng.random() < 0.5 else changed


def _flip(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _number(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    value = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)))
    data[at : at + 4] = struct.pack(">I", value)


def _cut(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice((1, 4, 64, len(data)))]


def _double(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    piece = data[at : at + rng.randrange(1, 256)]
    data[at:at] = piece * rng.choice((1, 2, 16))


def _splice(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    other = rng.choice(others)
    at, start = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1)
    data[at : at + rng.randrange(64)] = other[start : start + rng.randrange(256)]


def _value(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    """Replaces a value in a JSON text, which stays JSON."""
    places = list(_JSON_VALUE.finditer(data))
    if places:
        place = rng.choice(places)
        data[place.start() : place.end()] = rng.choice(_JSON_VALUES)


_Change = Callable[[bytearray, random.Random, list[bytes]], None]
_IN_FILES: list[_Change] = [_flip, _number, _cut, _double, _splice]
_IN_JSON: list[_Change] = [_value, _value, _value, _value, _flip, _cut, _double]


def _with_right_checksums(file: bytes) -> bytes:
    if not file.startswith(_SIGNATURE):
        return file
    whole, at = bytearray(file), len(_SIGNATURE)
    while at + 12 <= len(file):
        length = int.from_bytes(file[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(file):
            break
        whole[end : end + 4] = struct.pack(">I", zlib.crc32(file[at + 4 : end]))
        at = end + 4
    return bytes(whole)


def _with_chunk(file: bytes, kind: bytes, data: bytes) -> bytes:
    return file[:33] + chunk(kind, data) + file[33:]


def _saved(picture: Image.Image, kind: str, mode: str, **options: object) -> bytes:
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()

"""Strips a PNG or JPEG file to the parts that make its picture, before anything is unpacked."""

import zlib
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_MEANING = (b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"eXIf")
"""Chunks with the meaning of the colours and the orientation."""
_SRGB = b"\x01\x0d\x00\x01"
"""The content of a cICP chunk for sRGB."""
_MOST_PARTS = 50_000
"""Limit of chunks or segments; a picture of 16 million pixels has about 6,000 chunks."""
_MOST_SCANS = 64
"""Limit of scans in a JPEG file; a progressive one has about 10, and each costs up to a whole decoding."""
_MOST_MEANING = 2**19
"""Limit in bytes, unpacked, of a chunk with the meaning of the colours."""
_SOS, _EOI, _APP0, _APP1, _APP2, _APP14, _COM = 0xDA, 0xD9, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
_BEGINNINGS = {_APP1: b"Exif\0\0", _APP2: b"ICC_PROFILE\0"}
"""The first bytes of the segments with the orientation and with the colour profile."""
_ALONE = (0x01, *range(0xD0, 0xD8))
"""Markers without a length."""


class NotOnePicture(ValueError):
    """The file is not damaged, but its picture is ambiguous; the message says why and what to do."""


def essence(file: bytes) -> bytes:
    """Returns a PNG or JPEG file without texts, previews and other parts; any other file unchanged.

    Raises:
        NotOnePicture: The file is an animation, or its colours cannot be converted.
        ValueError: The file has too many parts, or parts that are damaged or out of order.
    """
    if file.startswith(_PNG):
        return _PNG + b"".join(_few(_png_parts(file)))
    if file.startswith(_JPEG):
        if file.count(b"\xff\xda") > _MOST_SCANS:
            raise ValueError(f"the file has more than {_MOST_SCANS} scans")
        return file[:2] + b"".join(_few(_jpeg_parts(file)))
    return file


def _few(parts: Iterator[bytes]) -> Iterator[bytes]:
    for number, part in enumerate(parts):
        if number == _MOST_PARTS:
            raise ValueError(f"the file has more than {_MOST_PARTS} parts")
        yield part


def _png_parts(file: bytes) -> Iterator[bytes]:
    """Yields each chunk, or b"" for one that is left out.

    A chunk is a length, a type, a content of that length and a checksum; all but the content have 4 bytes.
    """
    at = len(_PNG)
    while at < len(file):
        end = at + 12 + int.from_bytes(file[at : at + 4])
        kind, content = file[at + 4 : at + 8], file[at + 8 : end - 4]
        if at == len(_PNG) and kind != b"IHDR":
            raise ValueError("the first chunk is not the header")
        if kind in _MEANING and len(content) > _MOST_MEANING:
            raise NotOnePicture(
                f"its chunk {kind.decode()} has {len(content)} bytes: save the picture without it"
            )
        if kind == b"iCCP":
            check_profile(_unpacked(content))
        if kind in _PIXELS or kind in _MEANING:
            if end <= len(file) and zlib.crc32(file[at + 4 : end - 4]) != int.from_bytes(file[end - 4 : end]):
                raise ValueError(f"the checksum of its chunk {kind.decode()} is wrong")
            yield file[at:end]
        elif kind == b"acTL" and int.from_bytes(content[:4]) > 1:
            frames = int.from_bytes(content[:4])
            raise NotOnePicture(f"it is an animation of {frames} pictures (APNG): send a single picture")
        elif kind == b"cICP" and content != _SRGB:
            raise NotOnePicture("its colours are not sRGB (cICP): save it with sRGB colours")
        else:
            yield b""
        if kind == b"IEND":
            return
        at = end


def check_profile(profile: bytes) -> None:
    """Raises NotOnePicture if a colour profile is too large."""
    if len(profile) > _MOST_MEANING:
        raise NotOnePicture(
            f"its colour profile has more than {_MOST_MEANING} bytes: save it with sRGB colours"
        )


def _unpacked(named: bytes) -> bytes:
    """Returns the profile in a chunk, up to the limit and a byte; b"" if it is damaged, and so ignored."""
    try:
        return zlib.decompressobj().decompress(named.partition(b"\0")[2][1:], _MOST_MEANING + 1)
    except zlib.error:
        return b""


def _jpeg_parts(file: bytes) -> Iterator[bytes]:
    """Yields each segment before the first scan, b"" for one that is left out; then the rest of the file."""
    at, upright = 2, False
    while at < len(file):
        if file[at] != 0xFF:
            raise ValueError("a segment is not followed by another one")
        marker = file[at + 1 : at + 2]
        kind = marker[0] if marker else _EOI
        if kind in (_SOS, _EOI):
            yield file[at:]
            return
        if kind == 0xFF or kind in _ALONE:  # a marker may be preceded by any number of 0xFF
            end = at + (1 if kind == 0xFF else 2)
        else:
            end = at + 2 + int.from_bytes(file[at + 2 : at + 4])
        # JFIF's and Adobe's segments hold the meaning of the colours
        known = kind not in range(_APP0 + 1, _APP0 + 16) and kind != _COM
        meant = (
            kind in _BEGINNINGS
            and file.startswith(_BEGINNINGS[kind], at + 4)
            and not (kind == _APP1 and upright)
        )
        upright = upright or (kind == _APP1 and meant)
        yield file[at:end] if known or meant or kind == _APP14 else b""
        at = end

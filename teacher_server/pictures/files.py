"""What of a PNG or JPEG file makes its picture; the rest is cut off before anything unpacks it."""

import zlib
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_MEANING = (b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"eXIf")
"""What the colours mean, and which side is up."""
_SRGB = b"\x01\x0d\x00\x01"
"""As cICP says it."""
_MOST_PARTS = 50_000
"""Chunks or segments of a file: 16 million pixels are written in about 6,000 chunks."""
_MOST_SCANS = 64
"""Of a JPEG file: a progressive one has about 10, and each may cost as much as the whole picture."""
_MOST_MEANING = 2**19
"""Bytes of a chunk that says what pixels mean, unpacked."""
_SOS, _EOI, _APP0, _APP1, _APP2, _APP14, _COM = 0xDA, 0xD9, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
_SAYS = {_APP1: b"Exif\0\0", _APP2: b"ICC_PROFILE\0"}
"""How segments begin that say which side is up, and what the colours mean."""
_ALONE = (0x01, *range(0xD0, 0xD8))
"""Markers without a length."""


class NotOnePicture(ValueError):
    """The file is whole, and it does not say which picture is meant; the message says why and what to do."""


def essence(file: bytes) -> bytes:
    """A PNG or JPEG file without texts, previews and what else is no part of its picture; others as they are.

    Raises:
        NotOnePicture: it is an animation, or has colours that are converted by no rule here.
        ValueError: it has more parts than any picture needs, they do not follow each other, or are damaged.
    """
    if file.startswith(_PNG):
        return _PNG + b"".join(_few(_png_parts(file)))
    if file.startswith(_JPEG):
        if file.count(b"\xff\xda") > _MOST_SCANS:
            raise ValueError(f"it has more than {_MOST_SCANS} scans")
        return file[:2] + b"".join(_few(_jpeg_parts(file)))
    return file


def _few(parts: Iterator[bytes]) -> Iterator[bytes]:
    for number, part in enumerate(parts):
        if number == _MOST_PARTS:
            raise ValueError(f"it has more than {_MOST_PARTS} parts")
        yield part


def _png_parts(file: bytes) -> Iterator[bytes]:
    """Each chunk: its length in 4 bytes, its kind, so many bytes, a checksum; nothing for one not kept."""
    at = len(_PNG)
    while at < len(file):
        end = at + 12 + int.from_bytes(file[at : at + 4])
        kind, content = file[at + 4 : at + 8], file[at + 8 : end - 4]
        if at == len(_PNG) and kind != b"IHDR":
            raise ValueError("its first part is not its header")
        if kind in _MEANING and len(content) > _MOST_MEANING:
            raise NotOnePicture(f"its part {kind.decode()} has {len(content)} bytes: save it without")
        if kind == b"iCCP":
            check_profile(_unpacked(content))
        if kind in _PIXELS or kind in _MEANING:
            if end <= len(file) and zlib.crc32(file[at + 4 : end - 4]) != int.from_bytes(file[end - 4 : end]):
                raise ValueError(f"its part {kind.decode()} is damaged: the checksum is another one")
            yield file[at:end]
        elif kind == b"acTL" and int.from_bytes(content[:4]) > 1:
            frames = int.from_bytes(content[:4])
            raise NotOnePicture(f"it is an animation of {frames} pictures (APNG): send the one that is meant")
        elif kind == b"cICP" and content != _SRGB:
            raise NotOnePicture("its colours are not sRGB's (cICP): save it with sRGB colours")
        else:
            yield b""
        if kind == b"IEND":
            return
        at = end


def check_profile(profile: bytes) -> None:
    """Refuses a colour profile that is too large to look at."""
    if len(profile) > _MOST_MEANING:
        raise NotOnePicture(
            f"its colour profile has more than {_MOST_MEANING} bytes: save it with sRGB colours"
        )


def _unpacked(named: bytes) -> bytes:
    """The profile in a chunk, as far as it is looked at; nothing where it is damaged and so passed over."""
    try:
        return zlib.decompressobj().decompress(named.partition(b"\0")[2][1:], _MOST_MEANING + 1)
    except zlib.error:
        return b""


def _jpeg_parts(file: bytes) -> Iterator[bytes]:
    """Each segment up to the first scan, nothing for one not kept; then all the rest."""
    at, upright = 2, False
    while at < len(file):
        if file[at] != 0xFF:
            raise ValueError("what follows a segment is none")
        marker = file[at + 1 : at + 2]
        kind = marker[0] if marker else _EOI
        if kind in (_SOS, _EOI):
            yield file[at:]
            return
        if kind == 0xFF or kind in _ALONE:  # a marker may be preceded by any number of 0xFF
            end = at + (1 if kind == 0xFF else 2)
        else:
            end = at + 2 + int.from_bytes(file[at + 2 : at + 4])
        # JFIF's and Adobe's say what the colours mean
        known = kind not in range(_APP0 + 1, _APP0 + 16) and kind != _COM
        says = kind in _SAYS and file.startswith(_SAYS[kind], at + 4) and not (kind == _APP1 and upright)
        upright = upright or (kind == _APP1 and says)
        yield file[at:end] if known or says or kind == _APP14 else b""
        at = end

"""What of a PNG or JPEG file makes its pixels; the rest is cut off before anything unpacks it."""

from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_MOST_PARTS = 50_000
"""Chunks or segments of a file: 16 million pixels are written in about 6,000 chunks."""
_MOST_SCANS = 64
"""Of a JPEG file: a progressive one has about 10, and each may cost as much as the whole picture."""
_SOS, _EOI, _APP0, _APP14, _COM = 0xDA, 0xD9, 0xE0, 0xEE, 0xFE
_ALONE = (0x01, *range(0xD0, 0xD8))
"""Markers without a length."""


def essence(file: bytes) -> bytes:
    """A PNG or JPEG file without profiles, texts, previews and animation; any other file as it is.

    Raises:
        ValueError: it has more parts than any picture needs, or they do not follow each other.
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
        kind = file[at + 4 : at + 8]
        yield file[at:end] if kind in _PNG_KEPT else b""
        if kind == b"IEND":
            return
        at = end


def _jpeg_parts(file: bytes) -> Iterator[bytes]:
    """Each segment up to the first scan, nothing for one not kept; then all the rest."""
    at = 2
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
        yield file[at:end] if known or kind == _APP14 else b""
        at = end

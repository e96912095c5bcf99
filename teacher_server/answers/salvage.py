"""Reads what is whole out of a damaged store, page by page: https://www.sqlite.org/fileformat2.html.

Neither the header nor any tree has to be intact. A row counts if its checksum is right; one of version 1,
which has none, if it is a valid answer to its key; a teacher, if its identity is its description's digest; a
picture, if its digest is right. A name has nothing to be checked by, and is there to be read alone.
"""

import hashlib
import json
import math
import os
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from teacher_server.answers.layout import PAGE_SIZE
from teacher_server.answers.lock import beside
from teacher_server.answers.rows import Row, as_stored, checksum, is_sound, is_valid
from teacher_server.teachers.base import identity_of

_TABLE_LEAF = 0x0D
_WAL_HEADER_BYTES, _FRAME_HEADER_BYTES = 32, 24
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}

_Value = str | bytes | float | None
Salvaged = Row | tuple[str, str] | tuple[str, str, float] | tuple[bytes, bytes]
"""An answer; identity and description; identity, name and when it was served; digest and file."""


class _Malformed(Exception):
    """These bytes are no row."""


def table_of(row: Salvaged) -> str:
    """The table that a row belongs to."""
    if isinstance(row[0], bytes):
        return "pictures"
    return {2: "teachers", 3: "names"}.get(len(row), "answers")


def salvaged(store: Path) -> Iterator[Salvaged]:
    """The sound rows of a file and of its -wal, some perhaps more than once.

    Raises:
        OSError: the file cannot be opened.
    """
    with _Pages(store) as pages:
        for page in pages.leaves():
            for start in _cells(page):
                with suppress(_Malformed):
                    yield _row(_record(page, start, pages))


class _Pages:
    """The pages of a database and, where its -wal holds a newer one, that one."""

    def __init__(self, store: Path) -> None:
        self._file = os.open(store, os.O_RDONLY)
        try:
            self._wal = os.open(beside(store, "-wal"), os.O_RDONLY)
        except OSError:
            self._wal = -1
        self._number = math.ceil(os.fstat(self._file).st_size / PAGE_SIZE)
        self._newer = dict(self._frames())

    def __enter__(self) -> "_Pages":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        if self._wal >= 0:
            os.close(self._wal)

    def leaves(self) -> Iterator[bytes]:
        """All pages that could hold rows: of the file, as they are there, and of the -wal."""
        for number in range(1, self._number + 1):
            yield _read(self._file, (number - 1) * PAGE_SIZE)
        for offset in self._newer.values():
            yield _read(self._wal, offset)

    def newest(self, number: int) -> bytes:
        """A page, counted from 1; empty if there is none."""
        if number in self._newer:
            return _read(self._wal, self._newer[number])
        return _read(self._file, (number - 1) * PAGE_SIZE) if number > 0 else b""

    def _frames(self) -> Iterator[tuple[int, int]]:
        """Page numbers of the -wal's frames, but for those of an earlier use, and where the pages begin."""
        if self._wal < 0:
            return
        salt, at = b"", _WAL_HEADER_BYTES
        while len(header := _read(self._wal, at, _FRAME_HEADER_BYTES)) == _FRAME_HEADER_BYTES:
            salt = salt or header[8:16]
            if header[8:16] == salt:
                yield int.from_bytes(header[:4]), at + _FRAME_HEADER_BYTES
            at += _FRAME_HEADER_BYTES + PAGE_SIZE


def _read(file: int, offset: int, size: int = PAGE_SIZE) -> bytes:
    with suppress(OSError):  # a bad sector
        return os.pread(file, size, offset)
    return b""


def _cells(page: bytes) -> Iterator[int]:
    """Where the cells of a table's leaf begin; nothing for other pages."""
    for header in (0, 100):  # the first page has the file's header before its own
        if len(page) == PAGE_SIZE and page[header] == _TABLE_LEAF:
            number = int.from_bytes(page[header + 3 : header + 5])
            pointers = page[header + 8 : header + 8 + 2 * number]
            yield from (start for (start,) in struct.iter_unpack(">H", pointers[: len(pointers) // 2 * 2]))


def _record(page: bytes, start: int, pages: _Pages) -> list[_Value]:
    """The values of a cell's record.

    Raises:
        _Malformed: it is none.
    """
    payload = _payload(page, start, pages)
    end, at = _varint(payload, 0)
    kinds = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values = []
    for kind in kinds:
        value, at = _value(payload, at, kind)
        values.append(value)
    return values


def _payload(page: bytes, start: int, pages: _Pages) -> bytes:
    """A cell's payload, its overflow pages included."""
    size, at = _varint(page, start)
    _, at = _varint(page, at)  # the rowid
    most, least = PAGE_SIZE - 35, (PAGE_SIZE - 12) * 32 // 255 - 23
    if size <= most:
        return page[at : at + size]
    local = least + (size - least) % (PAGE_SIZE - 4)
    local = local if local <= most else least
    parts, missing = [page[at : at + local]], size - local
    following = int.from_bytes(page[at + local : at + local + 4])
    while missing > 0:
        page = pages.newest(following)
        if len(page) < PAGE_SIZE:
            raise _Malformed
        parts.append(page[4 : 4 + missing])
        missing -= PAGE_SIZE - 4
        following = int.from_bytes(page[:4])
    return b"".join(parts)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[at : at + 9]):
        if i == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    raise _Malformed


def _value(payload: bytes, at: int, kind: int) -> tuple[_Value, int]:
    if kind in (0, 8, 9):
        return (None if kind == 0 else float(kind - 8)), at
    size = _INTEGER_BYTES.get(kind, 8 if kind == 7 else (kind - 12) // 2)
    data = payload[at : at + size]
    if len(data) < size or kind in (10, 11):
        raise _Malformed
    if kind >= 12:
        try:
            return (data.decode() if kind % 2 else data), at + size
        except UnicodeDecodeError as error:
            raise _Malformed from error
    # A whole number in a REAL column is kept as an integer
    return (
        struct.unpack(">d", data)[0] if kind == 7 else float(int.from_bytes(data, signed=True))
    ), at + size


def _row(values: list[_Value]) -> Salvaged:
    """The values as a row of ours.

    Raises:
        _Malformed: they are none, or not sound.
    """
    match values:
        case [str(identity), str(description)]:
            if _is_teacher(identity, description):
                return identity, description
        case [bytes(digest), bytes(file)]:
            if hashlib.sha256(file).digest() == digest:
                return digest, file
        case [str(identity), str(name), float(served)]:
            return identity, name, served
        case [str(i), bytes(p), str(m), str(t), str(a), str(answer), float(created), *rest]:
            now = time.time()
            created = created if 0 <= created <= now else now
            match rest:
                case [bytes(kept)] if is_sound(i, p, m, t, a, answer, kept):
                    return i, p, m, t, a, answer, created, kept
                case [] if is_valid(i, a, answer):
                    return i, p, m, t, a, answer, created, checksum(i, p, m, t, a, answer)
    raise _Malformed


def _is_teacher(identity: str, description: str) -> bool:
    try:
        told = json.loads(description)
        return identity_of(told) == identity and as_stored(told) == description
    except (ValueError, TypeError, KeyError, RecursionError):
        return False

"""A stored answer: its key, its row, its checksum, and whether it is valid for its key."""

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from teacher_api.schemas import Answer


@dataclass(frozen=True)
class Key:
    """Everything that an answer depends on."""

    identity: str
    picture: bytes
    mission: str
    task: str
    actions: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, bytes, str, str, str]:
        """The columns of the primary key, in order."""
        return self.identity, self.picture, self.mission, self.task, ",".join(self.actions)


Row = tuple[str, bytes, str, str, str, str, float, bytes]
"""The columns of an answer, in order: those of the key, then answer, created, checksum."""


def row_of(key: Key, answer: str, created: float) -> Row:
    """Returns the row of an answer (JSON) given at `created`, in seconds since 1970."""
    columns = key.columns
    return *columns, answer, created, checksum(*columns, answer)


def checksum(*columns: str | bytes) -> bytes:
    """Returns the first 8 bytes of the columns' `digest` (key and answer)."""
    return digest(*columns)[:8]


def digest(*columns: str | bytes) -> bytes:
    """Returns the SHA-256 of columns, preceded by their lengths in bytes."""
    parts = [column if isinstance(column, bytes) else column.encode() for column in columns]
    lengths = struct.pack(f">{len(parts)}I", *map(len, parts))
    return hashlib.sha256(lengths + b"".join(parts)).digest()


def is_sound(*columns: str | bytes) -> bool:
    """Returns whether the last column is the checksum of the columns before it."""
    *content, stored = columns
    return checksum(*content) == stored


def is_valid(identity: str | bytes, actions: str | bytes, answer: str | bytes) -> bool:
    """Returns whether the text is the teacher's complete answer about the actions (names with commas)."""
    try:
        read = Answer.model_validate_json(answer)
        return read.teacher == _text(identity) and ",".join(read.probabilities or ()) == _text(actions)
    except (ValidationError, UnicodeDecodeError):
        return False


def as_stored(description: dict[str, Any]) -> str:
    """Returns a teacher's description as stored: JSON with sorted keys."""
    return json.dumps(description, sort_keys=True)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()

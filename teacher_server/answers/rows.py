"""What a stored answer is: its key, its row, its checksum, and when it is a valid answer to its key."""

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from teacher_api.schemas import Answer


@dataclass(frozen=True)
class Key:
    """What an answer depends on, and nothing else."""

    identity: str
    picture: bytes
    mission: str
    task: str
    actions: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, bytes, str, str, str]:
        """The primary key's columns, in order."""
        return self.identity, self.picture, self.mission, self.task, ",".join(self.actions)


Row = tuple[str, bytes, str, str, str, str, float, bytes]
"""The columns of an answer, in order: the key's, then answer, created, checksum."""


def row_of(key: Key, answer: str, created: float) -> Row:
    """The row of an answer (JSON), given at `created` seconds since 1970."""
    columns = key.columns
    return *columns, answer, created, checksum(*columns, answer)


def checksum(*columns: str | bytes) -> bytes:
    """Eight bytes of the SHA-256 of an answer's key columns and its text, after their lengths in bytes."""
    parts = [column if isinstance(column, bytes) else column.encode() for column in columns]
    lengths = struct.pack(f">{len(parts)}I", *map(len, parts))
    return hashlib.sha256(lengths + b"".join(parts)).digest()[:8]


def is_sound(*columns: str | bytes) -> bool:
    """Whether the last column is the checksum of those before."""
    *summed, kept = columns
    return checksum(*summed) == kept


def is_valid(identity: str | bytes, actions: str | bytes, answer: str | bytes) -> bool:
    """Whether the text is a whole answer of that teacher about these actions (names with commas between)."""
    try:
        read = Answer.model_validate_json(answer)
        return read.teacher == _text(identity) and ",".join(read.probabilities or ()) == _text(actions)
    except (ValidationError, UnicodeDecodeError):
        return False


def as_stored(description: dict[str, Any]) -> str:
    """A teacher's description as it is stored: JSON."""
    return json.dumps(description, sort_keys=True)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()

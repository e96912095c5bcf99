"""An endless supply of request bodies: real pictures, each in a file of its own, with some repeats."""

import base64
import json
import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

from teacher_tools.bench.questions import distinct_questions

_PICTURES = 2000
_REPEATS = 0.1
"""The share of questions that were asked before."""
_AFTER_HEADER = 33
"""The offset of the first chunk after a PNG file's header, in bytes."""


class Bodies:
    """Questions in the form of /policy."""

    def __init__(self, kept: Path, seed: int = 0) -> None:
        if not kept.exists():
            questions = [question.model_dump(mode="json") for question in distinct_questions(_PICTURES)]
            part = kept.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(questions))
            part.replace(kept)
        self.questions: list[dict[str, Any]] = json.loads(kept.read_text())
        self._pictures = [base64.b64decode(question["image"]) for question in self.questions]
        self._rng = random.Random(seed)
        self._asked: list[int] = []

    def question(self) -> dict[str, Any]:
        """Returns a question; nine of ten are new to every teacher."""
        if self._asked and self._rng.random() < _REPEATS:
            number = self._rng.choice(self._asked)
        else:
            number = len(self._asked)
            self._asked.append(number)
        which = number % len(self.questions)
        picture = with_text(self._pictures[which], str(number))
        return self.questions[which] | {"image": base64.b64encode(picture).decode()}

    def body(self) -> bytes:
        """Returns a question as JSON."""
        return json.dumps(self.question()).encode()


def with_text(png: bytes, text: str) -> bytes:
    """Returns the same picture as another file: a teacher identifies a picture by its file's digest."""
    return png[:_AFTER_HEADER] + chunk(b"tEXt", b"number\0" + text.encode()) + png[_AFTER_HEADER:]


def chunk(kind: bytes, data: bytes) -> bytes:
    """Returns a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

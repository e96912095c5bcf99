"""Writes files: atomically, so that a reader sees the old or the new content, and with one error message."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from teacher_api.command_line import CannotStart


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file atomically; see `write_whole`."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes a file atomically, even if the disk is full or the power fails.

    Raises:
        OSError: the file cannot be written; the previous file is intact.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def writing(setting: str, path: Path) -> Iterator[None]:
    """Reports an OSError of a `with` block that writes to a setting's file or folder.

    Raises:
        CannotStart: names the setting, the path and the reason.
    """
    try:
        yield
    except OSError as error:
        raise CannotStart(f"`{setting}`: cannot write to {path}: {error.strerror or error}") from error

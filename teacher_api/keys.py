"""Reads API keys from files."""

import hashlib
from pathlib import Path

from teacher_api.command_line import CannotStart


class BadKeyFile(CannotStart):
    """A file of keys cannot be used; the message says what to do."""


def read_key(path: Path | None) -> str | None:
    """Returns the only key in a file; None without a file, or for a file without keys.

    Raises:
        BadKeyFile: the file cannot be read, or holds several keys or something else.
    """
    keys = read_keys(path) if path is not None else {}
    if len(keys) > 1:
        raise BadKeyFile(f"{path} holds {len(keys)} keys: give a file with one key")
    return next(iter(keys), None)


def read_keys(path: Path) -> dict[str, str]:
    """Returns the keys in a file, one per line, with their names: the text after ` #`, else a digest.

    Empty lines, lines that begin with # and white space around a key are ignored.

    Raises:
        BadKeyFile: the file cannot be read, or a line holds other characters than printable ASCII.
    """
    try:
        lines = path.read_bytes().decode("latin-1").split("\n")
    except OSError as error:
        raise BadKeyFile(
            f"cannot read the key in {path}: {error.strerror}; give a file with the key"
        ) from error
    keys = {}
    for number, line in enumerate(lines, 1):
        key, _, name = (part.strip(" \t\r") for part in line.partition(" #"))
        if not key or key.startswith("#"):
            continue
        if not is_key(key):
            raise BadKeyFile(
                f"{path} has no key in line {number}: write printable ASCII characters, one key per line"
            )
        keys[key] = name or f"key-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return keys


def is_key(text: str) -> bool:
    """Returns whether a text can be a key: one line of printable ASCII, not empty, not padded."""
    return bool(text) and text.isascii() and text.isprintable() and text == text.strip()

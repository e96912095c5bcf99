"""The keys that a teacher's requests have to bear: what they are, and the files that hold them."""

import hashlib
from pathlib import Path

from teacher_api.command_line import CannotStart


class BadKeyFile(CannotStart):
    """A file that no key can be read from, and what to do."""


def read_key(path: Path | None) -> str | None:
    """The one key in a file; None without a file, or where it holds none.

    Raises:
        BadKeyFile: it cannot be read, or holds something else than one key.
    """
    keys = read_keys(path) if path is not None else {}
    if len(keys) > 1:
        raise BadKeyFile(f"{path} holds {len(keys)} keys: give a file that holds the one to bear")
    return next(iter(keys), None)


def read_keys(path: Path) -> dict[str, str]:
    """The keys in a file, one a line, and who bears each: what stands behind ` #`, or else a digest.

    Empty lines and those that begin with # count for nothing, nor does white space around a key.

    Raises:
        BadKeyFile: it cannot be read, or a line holds something else than printable ASCII.
    """
    try:
        lines = path.read_bytes().decode("latin-1").split("\n")
    except OSError as error:
        raise BadKeyFile(
            f"cannot read the key in {path}: {error.strerror}; give a file that holds it"
        ) from error
    keys = {}
    for number, line in enumerate(lines, 1):
        key, _, name = (part.strip(" \t\r") for part in line.partition(" #"))
        if not key or key.startswith("#"):
            continue
        if not is_key(key):
            raise BadKeyFile(
                f"{path} holds no key in line {number}: write printable ASCII characters, one key a line"
            )
        keys[key] = name or f"key-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return keys


def is_key(text: str) -> bool:
    """Whether a text can be a key: one line of printable ASCII, not empty, no space at its ends."""
    return bool(text) and text.isascii() and text.isprintable() and text == text.strip()

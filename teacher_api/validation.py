"""Validation errors in words: settings, files and requests report them alike."""

import json
import re
import reprlib
from collections.abc import Iterable

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_MOST = 5
_values = reprlib.Repr()  # a client may send values of any length
_values.maxstring = _values.maxother = 80
_WITH_VALUE = frozenset({"value_error", "too_short", "too_long"})
"""Errors whose message already has the value, or whose value would not help."""


def problems(error: ValidationError) -> list[ErrorDetails]:
    """The errors, without those of defaults that depend on a field in error."""
    return [each for each in error.errors(include_url=False) if each["type"] != "default_factory_not_called"]


def in_words(error: ValidationError) -> str:
    """The first errors in one line, each as `sentence` words it."""
    found = problems(error)
    more = [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
    return "; ".join([*map(sentence, found[:_MOST]), *more])


def sentence(problem: ErrorDetails, field: str | None = None) -> str:
    """One error as "field: reason, not value".

    Args:
        field: the name to print; None: its path, with dots.
    """
    name = path(problem["loc"]) if field is None else field
    if problem["type"] == "missing":
        return f"{name} is missing"
    if problem["type"] == "extra_forbidden":
        return f"{name}: no such key; correct its name or leave it out"
    value = "" if problem["type"] in _WITH_VALUE else f", not {_values.repr(problem['input'])}"
    return f"{name}: {reason(problem)}{value}".removeprefix(": ")


def reason(problem: ErrorDetails) -> str:
    """The message alone."""
    return problem["msg"].removeprefix("Value error, ")


def path(loc: Iterable[int | str]) -> str:
    """A field within others, as TOML writes it: a.b.0, or a."b c"."""
    parts = (str(part) for part in loc if part != "[key]")
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part) for part in parts)

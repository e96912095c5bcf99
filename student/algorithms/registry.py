"""The algorithms that a run can learn by; another one is a subclass of `Algorithm` and a line here."""

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from student.algorithms.base import Algorithm

from student.settings import ALGORITHMS


def algorithm(name: str) -> "type[Algorithm]":
    """The algorithm with this name."""
    module, _, kind = ALGORITHMS[name].partition(":")
    return cast("type[Algorithm]", getattr(import_module(module), kind))

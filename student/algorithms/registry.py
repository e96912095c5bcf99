"""Algorithms by name; a further one is a subclass of `Algorithm` and a line in `settings.ALGORITHMS`."""

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from student.algorithms.base import Algorithm

from student.settings import ALGORITHMS


def algorithm(name: str) -> "type[Algorithm]":
    """Returns the class of an algorithm."""
    module, _, kind = ALGORITHMS[name].partition(":")
    return cast("type[Algorithm]", getattr(import_module(module), kind))

"""The algorithms that a run can learn by; another one is a subclass of `Algorithm` and a line here."""

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:  # names must be known to the flags, which answer before torch is loaded
    from student.update import Algorithm

ALGORITHMS = {"ppo": "student.ppo:PPO", "a2c": "student.a2c:A2C", "dqn": "student.dqn:DQN"}
"""Their classes, by their names for --algo."""


def algorithm(name: str) -> "type[Algorithm]":
    """The algorithm with this name."""
    module, _, kind = ALGORITHMS[name].partition(":")
    return cast("type[Algorithm]", getattr(import_module(module), kind))

"""The labels that a teacher did not give: how many, and why, by reason."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from teacher_api.schemas import ErrorBody

_NO_PROBABILITIES = ErrorBody(status=200, reason="the answer holds no probabilities")
_MOST_KINDS = 100
"""Kinds that are told apart; the others are counted together."""
_OTHER = "other reasons"
_EARLIER = "reasons that an earlier version did not keep"


@dataclass
class _Kind:
    count: int
    row: int
    """The first of its states, so that the example is the same in whatever order answers come."""
    example: str


class Failures:
    """Counts states without a label by what their errors have in common."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def __len__(self) -> int:
        return sum(kind.count for kind in self._kinds.values())

    def add(self, row: int, error: ErrorBody | None) -> None:
        """Counts a state; None: it was answered, without probabilities."""
        error = error or _NO_PROBABILITIES
        name = error.kind
        if name not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            name = _OTHER
        kind = self._kinds.setdefault(name, _Kind(0, row, error.reason))
        kind.count += 1
        if row < kind.row:
            kind.row, kind.example = row, error.reason

    def report(self) -> list[dict[str, Any]]:
        """For summary.json, the commonest first."""
        kinds = sorted(self._kinds.items(), key=lambda item: (-item[1].count, item[0]))
        return [{"reason": name, "count": kind.count, "example": kind.example} for name, kind in kinds]

    @property
    def example(self) -> str:
        """What the teacher said of one of the commonest kind; empty without any."""
        return next((each["example"] for each in self.report()), "")

    def __str__(self) -> str:
        """The commonest, as "1,100 x 422 mission: the mission '…' names no key, 72 x 504: ..."."""
        return in_words(self.report())

    def state(self) -> dict[str, dict[str, Any]]:
        """For a checkpoint."""
        return {name: asdict(kind) for name, kind in self._kinds.items()}

    def restore(self, state: Mapping[str, Mapping[str, Any]] | None, failed: int) -> None:
        """Goes on from a checkpoint.

        Args:
            state: None: of a version that kept none.
            failed: how many there are.
        """
        if state is None:
            state = {_EARLIER: {"count": failed, "row": 0, "example": ""}} if failed else {}
        self._kinds = {name: _Kind(**kind) for name, kind in state.items()}


def in_words(report: list[dict[str, Any]], most: int = 3) -> str:
    """The commonest reasons of a `Failures.report`."""
    told = [f"{each['count']:,} x {each['reason']}" for each in report[:most]]
    others = sum(each["count"] for each in report[most:])
    return ", ".join([*told, f"{others:,} x other reasons"] if others else told)

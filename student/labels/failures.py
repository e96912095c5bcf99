"""States without a label, counted by the reason that the teacher gave."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from teacher_api.failures import in_words
from teacher_api.schemas import ErrorBody

_NO_PROBABILITIES = ErrorBody(status=200, reason="the answer holds no probabilities")
_MOST_KINDS = 100
"""Kinds of error that are counted apart; further kinds are counted together."""
_OTHER = "other reasons"
_EARLIER = "reasons that an earlier version did not keep"


@dataclass
class _Kind:
    count: int
    row: int
    """The lowest row, so that the example does not depend on the order in which answers arrive."""
    example: str


class Failures:
    """Counts states without a label by the kind of their error."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def __len__(self) -> int:
        return sum(kind.count for kind in self._kinds.values())

    def add(self, row: int, error: ErrorBody | None) -> None:
        """Counts a state; without an error its answer held no probabilities."""
        error = error or _NO_PROBABILITIES
        name = error.kind
        if name not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            name = _OTHER
        kind = self._kinds.setdefault(name, _Kind(0, row, error.reason))
        kind.count += 1
        if row < kind.row:
            kind.row, kind.example = row, error.reason

    def report(self) -> list[dict[str, Any]]:
        """Returns reason, count and an example of each kind, the most frequent first, for summary.json."""
        kinds = sorted(self._kinds.items(), key=lambda item: (-item[1].count, item[0]))
        return [{"reason": name, "count": kind.count, "example": kind.example} for name, kind in kinds]

    @property
    def example(self) -> str:
        """The teacher's reason for a state of the most frequent kind; empty without failures."""
        return next((each["example"] for each in self.report()), "")

    def __str__(self) -> str:
        """Returns the most frequent kinds, as "1,100 x 422 mission: the mission '…' names no key, ..."."""
        return in_words({name: kind.count for name, kind in self._kinds.items()}, 3)

    def state(self) -> dict[str, dict[str, Any]]:
        """Returns the counts for a checkpoint."""
        return {name: asdict(kind) for name, kind in self._kinds.items()}

    def restore(self, state: Mapping[str, Mapping[str, Any]] | None, failed: int) -> None:
        """Restores the counts of a checkpoint.

        Args:
            state: None in checkpoints of versions that kept no reasons.
            failed: the number of failures.
        """
        if state is None:
            state = {_EARLIER: {"count": failed, "row": 0, "example": ""}} if failed else {}
        self._kinds = {name: _Kind(**kind) for name, kind in state.items()}

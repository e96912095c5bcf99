"""Where a run came to, compared bit for bit with where another came to."""

import json
from pathlib import Path
from typing import Any

import torch


def checkpoint(run: Path) -> dict[str, Any]:
    """A run's newest checkpoint."""
    state: dict[str, Any] = torch.load(max((run / "checkpoints").glob("*.pt")), weights_only=True)
    return state


def metrics(run: Path) -> list[dict[str, Any]]:
    """What was logged, without what depends on the clock, or on what others asked the teacher before."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            name: value
            for name, value in row.items()
            if name not in ("frames_per_second", "questions", "store_hits")
        }
        | {"labels": row["questions"] + row["store_hits"]}
        for row in rows
    ]


def assert_same_end(one: Path, other: Path) -> None:
    """Bit for bit: parameters, optimiser, random numbers, episodes, labels, logged figures."""
    a, b = checkpoint(one), checkpoint(other)
    for name in ("env", "frames", "updates", "rng", "episodes", "recent", "words"):
        assert a[name] == b[name], name
    _assert_equal(a["network"], b["network"])
    _assert_equal(a["algorithm"], b["algorithm"])
    _assert_equal(a["replay"], b["replay"])
    if a["labels"] is not None:
        for name in ("keys", "probabilities", "status"):
            assert torch.equal(a["labels"][name], b["labels"][name]), name
    assert metrics(one) == metrics(other)


def _assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            _assert_equal(a[name], b[name])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _assert_equal(x, y)
    else:
        assert a == b

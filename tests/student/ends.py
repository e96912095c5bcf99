"""The results of two runs, compared bit for bit."""

import json
from pathlib import Path
from typing import Any

import torch

_VARYING = ("seconds", "frames_per_second", "questions", "store_hits")
"""Figures that depend on the clock, or on what was asked before; questions and hits have a fixed sum."""


def checkpoint(run: Path) -> dict[str, Any]:
    """Returns a run's newest checkpoint."""
    state: dict[str, Any] = torch.load(max((run / "checkpoints").glob("*.pt")), weights_only=True)
    return state


def metrics(run: Path) -> list[dict[str, Any]]:
    """Returns the logged rows, with the sum of questions and store hits as "labels"."""
    return [_fixed(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


def summary(run: Path) -> dict[str, Any]:
    """Returns summary.json, with the sum of questions and store hits as "labels"."""
    return _fixed(json.loads((run / "summary.json").read_text()))


def _fixed(figures: dict[str, Any]) -> dict[str, Any]:
    labels = figures["questions"] + figures["store_hits"]
    return {name: value for name, value in figures.items() if name not in _VARYING} | {"labels": labels}


def assert_same_end(one: Path, other: Path) -> None:
    """Compares parameters, optimisers, random numbers, episodes, labels, logged figures and summaries."""
    a, b = checkpoint(one), checkpoint(other)
    for name in ("env", "frames", "updates", "rng", "episodes", "recent", "words"):
        assert a[name] == b[name], name
    _assert_equal(a["network"], b["network"])
    _assert_equal(a["algorithm"], b["algorithm"])
    _assert_equal(a["replay"], b["replay"])
    _assert_equal(a["experience"], b["experience"])
    _assert_equal(a["rewards"], b["rewards"])
    if a["labels"] is not None:
        for name in ("keys", "probabilities", "status"):
            assert torch.equal(a["labels"][name], b["labels"][name]), name
    assert metrics(one) == metrics(other)
    assert summary(one) == summary(other)


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

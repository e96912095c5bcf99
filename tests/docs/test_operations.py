"""Every figure is explained, and the dashboard shows none that there is not."""

import json
import re
from pathlib import Path

import pytest

from teacher_server.service.metrics import Metrics

pytestmark = pytest.mark.unit

_DOCS = Path(__file__).parents[2] / "docs"
_SUFFIXES = ("_total", "_info", "_bucket")


def _figures() -> set[str]:
    """The names of the service's figures, without what Prometheus puts behind them."""
    return {metric.name for metric in Metrics().registry.collect()}


def _named_in(text: str) -> set[str]:
    names = re.findall(r"\bteacher_[a-z_]+", text)
    for suffix in _SUFFIXES:
        names = [name.removesuffix(suffix) for name in names]
    return set(names)


def test_every_figure_is_explained_and_no_other() -> None:
    """The page generates the meaning of each metric; what to do about it is written by hand."""
    table = (_DOCS / "reference/metrics.md").read_text().split("### What to do")[1].split("\n## ")[0]
    explained = _named_in(table)
    assert explained == _figures()


def test_the_dashboard_shows_every_figure_and_no_other() -> None:
    panels = json.loads((_DOCS / "assets/grafana.json").read_text())["panels"]
    shown = set().union(*(_named_in(target["expr"]) for panel in panels for target in panel["targets"]))
    assert shown == _figures()

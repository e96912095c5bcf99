"""How far a sweep is: a live table on a terminal, elsewhere a line for each run that ends."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from student.experiments.plans import PlannedRun
from teacher_api.terminal import duration

_TAIL = 2**16
"""Bytes of a log's end that hold its last updates and most often its last evaluation."""
_EVERY_S = 1.0
_LINE_EVERY_S = 30.0


@dataclass
class _Standing:
    """Where one run stands."""

    run: PlannedRun
    frames_in_all: int
    state: str = "waiting"
    frames: int = 0
    frames_per_second: float | None = None
    success: float | None = None
    failed: int = 0
    """States without a label."""


class Progress:
    """Follows the runs of a sweep by what they write into their folders, wherever they run."""

    def __init__(self, folder: Path, frames: Mapping[PlannedRun, int], shown: bool) -> None:
        """Finds out how far the runs are already.

        Args:
            folder: of all runs.
            frames: what each run is to train for.
            shown: on a terminal as a table, elsewhere as lines; False: not at all.
        """
        self._folder, self._shown = folder, shown
        self._standings = {run.name: _Standing(run, number) for run, number in frames.items()}
        self._others: set[str] = set()
        """Tasks under way that are no runs."""
        for name, standing in self._standings.items():
            if (folder / name / "summary.json").exists():
                self._finish(name)
            else:
                _follow(standing, last_rows(folder / name / "metrics.jsonl"))
        self._began, self._frames_before = time.monotonic(), self._frames_done()
        self._refreshed = self._began
        self._live: Live | None = None
        console = Console()
        if shown and console.is_terminal:
            self._live = Live(self._table(), console=console, auto_refresh=False)
            self._live.start()

    @property
    def count(self) -> int:
        """Runs that are done."""
        return sum(standing.state == "done" for standing in self._standings.values())

    def started(self, name: str) -> None:
        if name in self._standings:
            self._standings[name].state = "running"
        else:
            self._others.add(name)

    def stopped(self, name: str) -> None:
        """It goes on later."""
        if name in self._standings:
            self._standings[name].state = "waiting"
        self._others.discard(name)

    def done(self, name: str) -> None:
        self._others.discard(name)
        if name not in self._standings:
            return
        standing = self._finish(name)
        failed = f"; {standing.failed} states without a label" if standing.failed else ""
        self._say(f"{name}: success {standing.success:.2f} after {standing.frames} frames{failed}")

    def failed(self, name: str, why: str) -> None:
        self._others.discard(name)
        if name in self._standings:
            self._standings[name].state = "failed"
        self._say(f"{name} failed: {why}")

    def refresh(self) -> None:
        """Brings the table up to date, once a second; without a terminal writes a line now and then."""
        every_s = _LINE_EVERY_S if self._live is None else _EVERY_S
        if not self._shown or time.monotonic() - self._refreshed < every_s:
            return
        for name, standing in self._standings.items():
            if standing.state == "running":
                _follow(standing, last_rows(self._folder / name / "metrics.jsonl"))
        self._refreshed = time.monotonic()
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        states = [standing.state for standing in self._standings.values()]
        frames, in_all = self._frames_done(), sum(each.frames_in_all for each in self._standings.values())
        told = f"{states.count('running')} under way, {frames:,} of {in_all:,} frames"
        self._say("the teachers play first" if self._others else told)

    def close(self) -> None:
        """Leaves the table as it stands."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def _say(self, what: str) -> None:
        if self._shown and self._live is None:
            self._refreshed = time.monotonic()
            print(f"{self.count}/{len(self._standings)} {what}; {self._left()}", flush=True)

    def _finish(self, name: str) -> _Standing:
        summary = json.loads((self._folder / name / "summary.json").read_text(encoding="utf-8"))
        standing = self._standings[name]
        standing.state, standing.frames = "done", summary["frames"]
        standing.success, standing.frames_per_second = summary["success"], summary["frames_per_second"]
        standing.failed = summary.get("failed", 0)
        return standing

    def _frames_done(self) -> int:
        return sum(standing.frames for standing in self._standings.values())

    def _left(self) -> str:
        """How long it will take, at the speed so far."""
        seconds, frames = time.monotonic() - self._began, self._frames_done() - self._frames_before
        left = sum(
            max(0, standing.frames_in_all - standing.frames)
            for standing in self._standings.values()
            if standing.state in ("waiting", "running")
        )
        if left == 0:
            return "nothing left"
        return f"about {duration(left * seconds / frames)} left" if frames > 0 else "time left not known yet"

    def _table(self) -> Table:
        left = "the teachers play first" if self._others else self._left()
        table = Table(title=f"{self.count} of {len(self._standings)} runs done; {left}")
        for name in ("arm", "algorithm", "environment"):
            table.add_column(name)
        for name in ("done", "running", "failed", "success", "frames/s"):
            table.add_column(name, justify="right")
        groups: dict[tuple[str, str, str], list[_Standing]] = {}
        for standing in self._standings.values():
            run = standing.run
            groups.setdefault((run.arm, run.algo, run.env), []).append(standing)
        for (arm, algo, env), members in groups.items():
            states = [standing.state for standing in members]
            table.add_row(
                *(arm, algo, env),
                f"{states.count('done')}/{len(members)}",
                str(states.count("running") or ""),
                str(states.count("failed") or ""),
                _mean((standing.success for standing in members), 2),
                _mean((standing.frames_per_second for standing in members), 0),
            )
        return table


def last_rows(log: Path) -> list[dict[str, Any]]:
    """The last whole lines of a metrics.jsonl; none where there is none yet."""
    try:
        with log.open("rb") as file:
            start = max(0, file.seek(0, 2) - _TAIL)
            file.seek(start)
            lines = file.read().split(b"\n")[:-1]  # what follows the last newline is being written
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in (lines[1:] if start else lines)]


def _follow(standing: _Standing, rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        standing.frames, standing.frames_per_second = row["frames"], row["frames_per_second"]
        standing.success = row.get("evaluation_success", standing.success)


def _mean(values: Iterable[float | None], decimals: int) -> str:
    known = [value for value in values if value is not None]
    return f"{mean(known):.{decimals}f}" if known else ""

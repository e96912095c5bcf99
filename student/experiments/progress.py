"""The progress of a sweep: a live table on a terminal, elsewhere a line for each run that ends."""

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.live import Live
from rich.table import Table

from student.experiments.plans import PlannedRun
from student.runs.metrics import read_metrics
from teacher_api.terminal import duration

_TAIL = 2**16
"""Bytes at the end of metrics.jsonl that usually hold the last evaluation."""
_EVERY_S = 1.0
_LINE_EVERY_S = 30.0
_TEACHERS_FIRST = "evaluating the teachers first"


@dataclass
class _RunProgress:
    """The progress of one run."""

    planned: PlannedRun
    frames_planned: int
    state: str = "waiting"
    frames: int = 0
    frames_per_second: float | None = None
    success: float | None = None
    failed: int = 0
    """States without an answer of the teacher."""


class SweepProgress:
    """Follows the runs of a sweep by the files in their folders, on whichever machine they run."""

    def __init__(self, folder: Path, frames: Mapping[PlannedRun, int], shown: bool) -> None:
        """Reads the progress that the runs have made so far.

        Args:
            folder: the folder that contains all runs.
            frames: the frames that each run trains for.
            shown: print the progress, as a table on a terminal and as lines elsewhere.
        """
        self._folder, self._shown = folder, shown
        self._runs = {planned.name: _RunProgress(planned, number) for planned, number in frames.items()}
        self._others: set[str] = set()
        """Jobs in progress that are not runs."""
        for name, run in self._runs.items():
            if (folder / name / "summary.json").exists():
                self._finish(name)
            else:
                _follow(run, folder / name)
        self._began, self._frames_before = time.monotonic(), self._frames_done()
        self._refreshed = self._began
        self._live: Live | None = None
        console = Console()
        if shown and console.is_terminal:
            self._live = Live(self._table(), console=console, auto_refresh=False)
            self._live.start()

    @property
    def count(self) -> int:
        """The number of finished runs."""
        return sum(run.state == "done" for run in self._runs.values())

    def started(self, name: str) -> None:
        """Marks a job as running."""
        if name in self._runs:
            self._runs[name].state = "running"
        else:
            self._others.add(name)

    def interrupted(self, name: str) -> None:
        """Marks a job as interrupted; the job is started again later."""
        if name in self._runs:
            self._runs[name].state = "waiting"
        self._others.discard(name)

    def done(self, name: str) -> None:
        """Marks a job as finished."""
        self._others.discard(name)
        if name not in self._runs:
            return
        run = self._finish(name)
        failed = f"; {run.failed} states without an answer" if run.failed else ""
        self._say(f"{name}: success {run.success:.2f} after {run.frames} frames{failed}")

    def failed(self, name: str, why: str) -> None:
        """Marks a job as failed."""
        self._others.discard(name)
        if name in self._runs:
            self._runs[name].state = "failed"
        self._say(f"{name} failed: {why}")

    def refresh(self) -> None:
        """Updates the table, at most once a second, or without a terminal prints a line every 30 seconds."""
        every_s = _LINE_EVERY_S if self._live is None else _EVERY_S
        if not self._shown or time.monotonic() - self._refreshed < every_s:
            return
        for name, run in self._runs.items():
            if run.state == "running":
                _follow(run, self._folder / name)
        self._refreshed = time.monotonic()
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        states = [run.state for run in self._runs.values()]
        frames, planned = self._frames_done(), sum(each.frames_planned for each in self._runs.values())
        running = f"{states.count('running')} running, {frames:,} of {planned:,} frames"
        self._say(_TEACHERS_FIRST if self._others else running)

    def close(self) -> None:
        """Stops updating the table."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def _say(self, what: str) -> None:
        if self._shown and self._live is None:
            self._refreshed = time.monotonic()
            print(f"{self.count}/{len(self._runs)} {what}; {self._left()}", flush=True)

    def _finish(self, name: str) -> _RunProgress:
        summary = json.loads((self._folder / name / "summary.json").read_text(encoding="utf-8"))
        run = self._runs[name]
        run.state, run.frames = "done", summary["frames"]
        run.success, run.frames_per_second = summary["success"], summary["frames_per_second"]
        run.failed = summary.get("failed", 0)
        return run

    def _frames_done(self) -> int:
        return sum(run.frames for run in self._runs.values())

    def _left(self) -> str:
        """Returns the remaining time at the average speed so far."""
        seconds, frames = time.monotonic() - self._began, self._frames_done() - self._frames_before
        left = sum(
            max(0, run.frames_planned - run.frames)
            for run in self._runs.values()
            if run.state in ("waiting", "running")
        )
        if left == 0:
            return "nothing left"
        return f"about {duration(left * seconds / frames)} left" if frames > 0 else "remaining time unknown"

    def _table(self) -> Table:
        left = _TEACHERS_FIRST if self._others else self._left()
        table = Table(title=f"{self.count} of {len(self._runs)} runs done; {left}")
        for name in ("arm", "algorithm", "environment"):
            table.add_column(name)
        for name in ("done", "running", "failed", "success", "frames/s"):
            table.add_column(name, justify="right")
        groups: dict[tuple[str, str, str], list[_RunProgress]] = {}
        for run in self._runs.values():
            planned = run.planned
            groups.setdefault((planned.arm, planned.algo, planned.env), []).append(run)
        for (arm, algo, env), members in groups.items():
            states = [run.state for run in members]
            table.add_row(
                *(arm, algo, env),
                f"{states.count('done')}/{len(members)}",
                str(states.count("running") or ""),
                str(states.count("failed") or ""),
                _mean((run.success for run in members), 2),
                _mean((run.frames_per_second for run in members), 0),
            )
        return table


def _follow(run: _RunProgress, folder: Path) -> None:
    """Updates the progress of a run from its metrics.jsonl, if the file exists yet."""
    with suppress(FileNotFoundError):
        for row in read_metrics(folder, last_bytes=_TAIL):
            run.frames, run.frames_per_second = row["frames"], row["frames_per_second"]
            run.success = row.get("evaluation_success", run.success)


def _mean(values: Iterable[float | None], decimals: int) -> str:
    known = [value for value in values if value is not None]
    return f"{mean(known):.{decimals}f}" if known else ""

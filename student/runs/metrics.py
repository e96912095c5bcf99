"""metrics.jsonl: one line of JSON for each logged update of a run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Required, TypedDict

METRICS_FILE = "metrics.jsonl"


class MetricsRow(TypedDict, total=False):
    """The figures of a row that are read again; the others stand in it too. None: undefined."""

    frames: Required[int]
    frames_per_second: float
    evaluation_success: float
    evaluation_return: float
    questions: int
    store_hits: int


class BadMetrics(ValueError):
    """A line cannot be read: it is damaged, or cut off."""

    def __init__(self, line: int, error: Exception) -> None:
        super().__init__(f"line {line}: {error}")
        self.line = line


def read_metrics(
    folder: Path, *, figure: str = "", last_bytes: int | None = None, complete: bool = False
) -> Iterator[MetricsRow]:
    """Yields the rows of a run, oldest first.

    Args:
        folder: the run's folder.
        figure: only rows that have this figure; other lines are not parsed: a run has thousands of them.
        last_bytes: only rows in so many bytes at the end of the file.
        complete: an unfinished last line is an error; else it is left out, since the run may be writing it.

    Raises:
        OSError: the file cannot be read.
        BadMetrics: a line cannot be read.
    """
    with (folder / METRICS_FILE).open("rb") as file:
        start = 0 if last_bytes is None else max(0, file.seek(0, 2) - last_bytes)
        file.seek(start)
        *lines, unfinished = file.read().split(b"\n")
    if complete and unfinished:
        lines.append(unfinished)
    for number, line in enumerate(lines, 1):
        if start and number == 1:
            continue  # it begins before the bytes that were read
        if f'"{figure}"'.encode() in line or not figure or (complete and number == len(lines)):
            try:
                row: MetricsRow = json.loads(line)
                if not figure or row.get(figure) is not None:
                    yield row
            except (ValueError, AttributeError) as error:
                raise BadMetrics(number, error) from error

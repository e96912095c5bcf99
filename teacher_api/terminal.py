"""Writes to stderr while a command works: its progress, what it waits for, and notes."""

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

_LINE_EVERY_S = 10.0
"""Seconds between two lines of progress without a terminal."""
_DRAW_EVERY_S = 0.1
_LEAST_BAR = 8
"""The least columns of a bar; figures that would leave fewer are not shown."""
_LOOK_EVERY_S = 0.2
_AGAIN_S = 5.0
"""Seconds between two lines about waiting."""
_SLOW_S = 10.0
"""Seconds before a line about a slow answer; doubled after each line."""

_speaker = ""
_flags: Mapping[str, str] = {}
_bar: "Bar | None" = None
"""The bar that is drawn on the terminal."""


def speak_as(command: str, flags: Mapping[str, str] | None = None) -> None:
    """Sets the command's name, which begins each line of `say`, and the flags of its settings.

    Args:
        flags: each field's flag.
    """
    global _speaker, _flags
    _speaker, _flags = f"{command}: ", flags or {}


def say(line: str) -> None:
    """Prints a line on stderr, above the bar.

    A setting's field in backticks is printed as its flag: `max_batch` as --max-batch.
    """
    line = _speaker + with_flags(line)
    if _bar is not None:
        _bar.write(line)
    else:
        print(line, file=sys.stderr, flush=True)


def with_flags(text: str) -> str:
    """Replaces settings in backticks by their flags, as `say` does."""
    return re.sub(r"`(\w+)`", lambda found: _flags.get(found[1], found[0]), text)


def duration(seconds: float) -> str:
    """Returns a duration in words, as 47 s, 12 min or 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def columns() -> int:
    """Returns the width of the terminal on stderr; 80 if unknown."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


class Bar:
    """Shows progress: a bar on a terminal, elsewhere a line every ten seconds."""

    def __init__(
        self, total: int | None, unit: str, *, name: str = "", done: int = 0, shown: bool = True
    ) -> None:
        """Args:
        total: the number of units; None: unknown.
        unit: the name of a unit in the plural, as "frames".
        name: the name of the work, printed first.
        done: the units that are done already.
        shown: False: nothing is printed.
        """
        self._total, self._unit, self._name = total, unit, f"{name}: " if name else ""
        self._first = self._done = done
        self._figures: Mapping[str, str] = {}
        self._shown, self._drawn = shown, shown and sys.stderr.isatty()
        self._tqdm: Any = None
        self._began = self._written = time.monotonic()

    def __enter__(self) -> Self:
        global _bar  # noqa: PLW0603
        if self._drawn:
            self._open()
            _bar = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _bar  # noqa: PLW0603
        if self._tqdm is not None:
            self._draw()
            self._tqdm.close()
            _bar = None

    def begin(self, total: int, *, name: str, done: int = 0) -> None:
        """Begins the next part of the work below the bar of the last part."""
        if self._tqdm is not None:
            self._draw()
            self._tqdm.close()
        self._total, self._name, self._first, self._done = total, f"{name}: ", done, done
        self._figures, self._began = {}, time.monotonic()
        if self._tqdm is not None:
            self._open()

    def _open(self) -> None:
        from tqdm import tqdm  # noqa: PLC0415  (the client needs no tqdm)

        self._tqdm = tqdm(
            total=self._total, initial=self._done, bar_format=self._format(), ncols=columns() - 1
        )

    def update(self, done: int | None = None, figures: Mapping[str, str] | None = None) -> None:
        """Shows new values; values that are not given stay.

        Args:
            figures: values by name, the most important first; those that do not fit the terminal are omitted.
        """
        if done is not None:
            self._done = done
        if figures is not None:
            self._figures = figures
        now = time.monotonic()
        if self._tqdm is not None and now - self._written > _DRAW_EVERY_S:
            self._draw()
            self._written = now
        elif self._shown and not self._drawn and now - self._written > _LINE_EVERY_S:
            say(self._line(now))
            self._written = now

    def write(self, line: str) -> None:
        """Prints a line above the bar."""
        self._tqdm.write(line, file=sys.stderr)

    def _draw(self) -> None:
        self._tqdm.ncols, self._tqdm.bar_format = columns() - 1, self._format()
        self._tqdm.n = self._done if self._total is None else min(self._done, self._total)
        self._tqdm.refresh()

    def _format(self) -> str:
        """Returns tqdm's format of the bar, with the figures that fit beside the bar."""
        width = columns() - 1
        counted = f"{self._done:,}" if self._total is None else f"{self._done:,}/{self._total:,}"
        unit = f" {self._unit}" if width >= 70 or self._total is None else ""
        if self._total is None:
            taken, before, after = len(f"{self._name}{counted}{unit} [00:00:00]"), "", " [{elapsed}]"
        else:
            times = " [{elapsed}<{remaining}]" if width >= 45 else ""
            taken = len(f"{self._name}100%|| {self._total:,}/{self._total:,}{unit}") + _LEAST_BAR
            taken += len(" [00:00<00:00]") if times else 0
            before, after = "{percentage:3.0f}%|{bar}| ", times
        shown = ""
        for name, value in self._figures.items():
            figure = f"{', ' if shown else ' '}{name} {value}".rstrip()
            if taken + len(shown) + len(figure) <= width:
                shown += figure
        name, shown = (text.replace("{", "{{").replace("}", "}}") for text in (self._name, shown))
        return f"{name}{before}{counted}{unit}{after}{shown}"

    def _line(self, now: float) -> str:
        line = f"{self._name}{self._done:,}"
        if self._total is not None:
            line += f" of {self._total:,} {self._unit} ({self._done / max(self._total, 1):.0%})"
            made = self._done - self._first
            if made > 0:
                left_s = (self._total - self._done) * (now - self._began) / made
                line += f", about {duration(left_s)} left"
        else:
            line += f" {self._unit}"
        figures = ", ".join(f"{name} {value}".strip() for name, value in self._figures.items())
        return f"{line}; {figures}" if figures else line


@dataclass(eq=False)
class _Wait:
    """The wait of a thread."""

    at_most_s: float | None
    silent_s: float
    began: float = field(default_factory=time.monotonic)


class Waiting:
    """Prints what a command waits for: after a second, and when the reason changes.

    Threads that wait for the same thing share an instance, and print one line together.
    """

    def __init__(self, what: str, *, say: Callable[[str], None] | None = say) -> None:
        """Args:
        what: the thing that is waited for, as "the teacher at http://127.0.0.1:8000".
        say: prints a line; None: nothing is printed.
        """
        self._what, self._say = what, say
        self._waits: set[_Wait] = set()
        self._lock = threading.Lock()
        self._reason = self._said = ""
        self._came_at = self._away_since = self._said_at = 0.0
        self._slow_s = _SLOW_S
        self._watched = False

    @contextmanager
    def for_it(self, at_most_s: float | None = None, *, slow: bool = False) -> Iterator[None]:
        """Reports while this thread waits, for the time of the block.

        Args:
            at_most_s: seconds after which the thread stops waiting.
            slow: the wait may be long, so that the first line without a reason comes later.
        """
        if self._say is None:
            yield
            return
        wait = _Wait(at_most_s, self._slow_s if slow else 1.0)
        with self._lock:
            self._waits.add(wait)
            if not self._watched:
                self._watched = True
                threading.Thread(target=self._watch, name="waiting", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._waits.discard(wait)

    def failed(self, reason: str) -> None:
        """Notes the reason for waiting."""
        with self._lock:
            self._reason = reason

    def came(self) -> None:
        """Notes that waiting is over, and reports that if a line about waiting was printed."""
        with self._lock:
            said, self._reason, self._said = self._said, "", ""
            self._came_at = time.monotonic()
        if said and self._say is not None:
            self._say(f"{self._what} answers after {self._came_at - self._away_since:.0f} s")

    def _watch(self) -> None:
        """Prints lines until no thread waits."""
        while True:
            time.sleep(_LOOK_EVERY_S)
            with self._lock:
                self._watched = bool(self._waits)
                line = self._due() if self._waits else None
            if line is not None and self._say is not None:
                self._say(line)
            if not self._watched:
                return

    def _due(self) -> str | None:
        """Returns the line to print now, or None."""
        oldest = min(self._waits, key=lambda wait: wait.began)
        silent_s = 1.0 if self._reason else min(wait.silent_s for wait in self._waits)
        now, since = time.monotonic(), max(oldest.began, self._came_at)
        reason = self._reason or "no answer yet"
        if now - since < silent_s or reason == self._said:
            return None
        if self._said and (not self._reason or now - self._said_at < _AGAIN_S):
            return None
        if not self._reason:
            self._slow_s *= 2
        still = "still " if self._said else ""
        self._said, self._said_at, self._away_since = reason, now, since
        left = ""
        if oldest.at_most_s is not None:
            gone_s, more = (now - oldest.began, " more") if still else (0.0, "")
            left = f", for {max(oldest.at_most_s - gone_s, 0):.0f} s{more} at most"
        return f"{still}waiting for {self._what}{left}: {reason}"

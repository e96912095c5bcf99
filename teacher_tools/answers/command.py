"""`teacher answers`: what a store holds, in and out of files, and less of it."""

import gzip
import json
import math
import os
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from teacher_api.command_line import CannotStart
from teacher_api.terminal import say
from teacher_server.answers.errors import StoreError, store_error
from teacher_server.answers.lock import beside
from teacher_server.answers.opening import open_existing, open_store
from teacher_server.answers.reading import known_teachers, names_of
from teacher_server.answers.size import bytes_in_use, delete, evict, give_back
from teacher_tools.answers.exchange import BadExport, export, import_
from teacher_tools.answers.settings import (
    ExportSettings,
    ImportSettings,
    PruneSettings,
    ShowSettings,
    StatsSettings,
)
from teacher_tools.answers.statistics import Figures, as_text, figures_of
from teacher_tools.answers.table import export_table, newest, printable

_LOCK_TIMEOUT_S = 30.0


def show(settings: ShowSettings) -> int:
    """Runs `teacher answers show`; returns 0."""
    width = shutil.get_terminal_size().columns
    with _store(settings.store) as connection:
        names = names_of(connection)
        blocks = []
        for identity in _chosen(connection, settings.identity):
            name = f" ({printable(names[identity])})" if identity in names else ""
            if lines := list(newest(connection, identity, settings.task, settings.limit, width)):
                blocks.append("\n".join([f"{identity}{name}", *lines]))
    about = f" about {settings.task}" if settings.task else ""
    print("\n\n".join(blocks) or f"no answers{about}")
    return 0


def export_answers(settings: ExportSettings) -> int:
    """Runs `teacher answers export`; returns 0."""
    with _store(settings.store) as connection:
        chosen = _chosen(connection, settings.identity)
        with _written_whole(settings.file) as out:
            if settings.as_csv:
                done = export_table(connection, out, chosen, settings.task, settings.pictures)
            else:
                done = export(connection, out, chosen)
    print(f"{_answers(done.written)} written", file=sys.stderr if settings.file == "-" else sys.stdout)
    if done.left_out:
        why = "they are damaged, or their teacher's description is missing"
        say(f"{_answers(done.left_out)} left out: {why}")
    return 0


def import_answers(settings: ImportSettings) -> int:
    """Runs `teacher answers import`; returns 0."""
    with _store(settings.store, make=True) as connection:
        for name in settings.files:
            try:
                with _opened(name) as file:
                    done = import_(connection, file)
            except (BadExport, gzip.BadGzipFile) as error:
                raise CannotStart(f"{name}: {error}; nothing of this file was taken over") from error
            except OSError as error:
                raise CannotStart(f"{name} cannot be read: {error.strerror or error}") from error
            differ = f"; {done.differ} of these differ in their probabilities and stay as they were"
            print(f"{name}: {done.new} new, {done.known} known{differ if done.differ else ''}")
    return 0


def stats(settings: StatsSettings) -> int:
    """Runs `teacher answers stats`; returns 0, or 1 if the store is damaged."""
    with _store(settings.store) as connection:
        figures = figures_of(connection, settings.store)
    print(json.dumps(figures.as_json(), indent=1) if settings.as_json else as_text(figures))
    return 0 if figures.sound else 1


def prune(settings: PruneSettings) -> int:
    """Runs `teacher answers prune`; returns 0."""
    with _store(settings.store) as connection:
        _have_to_be_known(connection, settings.identities)
        before = Figures.size_of(settings.store)
        if settings.dry_run:
            _tell_what_would_go(connection, settings)
            return 0
        gone = _gone(connection, settings)
        give_back(connection)
        for identity, number in gone.items():
            print(f"{identity}: {_answers(number)} deleted")
        if not gone:
            print("nothing to delete")
        after = Figures.size_of(settings.store)
        print(f"{before / 2**20:.1f} MiB on the disk before, {after / 2**20:.1f} MiB now")
    return 0


def _gone(connection: sqlite3.Connection, settings: PruneSettings) -> Counter[str]:
    """Deletes; returns how many answers of each teacher went."""
    gone: Counter[str] = Counter()
    if settings.max_mib is not None:
        while deleted := evict(connection, settings.max_mib * 2**20):
            gone[deleted.identity] += deleted.number
        return gone
    for identity in settings.identities or known_teachers(connection):
        for number in delete(connection, identity, settings.before_s):
            gone[identity] += number
    return gone


def _tell_what_would_go(connection: sqlite3.Connection, settings: PruneSettings) -> None:
    if settings.max_mib is not None:
        (answers,) = connection.execute("SELECT count(*) FROM answers").fetchone()
        used = bytes_in_use(connection)
        share = max(0.0, 1 - settings.max_mib * 2**20 / used)
        print(f"about {_answers(math.ceil(answers * share))} would go, the oldest")
        return
    count = "SELECT count(*) FROM answers WHERE identity = ? AND created <= ?"
    for identity in settings.identities or known_teachers(connection):
        (number,) = connection.execute(count, (identity, settings.before_s)).fetchone()
        print(f"{identity}: {_answers(number)} would go")


def _chosen(connection: sqlite3.Connection, wanted: str | None) -> list[str]:
    """The identities that are meant: by an identity, or by a checkpoint's name; all of them by None."""
    known, names = known_teachers(connection), names_of(connection)
    found = [identity for identity in known if wanted in (None, identity, names.get(identity))]
    if wanted is not None and not found:
        raise CannotStart(f"--teacher: no {wanted!r} in the store; `teacher answers stats` lists them")
    return found


def _have_to_be_known(connection: sqlite3.Connection, identities: Sequence[str]) -> None:
    known = known_teachers(connection)
    for identity in identities:
        if identity not in known:
            raise CannotStart(f"--teacher: no {identity!r} in the store; `teacher answers stats` lists them")


def _answers(number: int) -> str:
    return f"{number} answer{'s' * (number != 1)}"


@contextmanager
def _store(path: Path, *, make: bool = False) -> Iterator[sqlite3.Connection]:
    """A store's connection; with `make`, of a new store if there is none.

    Raises:
        CannotStart: it cannot be used.
    """
    try:
        lock, connection = open_store(path, _LOCK_TIMEOUT_S) if make else open_existing(path, _LOCK_TIMEOUT_S)
        try:
            with closing(connection):
                yield connection
        finally:
            lock.release()
    except StoreError as error:
        raise CannotStart(str(error)) from error
    except sqlite3.Error as error:
        raise CannotStart(str(store_error(path, error))) from error


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        if name == "-":
            yield sys.stdin.buffer
        elif name.endswith(".gz"):
            yield cast(BinaryIO, stack.enter_context(gzip.open(name)))
        else:
            yield stack.enter_context(Path(name).open("rb"))


@contextmanager
def _written_whole(name: str) -> Iterator[BinaryIO]:
    """A file that gets its name when all is in it.

    Raises:
        CannotStart: it cannot be written; there is no file, or the one that was there.
    """
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = beside(Path(name), ".part")
    try:
        try:
            with part.open("wb") as file, ExitStack() as stack:
                if name.endswith(".gz"):  # the same answers make the same bytes: no name, no time
                    zipped = gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0)
                    yield cast(BinaryIO, stack.enter_context(zipped))
                else:
                    yield file
                stack.close()
                file.flush()
                os.fsync(file.fileno())
            part.replace(name)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise CannotStart(f"{name} cannot be written: {error.strerror or error}") from error

"""`teacher answers`: shows, exports, imports, recovers, counts and prunes stored answers."""

import gzip
import json
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from teacher_api.command_line import CannotStart, CommandFailed
from teacher_api.terminal import say
from teacher_server.answers.content import StoreContent, sqlite_content
from teacher_server.answers.errors import StoreError
from teacher_server.answers.location import is_address, needs_postgres, with_password
from teacher_server.answers.lock import beside
from teacher_tools.answers.exchange import BadExport, export, import_
from teacher_tools.answers.recover import program, recover
from teacher_tools.answers.settings import (
    ExportSettings,
    ImportSettings,
    OfAStore,
    PruneSettings,
    RecoverSettings,
    ShowSettings,
    StatsSettings,
)
from teacher_tools.answers.statistics import as_text, statistics_of
from teacher_tools.answers.table import export_table, newest, printable

_LOCK_TIMEOUT_S = 30.0


def show(settings: ShowSettings) -> int:
    """Runs `teacher answers show`; returns 0."""
    width = shutil.get_terminal_size().columns
    with _store(settings) as store:
        names = store.names()
        blocks = []
        for identity in _chosen(store, settings.identity):
            name = f" ({printable(names[identity])})" if identity in names else ""
            if lines := list(newest(store, identity, settings.task, settings.limit, width)):
                blocks.append("\n".join([f"{identity}{name}", *lines]))
    about = f" about {settings.task}" if settings.task else ""
    print("\n\n".join(blocks) or f"no answers{about}")
    return 0


def export_answers(settings: ExportSettings) -> int:
    """Runs `teacher answers export`; returns 0."""
    with _store(settings) as store:
        chosen = _chosen(store, settings.identity)
        with _written_whole(settings.file) as out:
            if settings.as_csv:
                report = export_table(store, out, chosen, settings.task, settings.pictures)
            else:
                report = export(store, out, chosen)
    print(f"{_answers(report.written)} written", file=sys.stderr if settings.file == "-" else sys.stdout)
    if report.left_out:
        reason = "damaged, or without their teacher's description"
        say(f"{_answers(report.left_out)} left out: {reason}")
    return 0


def import_answers(settings: ImportSettings) -> int:
    """Runs `teacher answers import`; returns 0."""
    with _store(settings, make=True) as store:
        for name in settings.files:
            try:
                with _opened(name) as file:
                    report = import_(store, file)
            except (BadExport, gzip.BadGzipFile) as error:
                raise CannotStart(f"{name}: {error}; nothing of this file was imported") from error
            except OSError as error:
                raise CannotStart(f"{name} cannot be read: {error.strerror or error}") from error
            differ = f"; {report.differ} of these differ in their probabilities and stay as they were"
            print(f"{name}: {report.new} new, {report.known} known{differ if report.differ else ''}")
    return 0


def recover_answers(settings: RecoverSettings) -> int:
    """Runs `teacher answers recover`; returns 0."""
    if is_address(settings.store):
        raise CannotStart(
            "`store`: answers are recovered into an SQLite file; `export` and `import` carry them on"
        )
    path = Path(settings.store)
    if path.exists() and settings.file.exists() and path.samefile(settings.file):
        raise CannotStart(f"{settings.file} is the store itself: set `store` to another file")
    sqlite3_program = program()
    if not settings.file.is_file():
        raise CannotStart(f"there is no file {settings.file}")
    try:
        with sqlite_content(path, _LOCK_TIMEOUT_S, make=True) as store:
            report = recover(store, settings.file, path.absolute().parent, sqlite3_program)
    except StoreError as error:
        raise CannotStart(str(error)) from error
    except OSError as error:
        raise CannotStart(f"{settings.file} cannot be recovered: {error.strerror or error}") from error
    found = f"{_answers(report.new + report.known)} recovered ({report.new} new, {report.known} known)"
    reasons = ", ".join(f"{number} with {reason}" for reason, number in sorted(report.dropped.items()))
    dropped = f"dropped rows: {reasons or 'none'}"
    print(f"{settings.file}: {found}; {dropped}")
    if report.failure is not None:
        raise CommandFailed(f"sqlite3 stopped early: {report.failure}")
    return 0


def stats(settings: StatsSettings) -> int:
    """Runs `teacher answers stats`; returns 0, or 1 if the store is damaged."""
    with _store(settings) as store:
        statistics = statistics_of(store)
    print(json.dumps(statistics.as_json(), indent=1) if settings.as_json else as_text(statistics))
    return 0 if statistics.sound else 1


def prune(settings: PruneSettings) -> int:
    """Runs `teacher answers prune`; returns 0."""
    with _store(settings) as store:
        _check_known(store, settings.identities)
        before = store.on_disk
        if settings.dry_run:
            _print_dry_run(store, settings)
            return 0
        deleted = _deleted(store, settings)
        store.shrink()
        for identity, number in deleted.items():
            print(f"{identity}: {_answers(number)} deleted")
        if not deleted:
            print("nothing to delete")
        after = store.on_disk
        print(f"{before / 2**20:.1f} MiB on the disk before, {after / 2**20:.1f} MiB now")
    return 0


def _deleted(store: StoreContent, settings: PruneSettings) -> Counter[str]:
    """Deletes answers; returns how many of each teacher."""
    deleted: Counter[str] = Counter()
    if settings.max_mib is not None:
        while some := store.evict(settings.max_mib * 2**20):
            deleted[some.identity] += some.number
        return deleted
    for identity in settings.identities or store.teachers():
        for number in store.delete(identity, settings.before_s):
            deleted[identity] += number
    return deleted


def _print_dry_run(store: StoreContent, settings: PruneSettings) -> None:
    if settings.max_mib is not None:
        share = max(0.0, 1 - settings.max_mib * 2**20 / max(1, store.in_use))
        print(f"about {_answers(math.ceil(store.count() * share))} would be deleted, the oldest")
        return
    for identity in settings.identities or store.teachers():
        print(f"{identity}: {_answers(store.count(identity, settings.before_s))} would be deleted")


def _chosen(store: StoreContent, wanted: str | None) -> list[str]:
    """Returns the identities for an identity or a checkpoint's name; all of them for None."""
    known, names = store.teachers(), store.names()
    found = [identity for identity in known if wanted in (None, identity, names.get(identity))]
    if wanted is not None and not found:
        raise _unknown("identity", wanted)
    return found


def _check_known(store: StoreContent, identities: Sequence[str]) -> None:
    known = store.teachers()
    for identity in identities:
        if identity not in known:
            raise _unknown("identities", identity)


def _unknown(field: str, teacher: str) -> CannotStart:
    return CannotStart(
        f"`{field}` {teacher!r} is not in the store: `teacher answers stats` lists the teachers"
    )


def _answers(number: int) -> str:
    return f"{number} answer{'s' * (number != 1)}"


@contextmanager
def _store(settings: OfAStore, *, make: bool = False) -> Iterator[StoreContent]:
    """Yields a store's content; with `make`, creates the store if there is none.

    Raises:
        CannotStart: the store cannot be used.
    """
    try:
        with _content(settings, make) as content:
            yield content
    except StoreError as error:
        raise CannotStart(str(error)) from error


def _content(settings: OfAStore, make: bool) -> AbstractContextManager[StoreContent]:
    if not is_address(settings.store):
        return sqlite_content(Path(settings.store), _LOCK_TIMEOUT_S, make=make)
    try:
        from teacher_server.answers.postgres.content import postgres_content  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise needs_postgres(error) from error
    return postgres_content(with_password(settings.store, settings.store_password_file), make=make)


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
    """Yields a file that gets its name, and replaces an earlier one, when it is complete.

    Raises:
        CannotStart: the file cannot be written; an earlier one is unchanged.
    """
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = beside(Path(name), ".part")
    try:
        try:
            with part.open("wb") as file, ExitStack() as stack:
                if name.endswith(
                    ".gz"
                ):  # without name and time, so that the same answers give the same bytes
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

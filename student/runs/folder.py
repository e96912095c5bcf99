"""A run's folder: config.json, metrics.jsonl, checkpoints/, tensorboard/ and summary.json."""

import fcntl
import io
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from student.runs.metrics import METRICS_FILE, BadMetrics, MetricsRow, read_metrics
from teacher_api.command_line import CannotStart
from teacher_api.files import write_json, write_whole

FORMAT = 2
"""The format of checkpoints; raised when older checkpoints can no longer be read."""
_KEPT = 2
"""Checkpoints kept; a run is resumed from the newest."""
_LOCK = "run.lock"
"""Locked by the process that writes the run; the file is never removed."""


class BadRun(CannotStart):
    """A folder cannot be used as a run: the message says why and what to do."""


class CannotWrite(Exception):
    """A file cannot be written, for example because the disk is full; the files before it are complete."""


class Run:
    """A run's folder. Files are written as a whole, so an interruption leaves a checkpoint intact."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metrics: Any = None
        self._board: SummaryWriter | None = None
        self._lock: IO[bytes] | None = None

    @classmethod
    def create(cls, folder: Path, config: dict[str, Any]) -> "Run":
        """Starts a run in a folder and locks it.

        Raises:
            BadRun: the folder holds a run already, is locked by another process, or cannot be written.
        """
        run = cls(folder)
        run._refuse_another()
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            run.hold()
            run._refuse_another()  # another process may have started one in the meantime
            write_json(folder / "config.json", {**config, "versions": _versions()})
        except BaseException as error:
            run.release()
            if isinstance(error, OSError):
                raise run._cannot_be_written(error) from error
            raise
        return run

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Returns whether a run was started in a folder."""
        return (folder / "config.json").exists()

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Returns the run in a folder.

        Raises:
            BadRun: the folder holds no run.
        """
        if not (folder / "config.json").is_file():
            raise BadRun(f"{folder} is no run: it has no config.json")
        return cls(folder)

    def hold(self) -> None:
        """Locks the run against other processes, until `release` or the end of this process.

        Raises:
            BadRun: another process holds the lock, or the folder cannot be written.
        """
        try:
            self._lock = (self.folder / _LOCK).open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise BadRun(
                f"another process trains in {self.folder}: wait for its end, stop it, or choose another `out`"
            ) from None
        except OSError as error:
            raise self._cannot_be_written(error) from error

    def release(self) -> None:
        """Releases the lock, if this process holds it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock within a `with` block.

        Raises:
            BadRun: another process holds the lock, or the folder cannot be written.
        """
        self.hold()
        try:
            yield
        finally:
            self.release()

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json: settings, teacher, versions.

        Raises:
            BadRun: config.json cannot be read.
        """
        return self._read("config.json", "settings", needed="settings")

    def metrics(self) -> list[MetricsRow]:
        """Returns the logged rows, oldest first; an unfinished last line is left out.

        Raises:
            BadRun: metrics.jsonl cannot be read.
        """
        try:
            return list(read_metrics(self.folder))
        except FileNotFoundError:
            return []
        except BadMetrics as error:
            raise BadRun(f"{self.folder / METRICS_FILE} cannot be read: {error}") from error

    def start_logging(self, frames: int) -> None:
        """Opens the logs and removes the rows after `frames`: a resumed run logs them again.

        Raises:
            CannotWrite: a log cannot be written.
        """
        kept = [row for row in self.metrics() if row["frames"] <= frames]
        path = self.folder / METRICS_FILE
        with self._writing():
            write_whole(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
            self._metrics = path.open("a", buffering=1, encoding="utf-8")
            self._board = SummaryWriter(
                str(self.folder / "tensorboard"), purge_step=frames + 1 if frames else None
            )

    def log(self, row: dict[str, Any]) -> None:
        """Adds an update's figures to metrics.jsonl and TensorBoard.

        Raises:
            CannotWrite: a log cannot be written.
        """
        with self._writing():
            self._log(row)

    def _log(self, row: dict[str, Any]) -> None:
        assert self._board is not None
        self._metrics.write(json.dumps(row) + "\n")
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name != "frames" and value is not None
        ]
        # One event for the row: a call of add_scalar for each figure takes as long as an update does
        writer: Any = self._board.file_writer
        writer.add_summary(Summary(value=values), row["frames"])

    def stop_logging(self) -> None:
        """Closes the logs; metrics.jsonl is complete even where TensorBoard's log cannot be."""
        for log in (self._board, self._metrics):
            if log is not None:
                with suppress(OSError):
                    log.close()

    def save_checkpoint(self, frames: int, state: dict[str, Any]) -> None:
        """Writes a checkpoint and removes all but the newest ones.

        Raises:
            CannotWrite: the checkpoint cannot be written.
        """
        content = io.BytesIO()
        torch.save({"format": FORMAT, **state}, content)
        with self._writing():
            write_whole(self.folder / "checkpoints" / f"{frames:012d}.pt", content.getbuffer())
            for old in self._checkpoints()[:-_KEPT]:
                old.unlink()

    def load_checkpoint(self) -> dict[str, Any]:
        """Returns the newest checkpoint.

        Raises:
            BadRun: there is no checkpoint, or it cannot be read.
        """
        paths = self._checkpoints()
        if not paths:
            raise BadRun(
                f"{self.folder} has no checkpoint: the run stopped before its first one; start it again"
            )
        try:
            state: dict[str, Any] = torch.load(paths[-1], weights_only=True)
        except Exception as error:
            raise BadRun(f"{paths[-1]} cannot be read as a checkpoint: {error}".splitlines()[0]) from error
        if state.get("format") != FORMAT:
            raise BadRun(
                f"{paths[-1]} has format {state.get('format')}, and this version reads format {FORMAT}:"
                " use the version that wrote it (see config.json)"
            )
        return state

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run can be resumed."""
        return bool(self._checkpoints())

    def clear(self) -> None:
        """Removes the files of a run without a checkpoint, so that it can be started again; config.json last.

        Raises:
            BadRun: the folder holds a checkpoint or a file that is not the run's; nothing is removed.
        """
        paths = [
            path
            for path in self.folder.rglob("*")
            if (path.is_symlink() or not path.is_dir()) and path != self.folder / _LOCK
        ]
        others = [path for path in paths if not _is_a_runs_start(path.relative_to(self.folder))]
        if others:
            raise BadRun(
                f"{self.folder} has no checkpoint, and the run cannot start again: {min(others)} is not one"
                " of its files; move that file away, or choose another `out`"
            )
        try:
            for path in sorted(paths, key=lambda path: path.name == "config.json"):
                path.unlink()
        except OSError as error:
            raise self._cannot_be_written(error) from error

    def summary(self) -> dict[str, Any] | None:
        """Returns the content of summary.json; None before the run's end.

        Raises:
            BadRun: summary.json cannot be read.
        """
        if not (self.folder / "summary.json").exists():
            return None
        return self._read("summary.json", "summary", needed="frames")

    def summarise(self, summary: dict[str, Any]) -> None:
        """Writes summary.json.

        Raises:
            CannotWrite: summary.json cannot be written.
        """
        with self._writing():
            write_json(self.folder / "summary.json", summary)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CannotWrite(f"cannot write to {self.folder}: {error.strerror or error}") from error

    def _cannot_be_written(self, error: OSError) -> BadRun:
        return BadRun(f"cannot write to {self.folder}: {error.strerror}")

    def _refuse_another(self) -> None:
        if self.is_in(self.folder):
            raise BadRun(
                f"{self.folder} holds a run already: resume it with `resume` {self.folder}, or choose another"
                " `out`"
            )

    def _read(self, name: str, what: str, needed: str) -> dict[str, Any]:
        """Returns the content of a JSON file of the run, which has to hold the key `needed`."""
        path = self.folder / name
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            content[needed]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadRun(f"{path} cannot be read as a run's {what}: {error}") from error
        return content

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("*.pt"))


def _is_a_runs_start(path: Path) -> bool:
    """Whether a run, or its sweep, writes this file before the first checkpoint."""
    match path.parts:
        case [name]:
            return name.removesuffix(".part") in ("config.json", METRICS_FILE, "error.txt")
        case ["checkpoints", name]:
            return name.endswith(".part")
        case ["tensorboard", name]:
            return name.startswith("events.out.tfevents.")
    return False


def _versions() -> dict[str, str]:
    names = ("lvlm2p", "torch", "numpy", "gymnasium", "minigrid")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}

"""A run's folder: config.json, metrics.jsonl, checkpoints/, tensorboard/ and summary.json."""

import fcntl
import io
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from teacher_api.command_line import CannotStart

FORMAT = 2
"""Of the checkpoints; raised when older ones can no longer be read."""
_KEPT = 2
"""Checkpoints kept; the newest is the one to go on from."""
_LOCK = "run.lock"
"""Locked by the process that writes the run; the file stays."""


class BadRun(CannotStart):
    """A folder that cannot be used as a run, and what to do."""


class CannotWrite(Exception):
    """The folder took no more of the run, for instance because the disk is full; what it holds is whole."""


class Run:
    """Writes a run down as it goes; whatever is interrupted, the folder holds a whole checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metrics: Any = None
        self._board: SummaryWriter | None = None
        self._lock: IO[bytes] | None = None

    @classmethod
    def create(cls, folder: Path, config: dict[str, Any]) -> "Run":
        """A new run, held.

        Raises:
            BadRun: the folder holds a run already, is held by another process, or cannot be written.
        """
        run = cls(folder)
        run._refuse_another()
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            run.hold()
            run._refuse_another()  # which another process may have begun in the meantime
            write_json(folder / "config.json", {**config, "versions": _versions()})
        except BaseException as error:
            run.release()
            if isinstance(error, OSError):
                raise run._cannot_be_written(error) from error
            raise
        return run

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a run was begun there."""
        return (folder / "config.json").exists()

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """A run that is there.

        Raises:
            BadRun: the folder holds none.
        """
        if not (folder / "config.json").is_file():
            raise BadRun(f"{folder} is no run: it has no config.json")
        return cls(folder)

    def hold(self) -> None:
        """Keeps other processes from writing this run, until `release` or the end of this one.

        Raises:
            BadRun: another process holds it, or the folder cannot be written.
        """
        try:
            self._lock = (self.folder / _LOCK).open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise BadRun(
                f"another process trains in {self.folder}: wait for its end, stop it, or choose another --out"
            ) from None
        except OSError as error:
            raise self._cannot_be_written(error) from error

    def release(self) -> None:
        """Lets other processes write the run; nothing happens where it is not held."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """`hold`, and `release` at the end.

        Raises:
            BadRun: another process holds it, or the folder cannot be written.
        """
        self.hold()
        try:
            yield
        finally:
            self.release()

    @property
    def config(self) -> dict[str, Any]:
        """What the run was made with: settings, teacher, versions.

        Raises:
            BadRun: config.json cannot be read.
        """
        return self._read("config.json", "settings", needed="settings")

    def metrics(self) -> list[dict[str, Any]]:
        """What was logged, a dictionary an update, oldest first.

        Raises:
            BadRun: a line cannot be read; the last one alone may be cut off, and is then left out.
        """
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        *lines, _ = path.read_bytes().split(b"\n")  # what follows the last line end is half a line
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise BadRun(f"{path} cannot be read: {error}") from error

    def start_logging(self, frames: int) -> None:
        """Opens the logs, without what was logged after `frames`: a resumed run logs that again.

        Raises:
            CannotWrite: the disk is full, or something like it.
        """
        kept = [row for row in self.metrics() if row["frames"] <= frames]
        path = self.folder / "metrics.jsonl"
        with self._writing():
            write_whole(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
            self._metrics = path.open("a", buffering=1, encoding="utf-8")
            self._board = SummaryWriter(
                str(self.folder / "tensorboard"), purge_step=frames + 1 if frames else None
            )

    def log(self, row: dict[str, Any]) -> None:
        """Adds one update's figures to metrics.jsonl and TensorBoard.

        Raises:
            CannotWrite: the disk is full, or something like it.
        """
        with self._writing():
            self._log(row)

    def _log(self, row: dict[str, Any]) -> None:
        assert self._board is not None
        self._metrics.write(json.dumps(row) + "\n")
        told = {name: value for name, value in row.items() if name != "frames" and value is not None}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in told.items()]
        # One event for the row: a call of add_scalar for each figure takes as long as an update does
        writer: Any = self._board.file_writer
        writer.add_summary(Summary(value=values), row["frames"])

    def stop_logging(self) -> None:
        """Closes the logs; metrics.jsonl has every row by then, whatever becomes of the rest."""
        for log in (self._board, self._metrics):
            if log is not None:
                with suppress(OSError):
                    log.close()

    def save_checkpoint(self, frames: int, state: dict[str, Any]) -> None:
        """Writes a checkpoint as a whole or not at all, and drops those long passed.

        Raises:
            CannotWrite: the disk is full, or something like it.
        """
        content = io.BytesIO()
        torch.save({"format": FORMAT, **state}, content)
        with self._writing():
            write_whole(self.folder / "checkpoints" / f"{frames:012d}.pt", content.getbuffer())
            for old in self._checkpoints()[:-_KEPT]:
                old.unlink()

    def load_checkpoint(self) -> dict[str, Any]:
        """The newest checkpoint.

        Raises:
            BadRun: there is none, or it is none of this program's.
        """
        paths = self._checkpoints()
        if not paths:
            raise BadRun(
                f"{self.folder} has no checkpoint yet: it stopped before its first one; start it again"
            )
        try:
            state: dict[str, Any] = torch.load(paths[-1], weights_only=True)
        except Exception as error:
            raise BadRun(f"{paths[-1]} cannot be read as a checkpoint: {error}".splitlines()[0]) from error
        if state.get("format") != FORMAT:
            raise BadRun(
                f"{paths[-1]} has format {state.get('format')}, and this version reads {FORMAT}:"
                " use the version that wrote it (see config.json)"
            )
        return state

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return bool(self._checkpoints())

    def clear(self) -> None:
        """Takes away what was begun, so that it can begin anew; config.json goes last.

        Raises:
            BadRun: the folder holds a checkpoint, or something that is no run's; all is left as it is.
        """
        paths = [
            path
            for path in self.folder.rglob("*")
            if (path.is_symlink() or not path.is_dir()) and path != self.folder / _LOCK
        ]
        others = [path for path in paths if not _is_of_a_start(path.relative_to(self.folder))]
        if others:
            raise BadRun(
                f"{self.folder} has no checkpoint yet and cannot begin anew, because {min(others)} is no"
                " file of a run's start: take it away, or choose another --out"
            )
        try:
            for path in sorted(paths, key=lambda path: path.name == "config.json"):
                path.unlink()
        except OSError as error:
            raise self._cannot_be_written(error) from error

    def summary(self) -> dict[str, Any] | None:
        """What the run came to; None before its end.

        Raises:
            BadRun: summary.json cannot be read.
        """
        if not (self.folder / "summary.json").exists():
            return None
        return self._read("summary.json", "summary", needed="frames")

    def summarise(self, summary: dict[str, Any]) -> None:
        """Writes down what the run came to.

        Raises:
            CannotWrite: the disk is full, or something like it.
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
                f"{self.folder} holds a run already: go on with --resume {self.folder}, or choose another"
                " --out"
            )

    def _read(self, name: str, what: str, needed: str) -> dict[str, Any]:
        """A JSON file of the run, with at least one key that is needed."""
        path = self.folder / name
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            content[needed]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadRun(f"{path} cannot be read as a run's {what}: {error}") from error
        return content

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("*.pt"))


def _is_of_a_start(path: Path) -> bool:
    """Whether a run, or the sweep that began it, writes this file before the first checkpoint."""
    match path.parts:
        case [name]:
            return name.removesuffix(".part") in ("config.json", "metrics.jsonl", "error.txt")
        case ["checkpoints", name]:
            return name.endswith(".part")
        case ["tensorboard", name]:
            return name.startswith("events.out.tfevents.")
    return False


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file as a whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes a file as a whole or not at all, even where the disk is full or the power fails.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _versions() -> dict[str, str]:
    names = ("lvlm2p", "torch", "numpy", "gymnasium", "minigrid")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}

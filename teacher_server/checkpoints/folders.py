"""Reads the files of a folder that may be broken, and notes in plain words all that is wrong with them."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

COPY_AGAIN = "copy it again from where the checkpoint came from"
ONE_CHECKPOINT = "all files have to come from one checkpoint"


class Unusable(Exception):
    """Files that cannot be used; each of `problems` says which, why, and what to do."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Folder:
    """One look over a folder: its problems so far, and the files that were found good to read."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            Unusable: it is no folder that can be read.
        """
        self.path = path
        self.problems: list[str] = []
        self.used: set[Path] = set()
        try:
            os.listdir(path)
        except FileNotFoundError:
            # Also what a name on a hub leads to
            away = "download them elsewhere and copy the folder"
            why = f"is no folder here; weights come from a local folder: {away}"
        except NotADirectoryError:
            why = "is a file: give the folder that has the checkpoint's config.json in it"
        except OSError as error:
            why = f"cannot be read ({error.strerror}): see its permissions"
        else:
            why = self._elsewhere() or ""
        if why:
            raise Unusable(f"{path} {why}")

    def _elsewhere(self) -> str | None:
        """Where the checkpoint is instead, or what is here instead of one."""
        if self.has("config.json"):
            return None
        if self.has("adapter_config.json"):
            return (
                "is an adapter and no checkpoint: merge it into the one that it was trained on (peft's"
                " merge_and_unload), save the model that this gives, and name that folder"
            )
        below = ("*/config.json", "snapshots/*/config.json", "*/snapshots/*/config.json")
        found = sorted({path.parent for pattern in below for path in self.path.glob(pattern)})
        if not found:
            return None
        hub = (
            "is the root of a hub's cache, and"
            if "snapshots" in found[0].parts
            else "has no config.json, and"
        )
        others = "" if len(found) == 1 else f" (or {', '.join(path.name for path in found[1:4])})"
        return f"{hub} the checkpoint is in a folder below: give {found[0]}{others}"

    def noting(self) -> "Noting":
        """Around what may raise Unusable: its problems are noted, and the look goes on."""
        return Noting(self.problems)

    def wrong(self, name: str, why: str) -> None:
        """Notes a problem with a file."""
        self.problems.append(f"{name}: {why}")

    def has(self, name: str) -> bool:
        # A link to nothing is there, and a problem
        return os.path.lexists(self.path / name)

    def names(self, *patterns: str) -> list[str]:
        return sorted(path.name for pattern in patterns for path in self.path.glob(pattern))

    def read(self, name: str, most: int = -1) -> bytes:
        """A file's bytes, or its first ones.

        Raises:
            Unusable: it cannot be had.
        """
        path = self.path / name
        try:
            with path.open("rb") as file:
                content = file.read(most)
        except FileNotFoundError:
            linked = "is a link to nothing: copy the files that the links lead to (cp -rL)"
            raise unusable(name, linked if path.is_symlink() else f"is missing: {COPY_AGAIN}") from None
        except OSError as error:
            raise unusable(name, f"cannot be read ({error.strerror}): see its permissions") from None
        if content.startswith(b"version https://git-lfs"):
            pulling = "run `git lfs pull` where it came from, and copy it again"
            raise unusable(name, f"is a Git LFS pointer, not the file itself: {pulling}")
        self.used.add(path)
        return content

    def json(self, name: str, *, needed: bool = True) -> dict[str, Any]:
        """What a file says; nothing where it is not there or, which is noted, cannot be read."""
        if not needed and not self.has(name):
            return {}
        with self.noting():
            content = self.read(name)
            try:
                said = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise unusable(name, f"is no JSON ({error}): {COPY_AGAIN}") from None
            if isinstance(said, dict):
                return said
            raise unusable(name, f"is no JSON object but {str(said)[:40]!r}: {COPY_AGAIN}")
        return {}


class Noting:
    """Takes down what Unusable says, and lets the rest go on."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Unusable):
            return False
        self._problems += error.problems
        return True


def unusable(name: str, *whys: str) -> Unusable:
    """That a file cannot be used, and why."""
    return Unusable(*(f"{name}: {why}" for why in whys))

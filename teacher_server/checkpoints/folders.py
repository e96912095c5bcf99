"""Reads the files of a checkpoint's folder and records all problems with them."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

COPY_AGAIN = "copy it again from the checkpoint's source"
ONE_CHECKPOINT = "all files have to come from one checkpoint"


class Unusable(Exception):
    """Files cannot be used; each of `problems` names a file, what is wrong and what to do."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Folder:
    """A folder that is being read.

    Attributes:
        problems: found so far.
        used: the files that were read.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            Unusable: the path is not a readable folder, or has no checkpoint in it.
        """
        self.path = path
        self.problems: list[str] = []
        self.used: set[Path] = set()
        try:
            os.listdir(path)
        except FileNotFoundError:
            # A model's name on a hub ends here too
            why = "is not a folder here; models are not downloaded: give a local folder with the checkpoint"
        except NotADirectoryError:
            why = "is a file: give the folder that holds the checkpoint's config.json"
        except OSError as error:
            why = f"cannot be read ({error.strerror}): check its permissions"
        else:
            why = self._elsewhere() or ""
        if why:
            raise Unusable(f"{path} {why}")

    def _elsewhere(self) -> str | None:
        """Returns where the checkpoint is instead, or what the folder holds; None for a checkpoint."""
        if self.has("config.json"):
            return None
        if self.has("adapter_config.json"):
            return (
                "is an adapter, not a checkpoint: merge it into its base checkpoint (merge_and_unload),"
                " save the merged model, and give that folder"
            )
        below = ("*/config.json", "snapshots/*/config.json", "*/snapshots/*/config.json")
        found = sorted({path.parent for pattern in below for path in self.path.glob(pattern)})
        if not found:
            return None
        hub = (
            "is the root of a hub cache, and" if "snapshots" in found[0].parts else "has no config.json, and"
        )
        others = "" if len(found) == 1 else f" (or {', '.join(path.name for path in found[1:4])})"
        return f"{hub} the checkpoint is in a folder below: give {found[0]}{others}"

    def noting(self) -> "Noting":
        """Returns a context that records the problems of an Unusable error and continues after it."""
        return Noting(self.problems)

    def wrong(self, name: str, why: str) -> None:
        """Records a problem with a file."""
        self.problems.append(f"{name}: {why}")

    def has(self, name: str) -> bool:
        # True for a broken link, which `read` reports
        return os.path.lexists(self.path / name)

    def names(self, *patterns: str) -> list[str]:
        return sorted(path.name for pattern in patterns for path in self.path.glob(pattern))

    def read(self, name: str, most: int = -1) -> bytes:
        """Returns a file's bytes, or its first `most`.

        Raises:
            Unusable: the file cannot be read.
        """
        path = self.path / name
        try:
            with path.open("rb") as file:
                content = file.read(most)
        except FileNotFoundError:
            linked = "is a broken link: copy the files that the links point to (cp -rL)"
            raise unusable(name, linked if path.is_symlink() else f"is missing: {COPY_AGAIN}") from None
        except OSError as error:
            raise unusable(name, f"cannot be read ({error.strerror}): check its permissions") from None
        if content.startswith(b"version https://git-lfs"):
            pulling = "run `git lfs pull` at its source, and copy it again"
            raise unusable(name, f"is a Git LFS pointer instead of the file: {pulling}")
        self.used.add(path)
        return content

    def json(self, name: str, *, needed: bool = True) -> dict[str, Any]:
        """Returns a JSON file's object; empty for a missing optional file and for a broken one."""
        if not needed and not self.has(name):
            return {}
        with self.noting():
            content = self.read(name)
            try:
                parsed = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise unusable(name, f"is not JSON ({error}): {COPY_AGAIN}") from None
            if isinstance(parsed, dict):
                return parsed
            raise unusable(name, f"is not a JSON object but {str(parsed)[:40]!r}: {COPY_AGAIN}")
        return {}


class Noting:
    """Records the problems of an Unusable error and suppresses it."""

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
    """Returns the error that a file cannot be used, for these reasons."""
    return Unusable(*(f"{name}: {why}" for why in whys))

"""The lock file beside a store: shows which processes use the store, and marks the file as a store."""

import fcntl
import os
from pathlib import Path

_MARK = b"Beside this lies an answer store; processes that use it hold a lock on this file.\n"


class StoreLock:
    """A lock on the file STORE-lock: shared by processes that use the store, exclusive for setting it aside.

    SQLite's own locks are in the store's file, which may be damaged. The lock ends with the process. The lock
    file stays: its text says that the file beside it is a store, even if that file is no longer readable.
    """

    def __init__(self, store: Path) -> None:
        """
        Raises:
            OSError: the lock file cannot be opened or created.
        """
        self._path = beside(store, "-lock")
        self._file = self._open()

    @property
    def marked(self) -> bool:
        """Whether the file beside the lock file is known to be a store."""
        return os.pread(self._file, len(_MARK), 0) == _MARK

    def mark(self) -> None:
        """Records that the file beside the lock file is a store."""
        if not self.marked:
            os.pwrite(self._file, _MARK, 0)

    def take(self) -> bool:
        """Takes the exclusive lock; returns False, and holds no lock, if another process uses the store."""
        try:
            self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def share(self) -> None:
        """Takes the shared lock; waits while another process holds the exclusive one."""
        self._lock(fcntl.LOCK_SH)

    def release(self) -> None:
        """Releases the lock. Removes a lock file that marks no store."""
        if not self.marked and self.take():
            self._path.unlink(missing_ok=True)
        os.close(self._file)

    def _lock(self, how: int) -> None:
        fcntl.flock(self._file, how)
        while not self._is_there():  # another process removed the file during the wait
            os.close(self._file)
            self._file = self._open()
            fcntl.flock(self._file, how)

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except FileNotFoundError:
            return False

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def beside(store: Path, suffix: str) -> Path:
    """Returns the path with a suffix after the store's name, as SQLite names its own files."""
    return store.with_name(store.name + suffix)

"""Which processes have a store open: a lock file beside it, which also marks the file as a store."""

import fcntl
import os
from pathlib import Path

_MARK = b"Beside this lies an answer store; processes that use it hold a lock on this file.\n"


class StoreLock:
    """A lock on the file STORE-lock: shared by all who use the store, exclusive for who repairs it.

    SQLite's own locks are in the store's file, which may be damaged. The lock ends with the process. The
    file stays, and its text says that the name beside it is a store's, whatever has become of that.
    """

    def __init__(self, store: Path) -> None:
        """
        Raises:
            OSError: the lock file can be neither opened nor made.
        """
        self._path = beside(store, "-lock")
        self._file = self._open()

    @property
    def marked(self) -> bool:
        """Whether the file beside it was found to be a store before."""
        return os.pread(self._file, len(_MARK), 0) == _MARK

    def mark(self) -> None:
        """Notes that the file beside it is a store."""
        if not self.marked:
            os.pwrite(self._file, _MARK, 0)

    def take(self) -> bool:
        """Takes the lock for this user alone; returns False, holding none, where there are others."""
        try:
            self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def share(self) -> None:
        """Takes the lock with others, as soon as nobody has it alone."""
        self._lock(fcntl.LOCK_SH)

    def release(self) -> None:
        """Gives the lock back. A lock file that marks no store is removed."""
        if not self.marked and self.take():
            self._path.unlink(missing_ok=True)
        os.close(self._file)

    def _lock(self, how: int) -> None:
        fcntl.flock(self._file, how)
        while not self._is_there():  # it was removed while this one waited
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
    """The file whose name is the store's with something after it, as SQLite names its own."""
    return store.with_name(store.name + suffix)

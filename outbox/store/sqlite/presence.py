"""How processes of one database know that another one was killed, sooner than its lease expires.

Each holds a lock on a small file beside the database; the operating system releases it when the process ends, however
it ends. A process that is stopped or slow keeps its lock: there the lease decides. SQLite's write-ahead log needs all
processes on one machine anyway, so the locks see each other.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from outbox.files import beside
from outbox.store.dialect import Name
from outbox.store.sqlite.place import open_for_lock


class LockFile:
    """The lock of one process, held until `end` or until the process has ended.

    Where the file cannot be made, the process works without: SQLite itself works in a directory that it may not
    write to, as long as the application keeps the write-ahead log there.
    """

    def __init__(self, path: Path, database: Path, kind: str) -> None:
        self._path = beside(path, "-new")  # without a lock it would tell of a killed process
        self._file: IO[bytes] | None = None
        try:
            self._file = open_for_lock(self._path, database)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._path = self._path.rename(path)
        except OSError as error:
            self.end()
            from loguru import logger  # not above: the write side loads this module, and no logs

            logger.warning(
                "no lock file can be kept in {directory}: {reason}; if this {kind} is killed, others notice it only "
                "when its lease ends",
                directory=str(self._path.parent),
                reason=error.strerror,
                kind=kind,
            )

    def keep(self) -> None:
        """It is lost with the process alone."""

    def end(self) -> None:
        """Release it, and remove the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._file.close()


class LockFiles:
    """The locks of all processes of one database: see `outbox.store.dialect.Presence`."""

    def __init__(self, database: Path) -> None:
        self._database = database

    def _path(self, kind: str, name: int | str) -> Path:
        return beside(self._database, f"-{kind}-{name}")

    def hold(self, kind: str, name: int | str) -> LockFile:
        return LockFile(self._path(kind, name), self._database, kind)

    def dead(self, kind: str, names: Iterable[Name]) -> list[Name]:
        """One whose file is missing or cannot be read is not among them: it is just starting, has ended by itself, or
        could keep no lock."""
        found = []
        for name in names:
            with contextlib.suppress(OSError), self._path(kind, name).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while it is alive
                found.append(name)
        return found

    def live(self, kind: str, names: Iterable[Name]) -> list[Name]:
        found = []
        for name in names:
            with contextlib.suppress(OSError), self._path(kind, name).open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(name)
        return found

    def remove_locks(self, kind: str, names: Iterable[int | str]) -> None:
        for name in names:
            with contextlib.suppress(OSError):
                self._path(kind, name).unlink(missing_ok=True)

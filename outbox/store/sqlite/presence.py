"""How relays of one database know that another one was killed, sooner than its lease expires.

Each relay holds a lock on a small file beside the database; the operating system lets go of it when the process
ends, however it ends. A relay that is stopped or slow keeps its lock: there the lease decides. SQLite's write-ahead
log needs all processes on one machine anyway, so the locks see each other.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from loguru import logger


def _path(database: Path, kind: str, number: int | str) -> Path:
    return database.with_name(f"{database.name}-{kind}-{number}")


class Presence:
    """The lock of one relay (or of whoever works on one reindex), held until `end` or until the process is gone.

    Where the file cannot be made, the relay goes on without: SQLite itself works in a directory that it may not
    write to, as long as the application keeps the write-ahead log there.
    """

    def __init__(self, database: Path, number: int | str, kind: str = "relay") -> None:
        path = _path(database, kind, number)
        self._path = path.with_name(f"{path.name}-new")  # without a lock it would tell of a killed process
        self._file: IO[bytes] | None = None
        try:
            self._file = self._path.open("wb")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._path = self._path.rename(path)
        except OSError as error:
            self.end()
            logger.warning(
                f"no lock file can be kept in {self._path.parent}: {error.strerror}; if this {kind} is killed, others "
                "notice it only when its lease ends"
            )

    def end(self) -> None:
        """Let go, and remove the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._file.close()


def gone(database: Path, relays: Iterable[int]) -> list[int]:
    """Those of `relays` whose process has ended without taking itself off the list, until `forget` removes their files.

    A relay whose file is missing or cannot be read is not among them: it is just starting, has ended by itself, or
    could keep no lock.
    """
    dead = []
    for relay in relays:
        path = _path(database, "relay", relay)
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while it is alive
            dead.append(relay)
    return dead


def forget(database: Path, relays: Iterable[int]) -> None:
    """Remove the files of killed relays: once what they held has been given back, nobody need know of their death."""
    for relay in relays:
        with contextlib.suppress(OSError):
            _path(database, "relay", relay).unlink(missing_ok=True)


def alive(database: Path, relays: Iterable[int]) -> list[int]:
    """Those of `relays` whose process is there, even if it is stopped and gives no sign of life."""
    locked = []
    for relay in relays:
        with contextlib.suppress(OSError), _path(database, "relay", relay).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                locked.append(relay)
    return locked


def reindex_is_gone(database: Path, lease: str) -> bool:
    """Whether the process that held this lease of a reindex has ended without giving it back."""
    with contextlib.suppress(OSError), _path(database, "reindex", lease).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while it is alive
        return True
    return False


def forget_reindex(database: Path, lease: str) -> None:
    """Remove the file that a killed process left behind."""
    _path(database, "reindex", lease).unlink(missing_ok=True)

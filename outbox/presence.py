"""How relays of one database know that another one was killed, sooner than its lease expires.

Each relay holds a lock on a small file beside the database; the operating system lets go of it when the process
ends, however it ends. A relay that is stopped or slow keeps its lock: there the lease decides. SQLite's write-ahead
log needs all processes on one machine anyway, so the locks see each other.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from pathlib import Path
from typing import IO


def _path(database: Path, relay: int) -> Path:
    return database.with_name(f"{database.name}-relay-{relay}")


class Presence:
    """The lock of one relay, held until `end` or until the process is gone."""

    def __init__(self, database: Path, relay: int) -> None:
        self._path = _path(database, relay)
        self._file: IO[bytes] = self._path.open("wb")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def end(self) -> None:
        """Let go, and remove the file."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def gone(database: Path, relays: Iterable[int]) -> list[int]:
    """Those of `relays` whose process has ended without taking itself off the list. Removes their files."""
    dead = []
    for relay in relays:
        path = _path(database, relay)
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
                dead.append(relay)
        except BlockingIOError:
            continue  # alive
        except FileNotFoundError:
            continue  # just starting, or ended by itself
    return dead

"""What the file system says of commits: somebody writes to the log, long before SQLite has to be asked."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from outbox.files import beside
from outbox.store.dialect import Watch


class LogWatch:
    """Readable once the write-ahead log was written to, also if it is made or made anew later. By inotify.

    A transaction writes there before its commit can be seen, and so does one that is rolled back later: what is read
    says that it is worth to look, now and a little later.
    """

    def __init__(self, log: Path) -> None:
        """Raises `OSError` where there is no inotify, or no more of it for this user."""
        from inotify_simple import INotify, flags

        self._log = log
        self._written: Final[int] = flags.MODIFY
        self._missed: Final[int] = flags.Q_OVERFLOW
        self._inotify: Any = INotify(nonblocking=True)
        try:
            self._inotify.add_watch(log.parent, flags.CREATE | flags.MOVED_TO)
            self._follow()
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        return int(self._inotify.fileno())

    def read(self) -> bool:
        """Whether the log was written to since the last call. Raises `OSError` if a new log cannot be watched."""
        found = False
        for event in self._inotify.read(timeout=0):
            if event.name == self._log.name or event.mask & self._missed:
                self._follow()  # what was written before counts as well
            found = found or event.name in ("", self._log.name)
        return found

    def close(self) -> None:
        self._inotify.close()

    def _follow(self) -> None:
        with suppress(FileNotFoundError):  # it is told when somebody makes it
            self._inotify.add_watch(self._log, self._written)


def watch_of(database: Path | None) -> Watch | None:
    """None where nothing can be watched: a database in memory, another system than Linux. Raises `OSError` as
    `LogWatch` does."""
    if database is None or sys.platform != "linux":
        return None
    return LogWatch(beside(database, "-wal"))

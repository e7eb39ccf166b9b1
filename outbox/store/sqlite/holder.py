"""Who holds the write lock, for the error that says locked. Linux tells; elsewhere nothing is said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy.exc import DBAPIError

from outbox.files import beside

_LOCKED: Final = "database is locked"

# Where SQLite locks for its one writer: https://sqlite.org/walformat.html ("WAL locks"), and os.h ("RESERVED_BYTE").
_WAL_WRITE_LOCK: Final = 120
_RESERVED_BYTE: Final = 0x40000001

MOST_WORDS: Final = 3  # of its command: enough to know it, and further ones may be secrets
MOST_CHARACTERS: Final = 120


def name_holder(error: DBAPIError, database: Path | None) -> None:
    """Have the error that a database is locked say by which process. Any other is left as it is."""
    if database is None or error.orig is None or str(error.orig) != _LOCKED:
        return
    if holders := list(dict.fromkeys(_holders(database))):
        said = f"{_LOCKED}: {' and '.join(holders)} {'has' if len(holders) == 1 else 'have'} the write lock"
        error.orig.args = (said,)
        error.args = (str(error.args[0]).replace(_LOCKED, said, 1), *error.args[1:])


def _holders(database: Path) -> Iterator[str]:
    locked = {
        inode: byte
        for path, byte in ((beside(database, "-shm"), _WAL_WRITE_LOCK), (database, _RESERVED_BYTE))
        if (inode := _inode(path)) is not None
    }
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return
    for line in lines:  # 1: POSIX  ADVISORY  WRITE 4711 fd:01:1234 120 120
        fields = line.split()
        if len(fields) != 8 or fields[3] != "WRITE":  # shared, or waiting
            continue
        byte, last = locked.get(int(fields[5].rpartition(":")[2])), fields[7]
        if byte is not None and int(fields[6]) <= byte and (last == "EOF" or byte <= int(last)):
            yield _described(int(fields[4]))


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _described(pid: int) -> str:
    if pid == os.getpid():
        return "another connection of this process"
    if pid <= 0:
        return "a process outside of this container"
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = []
    command = " ".join(" ".join(words[:MOST_WORDS]).split())[:MOST_CHARACTERS]
    return f"process {pid} ({command})" if command else f"process {pid}"

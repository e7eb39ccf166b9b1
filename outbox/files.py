"""Files that are databases of SQLite: what is kept beside one, and whether this process may look into it."""

from __future__ import annotations

import os
import pwd
from contextlib import suppress
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=64)  # asked for at each transaction
def beside(file: Path, suffix: str) -> Path:
    """What is kept beside a database, such as its write-ahead log: `-wal`."""
    return file.with_name(f"{file.name}{suffix}")


def reason_not_to_open(file: Path) -> str | None:
    """Why this process must not even look into a database, and after a `;` what to do about it. None: it may.

    Whoever looks first makes the log and its index beside the file, with its permissions. Made by a user who may read
    the database and not write to it, they lock out its owner, who may not write to them.
    """
    if not file.exists() or os.access(file, os.W_OK):
        return None
    if all(beside(file.resolve(), suffix).exists() for suffix in ("-wal", "-shm")):
        return None  # they are its owner's, and stay
    user, owner = _user(os.geteuid()), _user(file.stat().st_uid)
    return (
        f"it belongs to {owner}, and {user} may not write to it: the files that looking into it makes would lock "
        f"{owner} out; run this as {owner}, or let a group that both are in write to it: chmod g+w {file}"
    )


def make(file: Path) -> None:
    """An empty file for a new database, with the permissions that the umask leaves, unless there is one.

    SQLite itself never lets a group write to what it makes, whatever the umask. Where none can be made, SQLite says so.
    """
    with suppress(OSError):
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o666))


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"

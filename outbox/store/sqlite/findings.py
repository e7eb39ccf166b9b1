"""Whether SQLite, the file and the disk below it are as the outbox needs them."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from outbox.store.dialect import Finding, Level, finding
from outbox.store.sqlite.place import named_by

OLDEST_SQLITE: Final = (3, 35, 0)  # UPDATE … RETURNING
LITTLE_ROOM: Final = 10**9
NO_ROOM: Final = 10**8
NETWORK_FILESYSTEMS: Final = re.compile(
    r"^(nfs|cifs|smb|9p$|afs|ceph|glusterfs|lustre|virtiofs$|fuse\.(sshfs|s3fs|rclone|glusterfs|ceph))"
)


def findings(engine: Engine) -> list[Finding]:
    """The version, the file, the disk and the journal."""
    found = [
        finding(
            "sqlite",
            sqlite3.sqlite_version_info >= OLDEST_SQLITE,
            f"SQLite {sqlite3.sqlite_version}",
            "use a Python with SQLite 3.35 or newer",
        )
    ]
    try:
        path, mode = _open(engine)
    except DBAPIError as error:
        remedy = "check OUTBOX_DATABASE_URL, and that this user may read the file"
        return [*found, Finding("database", "fail", f"{named_by(engine.url)} cannot be read: {error.orig}", remedy)]
    return [
        *found,
        finding(
            "database",
            os.access(path, os.W_OK),
            f"{path} can be read{'' if os.access(path, os.W_OK) else ', and not written to, by this user'}",
            f"run relays as its owner, or let a group that both are in write to it: chmod g+w {path}",
        ),
        filesystem(path, _mounts()),
        disk(path, shutil.disk_usage(path.parent).free),
        finding(
            "journal",
            mode == "wal",
            f"journal mode {mode}",
            "call outbox.sqlite.prepare(engine) in the application, once, before its first connection",
        ),
    ]


def _open(engine: Engine) -> tuple[Path, str]:
    """The real path of the file, and its journal mode."""
    with engine.execution_options(outbox_begin="DEFERRED").connect() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()  # the first real read
        path = next(row[2] for row in connection.exec_driver_sql("PRAGMA database_list") if row[1] == "main")
        return Path(path), str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())


def filesystem(path: Path, mounts: Sequence[tuple[str, str]]) -> Finding:
    """Whether the file is on a local disk. `mounts`: (mount point, type), in the order they were mounted."""
    holding = [(len(mount), at, kind) for at, (mount, kind) in enumerate(mounts) if path.is_relative_to(mount)]
    if not holding:
        return Finding("filesystem", "ok", "this system does not tell its type")
    kind = max(holding)[2]  # the longest mount point, and of equal ones the last, which hides the others
    return finding(
        "filesystem",
        not NETWORK_FILESYSTEMS.match(kind),
        f"{path} is on {kind}",
        "move the database to a local disk: SQLite's write-ahead log does not work over a network",
    )


def _mounts() -> list[tuple[str, str]]:
    try:
        lines = Path("/proc/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [(mount.replace("\\040", " "), kind) for _, mount, kind, *_ in map(str.split, lines)]


def disk(path: Path, free: int) -> Finding:
    """Whether the filesystem of the database has room for more."""
    level: Level = "ok" if free >= LITTLE_ROOM else "warn" if free >= NO_ROOM else "fail"
    remedy = "" if level == "ok" else "make room: without any, applications cannot write"
    return Finding("disk", level, f"{free / 1e9:,.1f} GB free in {path.parent}", remedy)

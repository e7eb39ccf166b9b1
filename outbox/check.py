"""The doctor: what is as it should be, what is not, and what to do about it."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import Engine

from outbox import schema
from outbox.destinations.base import Destination
from outbox.errors import ConfigurationError, DatabaseUnavailable, DestinationError
from outbox.models import now_ms
from outbox.store import Store

Level = Literal["ok", "warn", "fail"]

OLDEST_SQLITE = (3, 35, 0)  # UPDATE … RETURNING
OLD_MS = 10 * 60 * 1_000
NETWORK_FILESYSTEMS = re.compile(r"^(nfs|cifs|smb|9p$|afs|ceph|glusterfs|lustre|fuse\.(sshfs|s3fs|rclone|glusterfs))")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `remedy` is empty when it is ok."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def database(engine: Engine) -> Iterator[Finding]:
    """The file, the tables in it, and how full they are."""
    path = Path(str(engine.url.database))
    version = sqlite3.sqlite_version_info
    yield _finding(
        "sqlite", version >= OLDEST_SQLITE, f"SQLite {sqlite3.sqlite_version}", "use a Python with SQLite 3.35 or newer"
    )
    filesystem = _filesystem(path)
    yield _finding(
        "filesystem",
        not NETWORK_FILESYSTEMS.match(filesystem),
        f"{path} is on {filesystem}",
        "move the database to a local disk: SQLite's write-ahead log does not work over a network",
    )
    room = os.statvfs(path.parent)
    free = room.f_bavail * room.f_frsize
    yield Finding(
        "disk",
        "ok" if free > 10**9 else "warn" if free > 10**8 else "fail",
        f"{free / 1e9:,.1f} GB free",
        "" if free > 10**9 else "make room: without any, applications cannot write",
    )
    try:
        schema.require_head(engine)
        yield Finding("schema", "ok", f"outbox tables at revision {schema.head()}")
    except (ConfigurationError, DatabaseUnavailable) as error:
        yield Finding("schema", "fail", str(error).partition(": run ")[0], "run 'outbox-relay migrate'")
        return
    with engine.connect() as connection:
        mode = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())
    yield _finding("journal", mode == "wal", f"journal mode {mode}", "call outbox.sqlite.prepare(engine)")
    store = Store(engine)
    try:
        yield from _rows(store)
    finally:
        store.close()


def _rows(store: Store) -> Iterator[Finding]:
    now, counts, oldest, control = now_ms(), store.counts(), store.oldest_unfinished(), store.control()
    waiting = counts["pending"] + counts["claimed"]
    age = 0 if oldest is None else now - oldest
    yield _finding(
        "queue",
        age < OLD_MS,
        f"{waiting:,} rows wait, the oldest for {age / 1000:,.0f} s",
        "see 'outbox-relay status' for what it waits for",
        "warn",
    )
    yield _finding("dead rows", not counts["dead"], f"{counts['dead']:,}", "see 'outbox-relay dead list'", "warn")
    yield _finding(
        "pause",
        control.paused_at is None,
        "not paused" if control.paused_at is None else f"paused by {control.paused_by}: {control.pause_reason}",
        "run 'outbox-relay resume' when the reason is gone",
        "warn",
    )
    relays = store.relays()
    yield _finding("relays", bool(relays), f"{len(relays)} listed", "run 'outbox-relay run'", "warn")
    ahead = max((relay["heartbeat_at"] - now for relay in relays), default=0)
    yield _finding("clock", ahead < 5_000, f"last heartbeat {max(ahead, 0) / 1000:.0f} s in the future",
                   "the clock was set back: have it kept by NTP", "warn")  # fmt: skip


def destination(engine: Engine, to: Destination) -> Iterator[Finding]:
    """The search engine, and each index that rows go to."""
    try:
        health = to.health()
    except DestinationError as error:
        yield Finding("destination", "fail", str(error), "check OUTBOX_ELASTICSEARCH_URL and its credentials")
        return
    supported = re.match(r"8\.(19|[2-9]\d)\.|9\.", health.version) is not None
    yield _finding(
        "destination",
        supported and health.product == "elasticsearch",
        f"{health.product} {health.version}, {health.status}",
        "use Elasticsearch 8.19 or newer, or 9.x",
    )
    yield _finding(
        "cluster", health.status != "red", f"status {health.status}", "some shards are away: see _cluster/health"
    )
    store = Store(engine)
    try:
        targets = store.targets()
    finally:
        store.close()
    for name, target in targets.items():
        problem = to.inspect_index(name, target)
        yield _finding(
            f"index {name}", problem is None, problem or f"goes to {target}", "see 'Operations' in the README"
        )


def _finding(name: str, good: bool, found: str, remedy: str, otherwise: Level = "fail") -> Finding:
    return Finding(name, "ok", found) if good else Finding(name, otherwise, found, remedy)


def _filesystem(path: Path) -> str:
    """The type of the filesystem that holds the file; 'unknown' where the system does not tell."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown"
    entries = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    holding = [(mount, kind) for mount, kind in entries if path.resolve().is_relative_to(mount)]
    return max(holding, key=lambda entry: len(entry[0]), default=("", "unknown"))[1]

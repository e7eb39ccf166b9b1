"""Where a database is: the file itself, whatever leads to it, so that all processes find what is kept beside it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

from sqlalchemy import URL, Engine, event
from sqlalchemy.util import asbool

from outbox.errors import ConfigurationError
from outbox.files import make, reason_not_to_open

_SCHEME: Final = "file:"


def named_by(url: URL) -> Path | None:
    """The absolute path that a URL names, be it as a `file:` URI; None for a database in memory."""
    name, query = url.database or "", dict(url.query)
    if asbool(query.get("uri", False)) and name.startswith(_SCHEME):
        parts = urlsplit(name)
        modes = (query.get("mode"), *parse_qs(parts.query).get("mode", ()))
        name = "" if "memory" in modes else unquote(parts.path)
    return Path(name).absolute() if name and name != ":memory:" else None


def absolute(url: URL) -> URL:
    """The same database, also for a process that works in another directory."""
    path, name = named_by(url), url.database or ""
    if path is None:
        return url
    query = urlsplit(name).query
    as_uri = f"file://{quote(str(path))}{'?' if query else ''}{query}"
    return url.set(database=as_uri if asbool(url.query.get("uri", False)) else str(path))


def path_of(engine: Engine) -> Path | None:
    """The file itself, whatever link or `file:` URI leads to it; None for a database in memory."""
    path = named_by(engine.url)
    return path and path.resolve()


def opened_by(cursor: Any) -> Path | None:
    """The same of an open connection, as SQLite itself has found it."""
    cursor.execute("PRAGMA database_list")
    name = next((name for _, schema, name in cursor.fetchall() if schema == "main"), None)
    return Path(name) if name else None


def guard(engine: Engine, *, create: bool) -> None:
    """See `outbox.store.dialect.Dialect.guard`."""
    path = named_by(engine.url)
    if path is None:
        return
    if why := reason_not_to_open(path):
        raise ConfigurationError(f"database {path}: {why}")
    if not create and not path.is_file():
        raise ConfigurationError(
            f"database {path} does not exist; check OUTBOX_DATABASE_URL, or have the application or "
            "'outbox-relay migrate' make it"
        )

    @event.listens_for(engine, "do_connect")
    def on_connecting(dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
        if create:
            make(path)
        # The file may be removed later: a new connection would leave an empty one in its place.
        name = arguments[0] if options.get("uri") else f"file://{quote(arguments[0])}"
        mode = "" if "mode=" in name else f"{'&' if '?' in name else '?'}mode=rw"
        return dialect.connect(f"{name}{mode}", **{**options, "uri": True})


def open_for_lock(path: Path, database: Path) -> IO[bytes]:
    """A small file beside the database, made if it is missing. Raises `OSError`.

    It has the permissions of the database, as SQLite's own files beside it have: who may write to the one may lock the
    other, whatever the umask of its maker.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    with suppress(OSError):  # it may be another user's, who has seen to it
        found = database.stat()
        os.fchmod(file.fileno(), found.st_mode & 0o666)
        if os.geteuid() == 0:
            os.fchown(file.fileno(), found.st_uid, found.st_gid)
    return file

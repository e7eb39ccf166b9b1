"""PgBouncer in transaction mode before a PostgreSQL server: sessions share its connections, a transaction at a time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import URL, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from tests.support import LIMIT_S
from tests.support.node import free_port, own_directory
from tests.support.postgres import as_user

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""


def unavailable_reason() -> str | None:
    """Why there can be none here; None if there can."""
    return None if PROGRAM else "no PgBouncer: install the Debian package pgbouncer"


def knows_prepared_statements() -> bool:
    if not PROGRAM:
        return False
    said = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.findall(r"\d+", said)[:2])) >= (1, 21)


@contextlib.contextmanager
def pooled(server: URL, **given: str) -> Iterator[URL]:
    """The address of a pooler before that server. What is not `given` is as PgBouncer comes."""
    directory, lock = own_directory(Path(tempfile.gettempdir()))
    url = server.set(port=free_port())
    settings = {"listen_addr": "127.0.0.1", "listen_port": url.port, "unix_socket_dir": "", "auth_type": "any"}
    lines = [f"{name} = {value}" for name, value in ({**settings, "pool_mode": "transaction"} | given).items()]
    to = f"* = host={server.host} port={server.port} user={server.username}"
    (directory / "pgbouncer.ini").write_text("\n".join(["[databases]", to, "[pgbouncer]", *lines, ""]))
    directory.chmod(0o711)
    with (directory / "pgbouncer.log").open("ab") as log:
        command = as_user(PROGRAM, str(directory / "pgbouncer.ini"), at_eof="KILL")
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=directory)
    try:
        _wait_for(url, process, directory / "pgbouncer.log")
        yield url
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(LIMIT_S)
        shutil.rmtree(directory)
        lock.close()


def _wait_for(url: URL, process: subprocess.Popen[bytes], log: Path) -> None:
    engine, deadline = create_engine(url, poolclass=NullPool), time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(DBAPIError), engine.connect():
            return
        time.sleep(0.05)
    raise RuntimeError(f"PgBouncer did not start:\n{log.read_text(errors='replace')[-3_000:]}")

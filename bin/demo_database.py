"""The database of the demo: a file, or a PostgreSQL that runs as long as the demo does."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import click
from node import free_port
from rich.console import Console
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from outbox import settings

FILE = "sqlite:///crm.db"
USER = "crm"
ACCOUNT = "postgres"  # of the system: the server refuses to run as root
STARTED_WITHIN_S = 60

# The server ends with the input of its shell, even if the demo is killed.
_UNTIL_EOF = '"$0" "$@" & cat > /dev/null; kill -INT $!; wait'


def query(sql: str, *parameters: str, of: str | None = None) -> list[tuple[Any, ...]]:
    """What a statement finds, past everything that the outbox does. `of`: another database than the demo's."""
    with _engine(of or address()).connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(sql, parameters or None)]


def address() -> str:
    """The one of the demo in the working directory."""
    return settings.load().database_url or FILE


def name() -> str:
    """What people call it."""
    return "crm.db" if address() == FILE else "PostgreSQL"


def for_psql() -> str:
    """Its address without the driver."""
    return address().replace("+psycopg", "", 1)


def is_there() -> bool:
    """Whether it answers: a PostgreSQL ends with its demo."""
    try:
        return query("SELECT 1") == [(1,)]
    except OperationalError:
        return False


@cache
def _engine(url: str) -> Engine:
    return create_engine(url)


@contextmanager
def postgres(console: Console, directory: Path, *settings: str) -> Iterator[str]:
    """The address of a new PostgreSQL with an empty database, which is gone afterwards. Settings: `name=value`."""
    binaries = installed()
    if binaries is None:
        raise click.ClickException("--postgres needs the programs of PostgreSQL (Debian: apt-get install postgresql)")
    with _place(directory) as (place, as_user), console.status("starting PostgreSQL…"):
        password, port = secrets.token_hex(8), free_port()
        url = f"postgresql+psycopg://{USER}:{password}@127.0.0.1:{port}/crm"
        (place / "password").touch(0o600)
        (place / "password").write_text(password)
        os.chown(place / "password", place.stat().st_uid, place.stat().st_gid)
        access = ("--username", USER, "--auth", "scram-sha-256", "--pwfile", place / "password")
        kind = ("--encoding", "UTF8", "--locale", "C", "--no-sync")
        made = subprocess.run(
            [*as_user, binaries / "initdb", *access, *kind, "--pgdata", place / "data"],
            capture_output=True,
            text=True,
            cwd=place,
            check=False,
        )
        if made.returncode:
            raise click.ClickException(f"initdb failed: {made.stderr.strip()}")
        server = [str(binaries / "postgres"), "-D", str(place / "data"), "-p", str(port), "-h", "127.0.0.1", "-k", ""]
        server += [argument for setting in settings for argument in ("-c", setting)]
        log = directory / "postgres.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*as_user, "sh", "-c", _UNTIL_EOF, *server],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=place,
                start_new_session=True,  # Ctrl-C reaches those who use it first
            )
        try:
            _create_database(url, process, log)
            yield url
        finally:
            process.communicate()


def _create_database(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """As soon as the server answers."""
    engine = create_engine(url.removesuffix("crm") + "postgres", isolation_level="AUTOCOMMIT")
    deadline = time.monotonic() + STARTED_WITHIN_S
    while True:
        try:
            with engine.connect() as connection:
                connection.execute(text("CREATE DATABASE crm"))
            engine.dispose()
            return
        except OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise click.ClickException(f"PostgreSQL did not start; see {log}") from error
            time.sleep(0.05)


@contextmanager
def _place(directory: Path) -> Iterator[tuple[Path, list[str]]]:
    """Where it has its files, and what comes before its commands. Root's checkout may be closed to others."""
    if os.geteuid():
        place, as_user = directory / "postgres", []
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o700)
    else:
        try:
            account = pwd.getpwnam(ACCOUNT)
        except KeyError as error:
            raise click.ClickException("PostgreSQL refuses to run as root: start the demo as another user") from error
        place, as_user = Path(tempfile.mkdtemp(prefix="outbox-demo-")), ["runuser", "-u", ACCOUNT, "--"]
        os.chown(place, account.pw_uid, account.pw_gid)
    try:
        yield place, as_user
    finally:
        shutil.rmtree(place, ignore_errors=True)


def installed() -> Path | None:
    """Where the newest server is installed; Debian keeps each version in a directory of its own."""
    found = shutil.which("postgres")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return Path(found).resolve().parent if found else versions[-1].parent if versions else None

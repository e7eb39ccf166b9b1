"""A real PostgreSQL server under test control, with a database for each test."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import URL, create_engine
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from outbox.store.models import metadata
from tests.support import LIMIT_S
from tests.support.node import free_port, own_directory, remove_leftovers

USER = "postgres"
LOCAL = "127.0.0.1"
TEMPLATE = "with_tables"
# What starts it ends with the input of this program, even if that is killed.
_UNTIL_EOF = '"$0" "$@" & cat > /dev/null; kill -{signal} $!; wait'


def binaries() -> Path | None:
    """Where the newest server is installed; Debian keeps each version in a directory of its own."""
    found = shutil.which("postgres")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return Path(found).resolve().parent if found else versions[-1].parent if versions else None


def unavailable_reason() -> str | None:
    """Why no server can be had here; None if one can."""
    if binaries() is None:
        return "no PostgreSQL: install the Debian package postgresql"
    return None if find_spec("psycopg") else "no psycopg: install outbox-relay[postgres]"


def as_user(*command: str, at_eof: str | None = None) -> list[str]:
    """The command for a program that refuses to be root. `at_eof`: the signal that it gets when its input ends."""
    user = ["runuser", "-u", USER, "--"] if os.geteuid() == 0 else []
    shell = ["sh", "-c", _UNTIL_EOF.format(signal=at_eof)] if at_eof else []
    return [*user, *shell, *command]


class Postgres:
    """One server. `stop` and `start` do to it what they say; its data stays until this program ends.

    `data`, `log`: the disks of its files and of its write-ahead log. `listen`: its addresses.
    """

    def __init__(self, *, data: Path | None = None, log: Path | None = None, listen: Sequence[str] = (LOCAL,)) -> None:
        remove_leftovers(Path(tempfile.gettempdir()))
        self._directory, self._lock = own_directory(Path(tempfile.gettempdir()))
        self._directory.chmod(0o711)
        self._data = self._standby = (data or self._directory) / "data"
        self._port, self._listen = free_port(), listen
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._make(self._data)
        self._make(log_files := (log or self._directory) / "log")
        options = ["--encoding", "UTF8", "--locale", "C.UTF-8", "--no-instructions", "--auth", "trust"]
        options += ["--waldir", str(log_files), "--wal-segsize", "1" if log else "16"]
        initdb = self._command("initdb", "--pgdata", self._data, "--username", USER, *options)
        subprocess.run(initdb, check=True, capture_output=True, cwd=self._data)
        with (self._data / "pg_hba.conf").open("a") as trusted:
            trusted.write("host all all samenet trust\n")
        self.start()
        self.create(TEMPLATE, template=None)
        engine = create_engine(self.url(TEMPLATE), poolclass=NullPool)
        metadata.create_all(engine)

    def url(self, database: str) -> URL:
        return URL.create("postgresql+psycopg", USER, host=LOCAL, port=self._port, database=database)

    def start(self) -> None:
        settings = ("-c", "max_connections=200", "-c", "max_prepared_transactions=5", "-c", "log_checkpoints=off")
        command = self._command(
            "postgres",
            "-D",
            self._data,
            "-p",
            self._port,
            "-k",
            "",
            "-h",
            ",".join(self._listen),
            *settings,
            at_eof="QUIT",
        )
        log = self._directory / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, cwd=self._data
            )
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(DBAPIError):
                self.run("SELECT 1")
                return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text(errors='replace')[-3_000:]}")

    def stop(self) -> None:
        """As in a crash: what is committed stays."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(LIMIT_S)
            self._process = None

    def copy(self) -> None:
        """A standby as it is now: it lacks all that comes after."""
        self._standby = self._directory / f"standby-{next(self._numbers)}"
        self._make(self._standby)
        given = ("-D", self._standby, "-h", LOCAL, "-p", self._port, "-U", USER, "--checkpoint=fast")
        subprocess.run(self._command("pg_basebackup", *given), check=True, capture_output=True, cwd=self._data)
        (self._standby / "standby.signal").touch()

    def fail_over(self) -> None:
        """The standby takes the place and the address of this server, which is gone."""
        self.stop()
        self._data = self._standby
        self.start()
        self.run("SELECT pg_promote()")

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._lock.close()

    def run(self, sql: str, database: str = USER) -> None:
        """A statement outside of transactions."""
        engine = create_engine(self.url(database), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(sql)

    def create(self, name: str, *, template: str | None = TEMPLATE) -> None:
        self.run(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))

    @contextlib.contextmanager
    def database(self, *, empty: bool = False) -> Iterator[URL]:
        """A new database, with the outbox tables unless `empty`."""
        name = f"test_{next(self._numbers)}"
        self.create(name, template=None if empty else TEMPLATE)
        try:
            yield self.url(name)
        finally:
            with contextlib.suppress(OperationalError):  # the test has stopped the server
                self.run(f"DROP DATABASE {name} WITH (FORCE)")

    @staticmethod
    def _make(directory: Path) -> None:
        directory.mkdir(mode=0o700)
        if os.geteuid() == 0:  # it refuses to be root
            account = pwd.getpwnam(USER)
            os.chown(directory, account.pw_uid, account.pw_gid)

    def _command(self, program: str, *arguments: Any, at_eof: str | None = None) -> list[str]:
        found = binaries()
        assert found is not None
        return as_user(str(found / program), *map(str, arguments), at_eof=at_eof)

"""The programs that `peers --postgres` compares: how each is set up, filled, run, and written to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import bench_contacts
import click
from bench_database import url_of
from bench_load import COMMAND
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

HERE = Path(__file__).parent
PGSYNC = "7.3.0"
IN_ONE_TRANSACTION = 1_000

Rows = Sequence[tuple[str, dict[str, Any]]]
Arguments = Sequence[str | Path]


class Program(Protocol):
    """With a database of its own; all use the one node, and the one index."""

    def fill(self, rows: Rows) -> None:
        """Set it up, and have so many rows wait."""

    def running(self) -> Any:
        """A context in which it runs: the processes that belong to it."""

    def writer(self, rows: Rows, rate: int) -> Any:
        """A context with an application that writes rows one by one: the lines that it says."""

    def cost(self, rows: Rows, number: int) -> dict[str, list[float]]:
        """What a transaction takes `without` and `with` it: microseconds of the clock, and of the writer's CPU."""


@contextmanager
def process(arguments: Arguments, environment: Mapping[str, str], directory: Path | None = None) -> Iterator[int]:
    """One that runs meanwhile, and has no reason to end before."""
    with tempfile.TemporaryFile("w+") as log:
        running = subprocess.Popen(
            arguments, env=os.environ | environment, cwd=directory, stdin=subprocess.PIPE, stdout=log, stderr=log
        )
        try:
            yield running.pid
        finally:
            ended = running.poll()
            running.terminate()
            running.communicate()
            if ended is not None:
                log.seek(0)
                raise click.ClickException(f"{arguments[0]} ended with {ended}: {log.read()[-2000:]}")


@contextmanager
def application(arguments: Arguments, environment: Mapping[str, str], rows: Rows) -> Iterator[Iterator[str]]:
    """One that reads rows: the lines that it says."""
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as log:
        given.writelines(f"{json.dumps(row)}\n" for row in rows)
        given.seek(0)
        running = subprocess.Popen(
            arguments, env=os.environ | environment, stdin=given, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert running.stdout is not None
        yield iter(running.stdout)
        if running.wait():
            log.seek(0)
            raise click.ClickException(f"{arguments[0]} ended with {running.returncode}: {log.read()[-2000:]}")


class PythonWriter:
    """What the two programs share whose application is bench_application.py."""

    kind: str
    engine: Engine

    def writer(self, rows: Rows, rate: int) -> Any:
        return application(self._command("write", rate), self._environment(), rows)

    def cost(self, rows: Rows, number: int) -> dict[str, list[float]]:
        with application(self._command("cost", number), self._environment(), rows) as said:
            found: dict[str, list[float]] = json.loads(next(said))
            return found

    def _command(self, what: str, number: int) -> Arguments:
        return [sys.executable, HERE / "bench_application.py", what, self.kind, str(number)]

    def _environment(self) -> dict[str, str]:
        return {"OUTBOX_DATABASE_URL": url_of(self.engine)}

    def _add(self, made: sessionmaker[Session], rows: Rows) -> None:
        for at in range(0, len(rows), IN_ONE_TRANSACTION):
            with made.begin() as session:
                some = rows[at : at + IN_ONE_TRANSACTION]
                session.add_all(bench_contacts.Contact(id=id_, **document) for id_, document in some)


@dataclass
class OutboxRelay(PythonWriter):
    """As it comes: the application's sessions are captured, one relay."""

    engine: Engine
    url: str
    kind = "capture"

    def fill(self, rows: Rows) -> None:
        bench_contacts.Base.metadata.create_all(self.engine)
        made = sessionmaker(self.engine)
        bench_contacts.registry.capture(made)
        self._add(made, rows)

    @contextmanager
    def running(self) -> Iterator[list[int]]:
        environment = self._environment() | {
            "OUTBOX_ELASTICSEARCH_URL": self.url,
            "OUTBOX_ENTITIES": "bench_contacts:registry",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        }
        with process([COMMAND, "run"], environment) as pid:
            yield [pid]


@dataclass
class PgSync(PythonWriter):
    """Its daemon with triggers, a replication slot and Redis. It finds its settings in the environment."""

    engine: Engine
    url: str
    python: Path
    directory: Path
    redis: tuple[int, int]
    settings: Mapping[str, str] = field(default_factory=dict)
    kind = "triggers"

    def fill(self, rows: Rows) -> None:
        bench_contacts.Base.metadata.create_all(self.engine)
        schema = (HERE / "peers/pgsync/schema.json").read_text()
        self._schema.write_text(schema.replace("DATABASE", str(self.engine.url.database)))
        bootstrap = [*self._program, "--bootstrap"]
        environment = os.environ | self._settings()
        made = subprocess.run(
            bootstrap, cwd=self.directory, env=environment, capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise click.ClickException(f"pgsync --bootstrap failed: {made.stderr[-2000:]}")
        self._add(sessionmaker(self.engine), rows)

    @contextmanager
    def running(self) -> Iterator[list[int]]:
        with process([*self._program, "--daemon"], self._settings(), self.directory) as pid:
            yield [pid, self.redis[1]]
        with self.engine.begin() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(active_pid), pg_drop_replication_slot(slot_name)"
                    " FROM pg_replication_slots WHERE database = current_database()"
                )
            )

    @property
    def _schema(self) -> Path:
        return self.directory / f"{self.engine.url.database}.json"

    @property
    def _program(self) -> Arguments:
        return [self.python, HERE / "peers/pgsync/run.py", "--config", self._schema]

    def _settings(self) -> dict[str, str]:
        at = self.engine.url
        return {
            "PG_HOST": str(at.host),
            "PG_PORT": str(at.port),
            "PG_USER": str(at.username),
            "PG_PASSWORD": str(at.password),
            "ELASTICSEARCH_URL": self.url,
            "ELASTICSEARCH_TIMEOUT": "60",  # with 10 s, the default, it ends where a busy machine takes longer
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(self.redis[0]),
            **self.settings,
        }


@dataclass
class HibernateSearch:
    """An application that writes, and another one that processes events."""

    engine: Engine
    url: str
    classpath: str
    version: str  # of the node
    settings: Mapping[str, str] = field(default_factory=dict)

    def fill(self, rows: Rows) -> None:
        with application(self._command("write", "0", **{"hibernate.hbm2ddl.auto": "create"}), {}, rows):
            pass

    @contextmanager
    def running(self) -> Iterator[list[int]]:
        with process(self._command("process"), {}) as pid:
            yield [pid]

    def writer(self, rows: Rows, rate: int) -> Any:
        return application(self._command("write", str(rate)), {}, rows)

    def cost(self, rows: Rows, number: int) -> dict[str, list[float]]:
        with application(self._command("cost", str(number)), {}, rows) as said:
            found: dict[str, list[float]] = json.loads(next(said))
            return found

    def _command(self, *arguments: str, **more: str) -> Arguments:
        at = self.engine.url
        settings = {
            "hibernate.connection.url": f"jdbc:postgresql://{at.host}:{at.port}/{at.database}",
            "hibernate.connection.username": at.username,
            "hibernate.connection.password": at.password,
            "hibernate.search.backend.uris": self.url,
            "hibernate.search.backend.version": self.version,
            "hibernate.search.backend.version_check.enabled": "false",  # the node of bin/elasticsearch has no `GET /`
            "hibernate.search.schema_management.strategy": "none",  # the index is there
            **self.settings,
            **more,
        }
        given = [f"-D{name}={value}" for name, value in settings.items()]
        return ["java", "-Xmx512m", "-cp", self.classpath, *given, "Application", *arguments]


class NotToBeHad(Exception):
    """What a registry has refused."""


def built_hibernate_search(directory: Path) -> str:
    """The class path of bin/peers/hibernate-search, compiled in that directory."""
    project = directory / "hibernate-search"
    shutil.copytree(HERE / "peers/hibernate-search", project)
    _made(["mvn", "-B", "-q", "compile", "dependency:build-classpath", "-Dmdep.outputFile=classpath"], project)
    return f"{project / 'target/classes'}:{(project / 'classpath').read_text().strip()}"


def installed_pgsync(directory: Path) -> Path:
    """The Python of a new environment that has it."""
    _made([sys.executable, "-m", "venv", "pgsync"], directory)
    python = directory / "pgsync/bin/python"
    _made([python, "-m", "pip", "install", "--quiet", f"pgsync=={PGSYNC}"], directory)
    return python


def _made(arguments: Arguments, directory: Path) -> None:
    done = subprocess.run(arguments, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise NotToBeHad(f"{arguments[0]}: {next((line for line in said if 'ERROR' in line), said[-1:])}")

"""An engine that is not prepared is said, and so is who holds the lock."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from outbox import DatabaseUnavailable, EntityRegistry, OutboxRepository, check, schema, sqlite
from outbox.store.sqlite import engine as engines
from outbox.store.store import Store
from tests.support.models import Base, Contact

HOLD = """import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print(flush=True)
sys.stdin.read()
"""
linux = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux tells who holds a lock")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    engine = create_engine(f"sqlite:///{path}")
    schema.upgrade(engine)
    Base.metadata.create_all(engine)
    engine.dispose()
    return path


@contextmanager
def held_elsewhere(path: Path) -> Iterator[int]:
    """Another process has the write lock. Yields its number."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stdin
        process.stdout.readline()
        yield process.pid
        process.stdin.close()


def engine_of(path: Path, *, prepared: bool) -> Engine:
    made = create_engine(f"sqlite:///{path}", connect_args={"timeout": 0.1})
    if prepared:
        sqlite.prepare(made, busy_timeout=0.1)
    return made


@linux
@pytest.mark.parametrize("wal", [True, False])
@pytest.mark.parametrize("prepared", [True, False])
def test_error_that_says_locked_names_the_process(database: Path, wal: bool, prepared: bool) -> None:
    if wal:
        sqlite3.connect(database).execute("PRAGMA journal_mode = WAL")
    engine = engine_of(database, prepared=prepared)
    engine.connect().close()  # a prepared one switches to WAL
    with held_elsewhere(database) as pid, Session(engine) as session:
        with pytest.raises(OperationalError, match=rf"database is locked: process {pid} \(.*python.*\) has"):
            OutboxRepository(session).index("contacts", "1", {"name": "Ada"})
        session.rollback()
        if prepared:
            with pytest.raises(OperationalError, match=f"database is locked: process {pid}"):
                session.execute(text("DELETE FROM contacts"))
    engine.dispose()


@linux
def test_operator_reads_who_holds_the_lock(database: Path) -> None:
    engine = engine_of(database, prepared=True)
    store = Store(engine)
    with held_elsewhere(database) as pid, pytest.raises(DatabaseUnavailable, match=f"is locked: process {pid} "):
        store.register_index("contacts", "contacts-000001")
    store.close()
    engine.dispose()


@linux
def test_other_connection_of_the_same_process_is_said(database: Path) -> None:
    engine = engine_of(database, prepared=True)
    with engine.connect() as first, engine.connect() as second:
        first.execute(text("DELETE FROM contacts"))
        with pytest.raises(OperationalError, match="another connection of this process has the write lock"):
            second.execute(text("DELETE FROM contacts"))
    engine.dispose()


def test_first_write_through_an_unprepared_engine_is_warned_of_once(
    database: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_warned", False)
    for prepared, warnings in ((True, 0), (False, 1), (False, 1)):
        engine = engine_of(database, prepared=prepared)
        with Session(engine) as session, session.begin():
            OutboxRepository(session).index("contacts", "1", {"name": "Ada"})
        assert [f"the engine of {database} is not prepared" in line for line in said] == [True] * warnings
        engine.dispose()


def test_database_in_memory_is_warned_of_never(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_warned", False)
    engine = create_engine("sqlite://")
    schema.upgrade(engine)
    with Session(engine) as session, session.begin():
        OutboxRepository(session).index("contacts", "1", {"name": "Ada"})
    assert said == []


@pytest.mark.parametrize(("prepared", "level"), [(True, "ok"), (False, "warn")])
def test_check_warns_of_an_engine_that_is_not_prepared(database: Path, prepared: bool, level: str) -> None:
    engine, registry = engine_of(database, prepared=prepared), EntityRegistry()
    registry.add(Contact, index="contacts", fields=["name"])
    assert check.engines(registry) == check.engines(None) == []
    sessions = sessionmaker(engine.execution_options(echo=False))
    registry.capture(sessions)
    (found,) = check.engines(registry)
    assert (found.name, found.level) == ("engine", level)
    assert ("sqlite.prepare(engine)" in found.remedy, str(database) in found.found) == (not prepared, not prepared)
    engine.dispose()

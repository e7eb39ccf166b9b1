"""From every earlier revision to the newest: nothing is lost or changed, and nobody works on tables of another one."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from subprocess import PIPE
from threading import Event
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from click.testing import CliRunner
from sqlalchemy import Engine, Integer, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox import EntityRegistry, schema, sqlite
from outbox.cli import main
from outbox.errors import SchemaError
from outbox.maintenance.scheduler import Maintenance
from outbox.reindex.reindexer import reindex
from outbox.store import claims, jobs
from outbox.store.models import EPOCH_STEP, VERSION_TABLE, now_ms
from outbox.store.store import Store
from tests.support import LIMIT_S
from tests.support.outbox import Outbox, settings
from tests.support.places import EmbeddedPlace, Place
from tests.support.proxy import FaultProxy, bulk, hold_answer
from tests.support.relays import COMMAND, Relays, until

ROOT = Path(__file__).parents[1]
ALEMBIC = Config(ROOT / "alembic.ini")
REVISIONS = [each.revision for each in reversed([*ScriptDirectory.from_config(ALEMBIC).walk_revisions()])]
HEAD = REVISIONS[-1]
HOUR = 3_600_000

NEXT = f"""
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = "9999", "{HEAD}", None, None
def upgrade():
    op.add_column("outbox_events", sa.Column("weight", sa.Integer(), server_default="1", nullable=False))
    op.create_table("outbox_weights", sa.Column("id", sa.Integer(), primary_key=True))
    op.create_index("ix_outbox_events_weight", "outbox_events", ["weight"])
def downgrade():
    pass
"""


@pytest.fixture(autouse=True)
def _database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUTBOX_DATABASE_URL", f"sqlite:///{tmp_path / 'app.db'}")


@pytest.fixture
def old() -> Iterator[Engine]:
    """A prepared engine on a file that has no tables so far."""
    made = create_engine("sqlite:///app.db")
    sqlite.prepare(made)
    yield made
    made.dispose()


@pytest.fixture
def search(tmp_path: Path) -> Iterator[EmbeddedPlace]:
    made = EmbeddedPlace(tmp_path / "search.db")
    yield made
    made.destination.close()


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.stdout + result.stderr


# -- what stands in the tables at a revision ---------------------------------------------------------------------------


def put(engine: Engine, table: str, *rows: dict[str, Any]) -> None:
    """Rows as a version of that time wrote them: columns that the table has not got yet are left out."""
    with engine.begin() as connection:
        columns = {row[1] for row in connection.exec_driver_sql(f"PRAGMA table_info({table})")}
        for row in rows if columns else ():
            known = {name: value for name, value in row.items() if name in columns}
            connection.exec_driver_sql(
                f"INSERT OR REPLACE INTO {table} ({', '.join(known)}) VALUES ({', '.join('?' * len(known))})",
                tuple(known.values()),
            )


def everything(engine: Engine, like: dict[str, list[dict[str, Any]]] | None = None) -> dict[str, list[dict[str, Any]]]:
    """All rows of all outbox tables; `like` narrows it to the tables and columns that were there before."""
    with engine.begin() as connection:
        named = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'outbox_%' AND name <> ?"
        names = {row[0] for row in connection.exec_driver_sql(named, (VERSION_TABLE,))}
        found: dict[str, list[dict[str, Any]]] = {}
        for name in names if like is None else like:
            rows = connection.exec_driver_sql(f"SELECT * FROM {name} ORDER BY 1, 2").mappings().all()
            columns = like[name][0] if like and like[name] else None
            found[name] = [{key: row[key] for key in (columns or row)} for row in rows]
        return found


def event(id_: int, document_id: str, action: str = "index", **given: Any) -> dict[str, Any]:
    row = {"id": id_, "action": action, "index_name": "contacts", "document_id": document_id, "state": "pending"}
    return {**row, "tenant_id": "t1", "document_bytes": 9, "created_at": now_ms() - HOUR, **given}


def fill(engine: Engine, now: int) -> None:
    """A row in every state and with every outcome, and a row in every other table."""
    tried = {"attempts": 1, "deliveries": 1, "error_type": "x", "error": "it failed"}
    held = {"state": "claimed", "deliveries": 1, "claim_token": "t", "claimed_by": 2}
    put(
        engine,
        "outbox_events",
        event(1, "fresh"),
        event(2, "due", available_at=now - 1, **tried),
        event(3, "later", available_at=now + 40_000, **tried),
        event(4, "held", **held, lease_expires_at=now + 50_000),
        event(5, "expired", **held, lease_expires_at=now - 1),
        event(6, "fresh", "update"),
        event(7, "gone", "delete"),
        event(8, "dead", state="dead", finished_at=now, **tried),
        *(
            event(10 + n, outcome, state="done", outcome=outcome, finished_at=now, deliveries=1)
            for n, outcome in enumerate(("applied", "deleted", "superseded", "coalesced", "retried"))
        ),
    )
    for id_ in (1, 2, 3, 4, 5, 6, 8, 10):
        put(engine, "outbox_documents", {"event_id": id_, "document": json.dumps({f"n{id_}": id_})})
    put(
        engine,
        "outbox_indexes",
        {"index_name": "contacts", "physical_index": "contacts-000001", "created_at": now},
        {"index_name": "deals", "physical_index": "deals-000002", "role": "live", "created_at": now},
    )
    with engine.begin() as connection:
        if "role" in {row[1] for row in connection.exec_driver_sql("PRAGMA table_info(outbox_indexes)")}:
            connection.exec_driver_sql(
                "INSERT INTO outbox_indexes (index_name, physical_index, role, refused)"
                " VALUES ('deals', 'deals-000001', 'old', 3)"
            )
    relay = {"host": "h", "pid": 1, "version": "0.0.1", "started_at": now, "heartbeat_at": now}
    put(engine, "outbox_relays", {"id": 2, **relay, "breakers": '[{"scope": "index"}]'})
    paused = {"paused_at": now, "paused_by": "ada", "pause_reason": "upgrade"}
    put(engine, "outbox_control", {"id": 1, "epoch": 3, "highest_pruned_version": 7, **paused})
    counted = {"minute": now - now % 60_000, "index_name": "contacts", "entity": "", "tenant_id": "t1"}
    put(engine, "outbox_stats", {**counted, "action": "index", "done": 4, "latency_le_10ms": 4})
    ended = {"state": "done", "phase": "drop", "watermark": EPOCH_STEP, "finished_at": now, "position": "[1]"}
    put(
        engine,
        "outbox_reindex_jobs",
        {"id": 1, "index_name": "deals", "old_index": "deals-000001", "new_index": "deals-000002", **ended},
        {"id": 2, "index_name": "notes", "old_index": "notes-000001", "state": "running", "phase": "scan"},
    )
    put(engine, "outbox_depths", {"minute": now - now % 60_000, "unfinished": 7, "oldest_ms": HOUR})
    held = {"index_name": "notes", "tenant_id": "", "paused_at": now, "paused_by": "ada", "reason": "upgrade"}
    put(engine, "outbox_pauses", held)
    failed = {"event_id": 8, "attempt": 1, "failed_at": now, "state": "dead", "error_type": "x", "error": "it failed"}
    put(engine, "outbox_failures", failed)
    done = {"began_at": now, "ended_at": now, "acted_by": "ada", "action": "purge", "about": "all", "affected": 3}
    put(engine, "outbox_audit", done)
    found = {"id": 1, "started_at": now, "finished_at": now, "started_by": "relay 2", "entities": "[]", "sample": 1.0}
    put(engine, "outbox_verifications", {**found, "documents": 9, "missing": 1})


@pytest.mark.parametrize("revision", REVISIONS)
def test_upgrade_changes_nothing_and_then_a_relay_delivers_what_is_due(
    revision: str, old: Engine, search: EmbeddedPlace
) -> None:
    search.destination.ensure_index("contacts")
    command.upgrade(ALEMBIC, revision)
    fill(old, now := now_ms())
    before = everything(old)
    assert all(before.values()), "a table of that revision without a row proves nothing"
    code, said = call("migrate")
    assert (code, schema.revision(old), HEAD in said) == (0, HEAD, True)
    assert everything(old, before) == before

    outbox = Outbox(old)
    outbox.drain(search.destination)
    assert outbox.counts() == {"pending": 5, "claimed": 2, "done": 5, "dead": 1}  # it is still paused
    assert call("resume")[0] == 0
    Maintenance(old, 1, settings(), list).reap(outbox.store())
    outbox.drain(search.destination)
    assert {id_: outbox.state(id_) for id_ in (1, 2, 3, 4, 5, 6, 7, 8)} == {
        1: "done", 2: "done", 3: "pending", 4: "claimed", 5: "done", 6: "done", 7: "done", 8: "dead"
    }  # fmt: skip
    assert search.documents("contacts") == {"fresh": {"n1": 1, "n6": 6}, "due": {"n2": 2}, "expired": {"n5": 5}}
    sent_before = 14 if revision < "0012" else 0  # as an id
    assert search.version("contacts", "fresh") > 3 * EPOCH_STEP + sent_before
    assert outbox.store().routes()[1] == ({"deals": ("deals-000001",)} if revision >= "0002" else {})
    outbox.drain(search.destination, now + 3 * HOUR)
    assert search.documents("contacts")["later"] == {"n3": 3}
    outbox.close()


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_tables_of_every_earlier_revision_are_refused_with_the_remedy_and_take_the_rows_of_applications(
    revision: str, old: Engine
) -> None:
    command.upgrade(ALEMBIC, revision)
    for arguments in (("run",), ("status",), ("dead", "list")):
        given = {"OUTBOX_ELASTICSEARCH_URL": "http://localhost:1"}
        result = CliRunner().invoke(main, arguments, env=given)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert f"is at revision {revision}, this version needs {HEAD}: run 'outbox-relay migrate'" in result.stderr
    outbox = Outbox(old)
    row = outbox.index("contacts", "c1", {"n": 1})
    assert call("migrate")[0] == 0
    assert outbox.state(row) == "pending"
    outbox.close()


ROW = "action, index_name, document_id, tenant_id, entity, document_bytes, created_at"
OF_OLD = (  # what each version so far has written, one row or the next of several
    f"INSERT INTO outbox_events ({ROW}) VALUES (?, ?, ?, ?, ?, ?, ?)",
    f"INSERT INTO outbox_events (id, {ROW}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    "INSERT INTO outbox_documents (event_id, document) VALUES (?, ?)",
)


def old_application(over: Event, written: list[int]) -> None:
    """Writes two documents in each transaction, by statements that know no newer column, until it is over."""
    row, row_with_id, document = OF_OLD
    with closing(sqlite3.connect("app.db", isolation_level=None, timeout=LIMIT_S)) as connection:
        while not over.wait(0.002):
            number, now = len(written), now_ms()
            content = json.dumps({"n": number})
            names = [f"{letter}{number % 50}" for letter in "ab"]
            one, other = (("index", "contacts", name, "t1", None, len(content), now) for name in names)
            connection.execute("BEGIN IMMEDIATE")
            first = connection.execute(row, one).lastrowid
            assert first is not None
            connection.execute(row_with_id, (first + 1, *other))
            connection.executemany(document, [(first, content), (first + 1, content)])
            connection.execute("COMMIT")
            written.append(number)


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_application_of_an_earlier_version_writes_before_while_and_after_its_tables_are_upgraded(
    revision: str, old: Engine, search: EmbeddedPlace
) -> None:
    search.destination.ensure_index("contacts")
    command.upgrade(ALEMBIC, revision)
    fill(old, now_ms())
    over, written = Event(), list[int]()
    with ThreadPoolExecutor(1) as pool:
        writes = pool.submit(old_application, over, written)
        try:
            until(lambda: len(written) > 20 or writes.done(), "it writes to the old tables")
            assert call("migrate")[0] == 0
            at = len(written) + 20
            until(lambda: len(written) > at or writes.done(), "it writes to the new tables")
        finally:
            over.set()
        writes.result(LIMIT_S)
    assert (schema.revision(old), call("resume")[0]) == (HEAD, 0)

    outbox = Outbox(old)
    outbox.drain(search.destination)
    newest = {f"{letter}{number % 50}": {"n": number} for number in written for letter in "ab"}
    assert search.documents("contacts") == newest | {"fresh": {"n1": 1, "n6": 6}, "due": {"n2": 2}}
    delivered = 4 + 2 * len(written)
    assert outbox.counts() == {"pending": 1, "claimed": 2, "done": 5 + delivered, "dead": 1}
    outbox.close()


@pytest.mark.parametrize("revision", REVISIONS)
def test_migration_may_be_repeated(revision: str, old: Engine) -> None:
    command.upgrade(ALEMBIC, revision)
    fill(old, now_ms())
    assert call("migrate")[0] == 0
    before = everything(old)
    assert call("migrate") == (0, f"{Path('app.db').absolute()}: already at revision {HEAD}\n")
    assert everything(old) == before


def test_migration_that_fails_on_its_way_changes_nothing(old: Engine) -> None:
    command.upgrade(ALEMBIC, "0001")
    fill(old, now_ms())
    with old.begin() as connection:  # what the step after the next would make
        connection.exec_driver_sql("CREATE TABLE outbox_verifications (id, n)")
        connection.exec_driver_sql("INSERT INTO outbox_verifications VALUES (1, 1)")
    before = everything(old)
    code, said = call("migrate")
    assert (code, "cannot be migrated: table outbox_verifications already exists" in said) == (2, True)
    assert (schema.revision(old), everything(old)) == ("0001", before)


@pytest.mark.slow
def test_migrations_that_start_together_are_done_once(tmp_path: Path, old: Engine) -> None:
    command.upgrade(ALEMBIC, "0001")
    fill(old, now_ms())
    started = [subprocess.Popen([*COMMAND, "migrate"], cwd=tmp_path) for _ in range(3)]
    assert [process.wait(LIMIT_S) for process in started] == [0, 0, 0]
    assert schema.revision(old) == HEAD


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_way_back_for_developers_keeps_what_the_older_tables_can_hold(revision: str, old: Engine) -> None:
    command.upgrade(ALEMBIC, revision)
    fill(old, now_ms())
    before = everything(old)
    command.upgrade(ALEMBIC, "head")
    command.downgrade(ALEMBIC, revision)
    assert everything(old) == before


# -- while somebody works ----------------------------------------------------------------------------------------------


def migrated_by_the_next_version(outbox: Outbox) -> None:
    outbox.raw("ALTER TABLE outbox_events ADD COLUMN weight INTEGER NOT NULL DEFAULT 1")
    outbox.raw(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")


def test_relay_claims_nothing_from_tables_that_were_migrated_beneath_it(outbox: Outbox) -> None:
    store = outbox.store()
    store.pin()
    claim = {"relay": 1, "lease_ms": 60_000, "longest_wait": 60_000, "rows": 10, "bytes_": 10_000}
    outbox.index("contacts", "c1", {})
    outbox.raw("CREATE TABLE other (id)")  # the application's own migrations are none of its business
    assert claims.claim(store, claims.ClaimRequest(now=now_ms(), **claim))  # type: ignore[arg-type]
    row = outbox.index("contacts", "c2", {})
    migrated_by_the_next_version(outbox)
    for _ in range(2):
        with pytest.raises(
            SchemaError, match=rf"came to revision 9999 while this process worked with {HEAD}, .*: start"
        ):
            claims.claim(store, claims.ClaimRequest(now=now_ms(), **claim))  # type: ignore[arg-type]
    assert outbox.state(row) == "pending"


def test_tables_of_the_applications_own_migrations_have_no_revision_that_could_change(outbox: Outbox) -> None:
    outbox.raw(f"DROP TABLE {VERSION_TABLE}")
    store = outbox.store()
    store.pin()
    outbox.index("contacts", "c1", {})
    outbox.raw("ALTER TABLE outbox_events ADD COLUMN weight INTEGER NOT NULL DEFAULT 1")
    assert claims.claim(
        store, claims.ClaimRequest(relay=1, now=now_ms(), lease_ms=60_000, longest_wait=60_000, rows=10, bytes_=10_000)
    )


def test_reindex_stops_when_the_tables_are_migrated_beneath_it_and_is_there_to_be_resumed(
    outbox: Outbox, search: EmbeddedPlace
) -> None:
    class Base(DeclarativeBase):
        pass

    class Contact(Base):
        __tablename__ = "contacts"
        id: Mapped[int] = mapped_column(Integer, primary_key=True)

    Base.metadata.create_all(outbox.engine)
    registry = EntityRegistry()
    registry.add(Contact, index="contacts", fields=["id"])
    store = Store(outbox.engine)
    store.pin()
    steps = reindex(store, search.destination, registry, entities=["contacts"])
    next(steps)
    migrated_by_the_next_version(outbox)
    with pytest.raises(SchemaError):
        list(steps)
    (job,) = jobs.open_jobs(store)
    assert (job.state, jobs.is_abandoned(store, job, now_ms())) == ("running", True)
    store.close()


@pytest.fixture
def next_version(tmp_path: Path) -> Path:
    """A copy of this version with one more migration, to be put first on the path."""
    copy = tmp_path / "next"
    shutil.copytree(ROOT / "outbox", copy / "outbox", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "migrations", copy / "outbox" / "_migrations", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "outbox" / "_migrations" / "versions" / "9999_next.py").write_text(NEXT)
    return copy


def test_process_beneath_which_the_files_are_upgraded_goes_on_needing_what_it_needed(next_version: Path) -> None:
    asked = "from outbox import schema; print(schema.head()); input(); print(schema.head())"
    process = subprocess.Popen(
        [sys.executable, "-c", asked], env={**os.environ, "PYTHONPATH": str(next_version)}, stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"9999\n"
    (next_version / "outbox" / "_migrations" / "versions" / "9999_next.py").unlink()
    assert process.communicate(b"\n")[0] == b"9999\n"


@pytest.mark.elasticsearch
def test_rolling_upgrade_under_writes_loses_nothing_and_fails_no_write(
    outbox: Outbox, relays: Relays, proxy: FaultProxy, place: Place, next_version: Path
) -> None:
    relays.give(**place.environment, OUTBOX_REQUEST_TIMEOUT="50")  # longer than the migration takes
    over, written = Event(), []

    def application() -> None:  # of the old version, up to the end
        while not over.wait(0.002):
            written.append(outbox.index("contacts", f"c{len(written) % 50}", {"n": len(written)}))

    with ThreadPoolExecutor(1) as pool:
        writes = pool.submit(application)
        try:
            first = relays.start()
            until(lambda: outbox.counts()["done"] > 20, "the relay of the old version delivers")
            if place.wire:
                place.wire.on(bulk, hold_answer, times=1)
                proxy.wait_held()
            migrated = relays.call("migrate", PYTHONPATH=str(next_version))
            assert (migrated.returncode, "at revision 9999 now" in migrated.stdout) == (0, True), migrated.stderr
            proxy.release()
            assert first.wait(LIMIT_S) == 2
            last = relays.log().splitlines()[-1]
            assert f"came to revision 9999 while this process worked with {HEAD}" in last
            assert (outbox.counts()["claimed"], outbox.relays()) == (0, [])  # what was in flight is finished
            refused = relays.call("run")
            assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
            assert (
                f"is at revision 9999, newer than this version knows ({HEAD}): upgrade outbox-relay" in refused.stderr
            )
            at = len(written)
            relays.start(PYTHONPATH=str(next_version))
            until(lambda: outbox.counts()["done"] > at, "the relay of the next version delivers")
        finally:
            over.set()
        writes.result(LIMIT_S)
    until(lambda: outbox.counts()["done"] == len(written), "everything arrives")
    newest = {f"c{n % 50}": {"n": n} for n in range(len(written))}
    assert place.documents("contacts") == newest

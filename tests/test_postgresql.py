"""An outbox on PostgreSQL end to end: the commands, a relay process, a restart of the server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from outbox import EntityRegistry, OutboxRepository, schema
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.errors import ConfigurationError, DatabaseUnavailable
from outbox.maintenance.scheduler import Maintenance
from outbox.relay.relay import Relay
from outbox.store import claims, due, outcomes, upkeep, versions
from outbox.store.dialect import Finding
from outbox.store.models import metadata, now_ms
from outbox.store.postgresql import dialect as postgresql
from outbox.store.postgresql import findings
from outbox.store.store import Store, dialect_of
from outbox.testing import OutboxTester
from tests.conformance.database import LEASE_MS, NOW, applied, claim, claimed
from tests.support import LIMIT_S
from tests.support.models import Base, Company, Contact
from tests.support.outbox import Outbox, settings
from tests.support.postgres import Postgres
from tests.support.relays import COMMAND, until


@pytest.fixture
def url(postgres: Postgres) -> Iterator[URL]:
    with postgres.database(empty=True) as made:
        yield made


@pytest.fixture
def engine(url: URL) -> Iterator[Engine]:
    """That of an application: nothing is prepared."""
    made = create_engine(url)
    yield made
    made.dispose()


@pytest.fixture
def migrated(engine: Engine) -> Engine:
    assert schema.upgrade(engine) == (None, schema.head())
    return engine


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_application_with_async_sessions_migrates_at_each_of_its_starts(url: URL, driver: str) -> None:
    async def start() -> tuple[str | None, str]:
        engine = create_async_engine(url.set(drivername=f"postgresql+{driver}"))
        async with engine.connect() as connection:
            made = await connection.run_sync(lambda sync: schema.upgrade(sync.engine))
        await engine.dispose()
        return made

    assert asyncio.run(start()) == (None, schema.head())
    assert asyncio.run(start()) == (schema.head(), schema.head())


class Commands:
    def __init__(self, url: URL, directory: Path) -> None:
        self.environment = {
            **os.environ,
            "OUTBOX_DATABASE_URL": url.render_as_string(hide_password=False),
            "OUTBOX_DESTINATION": "embedded",
            "OUTBOX_EMBEDDED_PATH": str(directory / "search.db"),
            "OUTBOX_REAP_INTERVAL": "0.2",
            "OUTBOX_BREAKER_FIRST_PAUSE": "0.1",
        }
        self.directory = directory

    def __call__(self, *arguments: str) -> str:
        """What a command says. It must succeed."""
        ended = subprocess.run(
            [*COMMAND, *arguments],
            env=self.environment,
            cwd=self.directory,
            timeout=LIMIT_S,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.directory / "started.log").open("ab") as log:
            return subprocess.Popen(
                [*COMMAND, *arguments], env=self.environment, cwd=self.directory, stdout=log, stderr=log
            )


@pytest.fixture
def run(url: URL, tmp_path: Path) -> Commands:
    return Commands(url, tmp_path)


@pytest.mark.slow
def test_rows_of_a_session_are_delivered_by_a_relay_process(engine: Engine, run: Commands, tmp_path: Path) -> None:
    assert "are at revision" in run("migrate")
    assert "already at revision" in run("migrate")
    with Session(engine) as session, session.begin():
        outbox = OutboxRepository(session)
        outbox.index("contacts", "c1", {"name": "Ada"})
        outbox.index_many("contacts", [(f"m{n}", {"name": f"Contact {n}"}) for n in range(500)])
        outbox.update("contacts", "c1", {"email": "ada@example.org"})
        outbox.delete("contacts", "m0")
    run("run", "--drain")
    with closing(EmbeddedDestination(tmp_path / "search.db")) as destination:
        found = destination.read("contacts", ["c1", "m0", "m499"])
    assert found["c1"].source == {"name": "Ada", "email": "ada@example.org"}
    assert found["m499"].source == {"name": "Contact 499"}
    assert "m0" not in found
    assert "503 done" in run("status")


@pytest.mark.usefixtures("migrated")
def test_check_finds_nothing_wrong_and_names_no_password(run: Commands, url: URL) -> None:
    run.environment["OUTBOX_DATABASE_URL"] = url.set(password="secret-word").render_as_string(hide_password=False)
    ended = subprocess.run(
        [*COMMAND, "check"], env=run.environment, cwd=run.directory, timeout=LIMIT_S, capture_output=True, text=True
    )
    said = ended.stdout + ended.stderr
    assert "PostgreSQL 1" in said
    assert f"{url.database} on 127.0.0.1" in said
    assert "fail" not in said.lower().replace("failed rows", "")
    assert "secret-word" not in said


def test_check_names_a_transaction_that_is_open_for_long_and_a_prepared_one(
    migrated: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> Finding:
        (said,) = (each for each in dialect_of(migrated).findings(migrated) if each.name == "transactions")
        return said

    assert (found().level, found().found) == ("ok", "none is open for long")
    monkeypatch.setattr(findings, "LONG_S", 0)
    with migrated.connect() as connection:
        process = connection.scalar(text("SELECT pg_backend_pid()"))
        assert (found().level, f"open for 0 s (process {process})" in found().found) == ("warn", True)
    with migrated.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in ("BEGIN", "SELECT 1", "PREPARE TRANSACTION 'left''s'"):
            connection.exec_driver_sql(statement)
        assert "(prepared as 'left''s')" in found().found
        connection.exec_driver_sql("ROLLBACK PREPARED 'left''s'")


def test_command_says_that_the_database_cannot_be_reached(run: Commands, url: URL) -> None:
    run.environment["OUTBOX_DATABASE_URL"] = url.set(password="secret-word", port=1).render_as_string(False)
    ended = subprocess.run(
        [*COMMAND, "status"], env=run.environment, cwd=run.directory, timeout=LIMIT_S, capture_output=True, text=True
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode != 0
    assert "cannot be opened" in said
    assert "Traceback" not in said
    assert "secret-word" not in said


def test_metadata_and_migrations_make_the_same_tables(postgres: Postgres, migrated: Engine) -> None:
    asked = """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               pg_get_expr(d.adbin, d.adrelid), c.reloptions::text, c.relpersistence
        FROM pg_class AS c LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname NOT LIKE 'outbox_alembic%'
        ORDER BY c.relname, a.attname"""
    indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'outbox_alembic_version'"
    checks = "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace"
    with postgres.database() as made:
        other = create_engine(made)
        for sql in (asked, f"{indexes} ORDER BY indexdef", f"{checks} AND conname NOT LIKE '%alembic%' ORDER BY 1"):
            with migrated.connect() as one, other.connect() as two:
                assert list(one.execute(text(sql))) == list(two.execute(text(sql)))
        metadata.drop_all(other)
        with other.connect() as connection:
            assert list(connection.execute(text(asked))) == []
        other.dispose()


@pytest.mark.slow
def test_several_that_migrate_at_once_do_it_once(run: Commands) -> None:
    processes = [run.start("migrate") for _ in range(3)]
    assert [each.wait(LIMIT_S) for each in processes] == [0, 0, 0]


LISTENER = """
from sqlalchemy import Engine, event
from outbox import EntityRegistry

registry = EntityRegistry()

@event.listens_for(Engine, "handle_error")
def unwrap(context):
    raise context.original_exception from context.sqlalchemy_exception
"""


@pytest.mark.slow
@pytest.mark.parametrize("listens", [False, True], ids=["", "beside a listener to all engines"])
def test_relay_goes_on_when_the_server_was_restarted(
    postgres: Postgres, migrated: Engine, run: Commands, tmp_path: Path, listens: bool
) -> None:
    if listens:
        (tmp_path / "listener.py").write_text(LISTENER)
        run.environment |= {"OUTBOX_ENTITIES": "listener:registry", "PYTHONPATH": str(tmp_path)}
    outbox, relay = Outbox(migrated), run.start("run")
    try:
        first = outbox.index("contacts", "c1", {"name": "Ada"})
        until(lambda: outbox.state(first) == "done", "the row is delivered")
        outbox.close()
        migrated.dispose()
        postgres.stop()
        postgres.start()
        outbox = Outbox(migrated)
        second = outbox.index("contacts", "c2", {"name": "Grace"})
        until(lambda: outbox.state(second) == "done", "the row after the restart is delivered")
        assert relay.poll() is None
        relay.send_signal(signal.SIGTERM)
        assert relay.wait(LIMIT_S) == 0
    finally:
        relay.kill()
        relay.wait()
        outbox.close()
    with closing(EmbeddedDestination(tmp_path / "search.db")) as destination:
        assert set(destination.read("contacts", ["c1", "c2"])) == {"c1", "c2"}


@pytest.mark.slow
def test_rows_of_a_killed_relay_go_to_another_before_its_lease_ends(migrated: Engine, run: Commands) -> None:
    store = Store(migrated)
    relays = [run.start("run"), run.start("run")]
    try:
        until(lambda: len(store.relays()) == 2, "both are listed")
        relays[0].kill()
        until(lambda: len(store.relays()) == 1, "the one that was killed is off the list")
        assert relays[1].poll() is None
    finally:
        for each in relays:
            each.kill()
            each.wait()
        store.close()


def test_outbox_works_within_a_transaction_that_a_test_rolls_back(migrated: Engine) -> None:
    with migrated.connect() as connection:
        connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            OutboxRepository(session).index("contacts", "c1", {"name": "Ada"})
            session.commit()
        with OutboxTester(connection) as tester:
            tester.drain()
            assert tester.document("contacts", "c1") == {"name": "Ada"}
        connection.rollback()
        assert connection.execute(text("SELECT count(*) FROM outbox_events")).scalar_one() == 0


def test_session_in_autocommit_writes_nothing(migrated: Engine) -> None:
    with (
        Session(migrated.execution_options(isolation_level="AUTOCOMMIT")) as session,
        pytest.raises(ConfigurationError, match="AUTOCOMMIT"),
    ):
        OutboxRepository(session).index("contacts", "c1", {"name": "Ada"})
    with migrated.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM outbox_events")).scalar_one() == 0


def test_other_driver_is_refused_by_name(migrated: Engine) -> None:
    with migrated.connect() as connection:
        connection.dialect.driver = "psycopg2"
        with pytest.raises(ConfigurationError, match="driver psycopg2: use postgresql\\+psycopg"):
            dialect_of(connection).highest_id_in(connection)


# -- what only many writers meet ------------------------------------------------------------------------------------


def test_watermark_waits_for_those_that_write_and_for_no_later_one(
    migrated: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(migrated)
    with Session(migrated) as early, Session(migrated) as late:
        row = OutboxRepository(early).index("contacts", "c1", {"a": 1})
        monkeypatch.setattr(postgresql, "WATERMARK_WITHIN_S", 0.1)
        with pytest.raises(DatabaseUnavailable, match="open for more than"):
            store.watermark()
        monkeypatch.setattr(postgresql, "WATERMARK_WITHIN_S", LIMIT_S)
        looks = iter([lambda: OutboxRepository(late).index("contacts", "c2", {"a": 1}), early.commit])
        monkeypatch.setattr(postgresql.time, "sleep", lambda _: next(looks)())
        assert store.watermark() == row
        late.commit()
    store.close()


def test_watermark_waits_for_a_transaction_that_is_prepared_meanwhile(
    migrated: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(migrated)
    with migrated.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("BEGIN")
        written = "INSERT INTO outbox_events (action, index_name, document_id) VALUES ('delete', 'contacts', 'c1')"
        connection.exec_driver_sql(written)
        looks = iter(["PREPARE TRANSACTION 'meanwhile'", "COMMIT PREPARED 'meanwhile'"])
        monkeypatch.setattr(postgresql.time, "sleep", lambda _: connection.exec_driver_sql(next(looks)))
        assert store.watermark() == 1
        assert list(looks) == []
    store.close()


def test_claim_that_was_planned_for_a_small_table_reads_no_more_of_a_large_one(migrated: Engine, url: URL) -> None:
    engine = create_engine(url)
    dialect_of(engine).prepare(engine)
    store = Store(engine)
    with Session(migrated) as session, session.begin():
        OutboxRepository(session).index("contacts", "c1", {"a": 1})
    for _ in range(20):  # the server keeps the plan from now on
        assert due.fresh_lanes(store) == [("contacts", "")]
    with migrated.begin() as connection:
        done = "SELECT 'delete', 'contacts', n, 'done', 1 FROM generate_series(1, 20000) AS n"
        connection.exec_driver_sql(
            f"INSERT INTO outbox_events (action, index_name, document_id, state, finished_at) {done}"
        )
    with migrated.begin() as connection:
        connection.exec_driver_sql("UPDATE outbox_events SET state = 'pending', finished_at = NULL WHERE id = 20001")
    asked = "SELECT idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'outbox_events'"
    with store.write(durable=False):
        before = store.run(asked).scalar_one()
        assert due.fresh_lanes(store) == [("contacts", "")]
        assert store.run(asked).scalar_one() - before < 100
    store.close()
    engine.dispose()


def test_claim_that_was_planned_while_none_was_claimed_reads_no_more_beside_many_that_are(
    migrated: Engine, url: URL
) -> None:
    engine = create_engine(url)
    dialect_of(engine).prepare(engine)
    store = Store(engine)
    with migrated.begin() as connection:
        waiting = "SELECT 'delete', 'contacts', n FROM generate_series(1, 3000) AS n"
        connection.exec_driver_sql(f"INSERT INTO outbox_events (action, index_name, document_id) {waiting}")
        connection.exec_driver_sql("ANALYZE outbox_events")
    asked = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'outbox_events'"
    claimed(store, rows=2_000)
    with store.write(durable=False, alone=True):
        before = store.run(asked).scalar_one()
        assert len(claimed(store, rows=500).events) == 500
        assert store.run(asked).scalar_one() - before < 20 * 500
    store.close()
    engine.dispose()


def test_row_that_is_committed_after_a_later_one_is_signalled(migrated: Engine) -> None:
    store = Store(migrated)
    with Session(migrated) as early, Session(migrated) as late:
        OutboxRepository(early).index("contacts", "c1", {"a": 1})
        OutboxRepository(late).index("contacts", "c2", {"a": 1})
        late.commit()
        before = store.signal()
        early.commit()
        assert store.signal() != before
    store.close()


def test_rows_that_a_transaction_has_written_are_told_from_those_of_others(migrated: Engine) -> None:
    dialect = dialect_of(migrated)
    insert = "INSERT INTO outbox_events (action, index_name, document_id) VALUES ('refresh', 'contacts', 'c1')"
    with migrated.connect() as ours, migrated.connect() as theirs:
        before = dialect.highest_id_in(ours)
        assert dialect.written_since(ours, before) == []
        mine: list[int] = []

        def write() -> None:
            mine.append(ours.execute(text(f"{insert} RETURNING id")).scalar_one())
            theirs.execute(text(insert))
            theirs.commit()

        write()
        with ours.begin_nested():
            write()
            with ours.begin_nested():
                write()
        undone = ours.begin_nested()
        ours.execute(text(insert))
        undone.rollback()
        with ours.begin_nested():
            write()
            assert dialect.written_since(ours, before) == mine
        theirs.execute(text(insert))
        assert dialect.written_since(ours, before) == mine
        ours.commit()
        assert dialect.written_since(ours, before) == []


def test_claim_comes_back_to_a_store_whose_connection_was_lost(migrated: Engine) -> None:
    outbox = Outbox(migrated)
    store = outbox.store()
    outbox.index("contacts", "c1", {"a": 1})

    def end() -> None:
        own = store.run("SELECT pg_backend_pid()").scalar_one()
        with migrated.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            other.execute(text(f"SELECT pg_terminate_backend({own})"))

    with pytest.raises(DatabaseUnavailable), store.write(durable=True):
        end()
        versions.raise_epoch(store, 0, 1)
    assert claims.any_unfinished(store, "contacts")
    with store.write(durable=True):
        versions.raise_epoch(store, 0, 1)
    assert store.control().epoch == 2
    for alone in (True, False):
        end()
        with store.write(durable=True, alone=alone):  # nobody was using it
            store.run("UPDATE outbox_control SET epoch = epoch + 1")
    assert store.control().epoch == 4
    outbox.close()


WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"


def _give_back(store: Store) -> None:
    assert upkeep.reap(store, NOW + 10 * LEASE_MS, LEASE_MS).dead == 0


def _raise_epoch(store: Store) -> None:
    with store.write(durable=True):
        assert versions.raise_epoch(store, 0, NOW) == 2


def _migrate(store: Store) -> None:
    engine = store.connection.engine
    with dialect_of(engine).migrating(engine) as connection:
        connection.execute(text("LOCK TABLE outbox_events IN ACCESS EXCLUSIVE MODE"))


@pytest.mark.parametrize("recorded_first", [True, False])
@pytest.mark.parametrize("change", [_give_back, _raise_epoch, _migrate])
def test_who_changes_claims_of_others_or_the_tables_and_who_records_wait_for_each_other(
    migrated: Engine, change: Callable[[Store], None], recorded_first: bool
) -> None:
    outbox = Outbox(migrated)
    recording, changing, claiming = outbox.store(), outbox.store(), outbox.store()
    outbox.index("contacts", "c1", {"a": 1})
    found = claimed(recording)

    def waiting(number: int) -> bool:
        return claiming.run(WAITING).scalar_one() == number

    with ThreadPoolExecutor(2) as pool:
        with claiming.write(durable=False, alone=True):
            for number, records in enumerate((recorded_first, not recorded_first), start=1):
                if records:
                    recorded = pool.submit(outcomes.record, recording, found, applied(found), NOW)
                else:
                    changed = pool.submit(change, changing)
                until(partial(waiting, number), "it waits")
        changed.result(LIMIT_S)
        lost = recorded.result(LIMIT_S)
    assert lost == ([] if recorded_first or change is _migrate else applied(found))
    assert outbox.counts() == {"pending": len(lost), "claimed": 0, "done": 1 - len(lost), "dead": 0}
    outbox.close()


def test_engine_of_an_application_keeps_its_settings(migrated: Engine) -> None:
    def setting(engine: Engine, name: str) -> str:
        with engine.connect() as connection:
            return str(connection.exec_driver_sql(f"SHOW {name}").scalar_one())

    ours = create_engine(migrated.url.update_query_dict({"options": "-c statement_timeout=5000"}))
    dialect_of(ours).prepare(ours)
    given = [("enable_seqscan", "off"), ("jit", "off"), ("statement_timeout", "5s")]
    assert [(name, setting(ours, name)) for name, _ in given] == given
    assert setting(migrated, "enable_seqscan") == "on"
    ours.dispose()


def test_drain_ends_when_another_relay_finishes_the_last_row_just_as_it_begins_to_wait(
    migrated: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(migrated)
    outbox.index("contacts", "c1", {"a": 1})
    other = outbox.store()
    taken = claim(other)
    assert taken is not None
    unfinished = Store.unfinished

    def just_before(store: Store) -> int:
        found = unfinished(store)
        if found:
            outcomes.record(other, taken, applied(taken), now_ms())
        return found

    monkeypatch.setattr(Store, "unfinished", just_before)
    with closing(EmbeddedDestination(tmp_path / "search.db")) as search, ThreadPoolExecutor(1) as pool:
        relay = outbox.relay(search)
        draining = pool.submit(relay.run, drain=True)
        try:
            assert draining.result(LIMIT_S / 6).done == 0
        finally:
            relay.stop()
    outbox.close()


def test_relay_whose_session_was_ended_is_taken_for_a_killed_one_until_its_next_heartbeat(migrated: Engine) -> None:
    outbox = Outbox(migrated)
    store = outbox.store()
    relay, other = (store.register_relay("host", pid, "1", now_ms()) for pid in (1, 2))
    presence = store.presence.hold("relay", relay)
    alive = Maintenance(migrated, relay, settings(), list, presence=presence)
    alive.heartbeat(store)
    assert store.presence.live("relay", [relay]) == [relay]
    outbox.raw("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    until(lambda: store.presence.dead("relay", [relay]), "it cannot be seen")
    Maintenance(migrated, other, settings(), list).reap(store)
    assert [each["id"] for each in store.relays()] == [other]
    alive.heartbeat(store)
    assert store.presence.live("relay", [relay]) == [relay]
    assert sorted(each["id"] for each in store.relays()) == [relay, other]
    presence.end()
    outbox.close()


def test_relay_that_is_stopped_in_the_middle_of_a_claim_does_not_keep_others_waiting_for_ever(migrated: Engine) -> None:
    soon, other = (
        create_engine(
            migrated.url, connect_args={"options": f"-c idle_in_transaction_session_timeout={ms}"} if ms else {}
        )
        for ms in (200, None)
    )
    for engine in (soon, other):
        dialect_of(engine).prepare(engine)
    with closing(Store(soon)) as stopped, closing(Store(other)) as waiting:
        assert waiting.run("SELECT current_setting('idle_in_transaction_session_timeout')").scalar_one() == "30s"
        with pytest.raises(DatabaseUnavailable), stopped.write(durable=True, alone=True):
            waiting.register_relay("host", 1, "1", now_ms())
            with waiting.write(durable=True, alone=True):
                assert waiting.relays()
    for engine in (soon, other):
        engine.dispose()


def test_table_that_a_migration_has_locked_holds_back_no_row_of_another_entity_and_no_end(
    migrated: Engine, tmp_path: Path
) -> None:
    Base.metadata.create_all(migrated)
    registry = EntityRegistry()
    registry.add(Contact, index="contacts", fields=["name"])
    registry.add(Company, index="companies", fields=["name"])
    outbox, embedded = Outbox(migrated), EmbeddedDestination(tmp_path / "search.db")
    with outbox.sessions.begin() as session:
        one = session.merge(Contact(id=1, name="Ada"))
        other = session.merge(Company(code="a", region=1, name="Acme"))
        repository = OutboxRepository(session, registry)
        (locked,), (free,) = repository.refresh(one), repository.refresh(other)
    store = outbox.store()
    relay = Relay(store, embedded, settings(), relay_id=1, registry=registry)
    with migrated.begin() as migration:
        migration.execute(text("LOCK TABLE contacts IN ACCESS EXCLUSIVE MODE"))
        while relay.run_once():
            pass
        assert (outbox.state(locked), outbox.row(locked)["error_type"]) == ("pending", "entity_unavailable")
        assert outbox.state(free) == "done"
    while relay.run_once(now_ms() + 60_000):
        pass
    assert outbox.state(locked) == "done"
    assert store.run("SHOW lock_timeout").scalar_one() == "0"
    outbox.close()

"""What a relay does for the database over the months: prune, checkpoint, and warn of what grows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, create_engine

from outbox import check
from outbox.cli import main
from outbox.maintenance import growth
from outbox.maintenance import pruner as pruning
from outbox.maintenance.pruner import CHUNK, prune
from outbox.maintenance.scheduler import Maintenance, enter
from outbox.store import operators, upkeep
from outbox.store.models import now_ms
from outbox.store.store import Store, dialect_of
from tests.support.outbox import Outbox, settings
from tests.support.relays import until

HOUR = 3_600_000


@pytest.fixture
def other(outbox: Outbox) -> Iterator[sqlite3.Connection]:
    """The application: waits for nobody, so that a lock at the wrong moment fails the test."""
    connection = sqlite3.connect(str(outbox.engine.url.database), isolation_level=None, timeout=0)
    yield connection
    connection.close()


def history(outbox: Outbox, *states: str, document: str = "c1") -> list[int]:
    """Rows of one document as they ended, `dead` or done with that action, an hour ago."""
    rows = [outbox.index("contacts", document, {}) for _ in states]
    for row, state in zip(rows, states, strict=True):
        outbox.raw(
            "UPDATE outbox_events SET state = :state, action = :action, finished_at = :then, deliveries = 1,"
            " outcome = 'applied', error_type = 'x', error = 'x' WHERE id = :id",
            state="dead" if state == "dead" else "done",
            action="index" if state == "dead" else state,
            then=now_ms() - HOUR,
            id=row,
        )
    return rows


def left(outbox: Outbox) -> list[int]:
    return [row["id"] for row in outbox.store().events()]


def many(outbox: Outbox, number: int) -> None:
    """As many rows of as many documents, done an hour ago."""
    outbox.raw(
        "WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < :number)"
        " INSERT INTO outbox_events (action, index_name, document_id, state, finished_at, deliveries)"
        " SELECT 'index', 'contacts', 'm' || n, 'done', :then, 1 FROM s",
        number=number,
        then=now_ms() - HOUR,
    )
    outbox.raw("INSERT OR IGNORE INTO outbox_documents SELECT id, '{}' FROM outbox_events WHERE state = 'done'")


# -- prune ------------------------------------------------------------------------------------------------------------


def test_newest_done_row_stays_while_an_earlier_one_is_dead(outbox: Outbox) -> None:
    dead, *_, newest = history(outbox, "dead", "index", "index", "index")
    history(outbox, "index", "index", document="c2")
    assert prune(outbox.store(), now_ms()) == 4
    assert left(outbox) == [dead, newest]
    assert operators.retry_dead(outbox.store(), [dead], now_ms()).superseded == 1  # still known to come too late
    assert prune(outbox.store(), now_ms() + 1) == 2
    assert left(outbox) == []


def test_newest_whole_row_stays_beside_later_updates_while_an_earlier_one_is_dead(outbox: Outbox) -> None:
    rows = history(outbox, "update", "index", "dead", "update", "index", "delete", "update", "update", "update")
    assert prune(outbox.store(), now_ms()) == 6
    assert left(outbox) == [rows[2], rows[5], rows[8]]
    assert operators.retry_dead(outbox.store(), [rows[2]], now_ms()).superseded == 1


def test_rows_of_a_document_with_a_dead_one_do_not_pile_up_over_many_pages(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "CHUNK", 3)
    rows = history(outbox, "dead", *["update", "index"] * 20, "update")
    prune(outbox.store(), now_ms())
    assert left(outbox) == [rows[0], rows[-2], rows[-1]]


def test_rows_are_removed_with_their_documents(outbox: Outbox) -> None:
    row = history(outbox, "index")[0]
    history(outbox, "dead", document="c2")
    prune(outbox.store(), now_ms())
    assert outbox.store().event(row) is None
    assert outbox.store().connection.exec_driver_sql("SELECT count(*) FROM outbox_documents").scalar_one() == 1


def test_what_is_not_done_or_not_old_enough_stays(outbox: Outbox) -> None:
    row = outbox.index("contacts", "c1", {})
    done = history(outbox, "index", document="c2")
    assert prune(outbox.store(), now_ms() - 2 * HOUR) == 0
    assert prune(outbox.store(), now_ms()) == len(done)
    assert left(outbox) == [row]


def test_application_finds_the_lock_free_between_the_steps_of_a_long_prune(
    outbox: Outbox, other: sqlite3.Connection
) -> None:
    many(outbox, 3 * CHUNK + 1)
    there = [3 * CHUNK + 1]

    def pause(seconds: float) -> None:
        other.execute("CREATE TABLE IF NOT EXISTS writes (n)")  # fails at once if the lock is held
        there.append(outbox.counts()["done"])
        assert seconds > 0

    assert prune(outbox.store(), now_ms(), pause) == 3 * CHUNK + 1
    assert [before - after for before, after in pairwise(there)] == [CHUNK, CHUNK, CHUNK, 1]


def test_rows_that_have_to_stay_are_looked_at_without_a_lock(outbox: Outbox, other: sqlite3.Connection) -> None:
    history(outbox, "dead", "index")
    other.execute("BEGIN IMMEDIATE")
    assert prune(outbox.store(), now_ms()) == 0


def test_relay_that_stops_does_not_finish_a_long_prune_first(outbox: Outbox, engine: Engine) -> None:
    many(outbox, 3 * CHUNK)
    maintenance = Maintenance(engine, 1, settings(retention_hours=0), list)
    maintenance.stop()
    maintenance.prune(outbox.store())
    assert outbox.counts()["done"] == 2 * CHUNK


@pytest.mark.parametrize("ends", ["it is stopped", "it gives no sign of life"])
def test_first_relay_prunes_for_all_and_the_next_one_when(
    ends: str, outbox: Outbox, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.maintenance.scheduler.PRUNE_EVERY_S", 0.05)
    history(outbox, "index")
    store, beats = outbox.store(), []
    first, second = enter(store), enter(store)
    outbox.raw("UPDATE outbox_relays SET heartbeat_at = :then WHERE id = :first", then=now_ms() + HOUR, first=first)

    def breakers() -> list[Any]:
        beats.append("a heartbeat")
        return []

    maintenance = Maintenance(engine, second, settings(retention_hours=0, heartbeat_interval=0.1), breakers)
    maintenance.start()
    until(lambda: len(beats) > 5, "heartbeats")
    assert left(outbox) != []
    if ends == "it is stopped":
        store.deregister_relays([first])
    else:
        outbox.raw("UPDATE outbox_relays SET heartbeat_at = 1 WHERE id = :first", first=first)
    until(lambda: left(outbox) == [], "the other one prunes")
    maintenance.stop()


def test_long_prune_keeps_no_heartbeat_waiting(engine: Engine) -> None:
    maintenance = Maintenance(engine, 1, settings(), list)
    jobs = {job.id: job.executor for job in maintenance._scheduler.get_jobs()}
    assert jobs["prune"] not in {jobs["heartbeat"], jobs["reap"]}


def test_job_that_fails_in_an_unforeseen_way_is_said_once(engine: Engine, said: list[str]) -> None:
    tried: list[int] = []

    def breakers() -> Any:
        tried.append(len(tried))
        raise sqlite3.DatabaseError("database disk image is malformed")

    maintenance = Maintenance(engine, 1, settings(heartbeat_interval=0.1), breakers)
    maintenance.start()
    until(lambda: len(tried) > 2, "further tries")
    maintenance.stop()
    (line,) = said
    assert line.startswith("ERROR heartbeat failed unexpectedly, and runs again when it is due")
    assert "database disk image is malformed" in line


def test_statistics_go_after_their_time_a_minute_at_a_time(outbox: Outbox, engine: Engine) -> None:
    day, now = 24 * HOUR, now_ms() // HOUR * HOUR
    for minute in (now - 91 * day, now - 91 * day + 60_000, now - 89 * day):
        for tenant in ("t1", "t2"):
            outbox.raw(
                "INSERT INTO outbox_stats (minute, index_name, entity, tenant_id, action) VALUES (:m, 'c', '', :t, '')",
                m=minute, t=tenant,
            )  # fmt: skip
    assert upkeep.prune_stats(outbox.store(), now - 90 * day) == 2
    Maintenance(engine, 1, settings(), list).prune(outbox.store())
    counted = outbox.store().connection.exec_driver_sql("SELECT count(*), min(minute) FROM outbox_stats").one()
    assert (counted[0], counted[1] > now - 90 * day) == (2, True)


def test_sums_of_hours_are_made_a_minute_at_a_time_and_end_early_when_the_relay_stops(
    outbox: Outbox, engine: Engine
) -> None:
    hour = now_ms() // HOUR * HOUR - 6 * HOUR
    for minute in range(1, 5):
        for tenant in ("t1", "t2"):
            outbox.raw(
                "INSERT INTO outbox_stats (minute, index_name, entity, tenant_id, action, done)"
                " VALUES (:m, 'c', '', :t, '', 1)",
                m=hour + minute * 60_000, t=tenant,
            )  # fmt: skip

    def minutes() -> list[tuple[int, int]]:
        found = outbox.store().connection.exec_driver_sql("SELECT minute, sum(done) FROM outbox_stats GROUP BY minute")
        return [((at - hour) // 60_000, done) for at, done in found]

    maintenance = Maintenance(engine, 1, settings(), list)
    maintenance.stop()
    maintenance.prune(outbox.store())
    assert minutes() == [(0, 2), (1, 2), (2, 2), (3, 2)]
    Maintenance(engine, 1, settings(), list).prune(outbox.store())
    assert minutes() == [(0, 8)]


# -- the write-ahead log ----------------------------------------------------------------------------------------------


def test_log_grows_while_somebody_reads_and_is_emptied_when_the_reader_ends(
    outbox: Outbox, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.store.sqlite.dialect.LARGE_WAL_BYTES", 100_000)
    store = outbox.store()
    many(outbox, 10)
    other.execute("BEGIN")
    assert other.execute("SELECT count(*) FROM outbox_events").fetchone() == (10,)  # a report that takes hours
    many(outbox, 5_000)
    upkeep.checkpoint(store)
    assert (held := store.sizes().log) > 100_000
    outbox.index("contacts", "c1", {})  # nobody waits for the reader
    assert other.execute("SELECT count(*) FROM outbox_events").fetchone() == (10,)
    other.execute("ROLLBACK")
    upkeep.checkpoint(store)
    assert store.sizes().log == 0 < held
    assert outbox.counts()["done"] == 5_010


def test_checkpoint_gives_up_soon_where_readers_take_turns(
    outbox: Outbox, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.store.sqlite.dialect.LARGE_WAL_BYTES", 1)
    store = outbox.store()
    many(outbox, 10)
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM outbox_events").fetchone()  # of the newest state: all can be moved, not emptied
    upkeep.checkpoint(store)
    assert store.sizes().log > 0
    assert store.connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 30_000
    outbox.index("contacts", "c1", {})


def test_what_works_in_many_transactions_moves_the_log_before_an_application_has_to(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest: dict[int, int] = {}
    for pages in (10_000, 50):  # that of an application, which would move it at its own commit; our own, made small
        monkeypatch.setattr("outbox.store.sqlite.dialect.AUTOCHECKPOINT_PAGES", pages)
        engine = create_engine(outbox.engine.url)
        dialect_of(engine).prepare(engine)
        store = Store(engine)
        many(outbox, 5_000)
        store.connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        Maintenance(engine, 1, settings(retention_hours=0), list).prune(store)
        largest[pages] = store.sizes().log
        store.close()
        engine.dispose()
    assert 0 < largest[50] < largest[10_000] / 2


def test_small_log_is_left_to_be_used_again(outbox: Outbox) -> None:
    many(outbox, 10)
    store = outbox.store()
    upkeep.checkpoint(store)
    assert store.sizes().log > 0


# -- warnings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "warning", "back"),
    [
        (
            "warn_oldest",
            "the oldest row waits for 3,6",
            "oldest row back below the limit: the oldest row waits for 0 s",
        ),
        ("warn_rows", "20 rows in outbox_events: a lower", "rows back below the limit: 0 rows in outbox_events"),
        (
            "warn_wal_bytes",
            "the write-ahead log has ",
            "write-ahead log back below the limit: the write-ahead log has 0 MB",
        ),
    ],
)
def test_growth_is_said_once_and_its_end_once(
    outbox: Outbox, engine: Engine, said: list[str], setting: str, warning: str, back: str
) -> None:
    given = {"warn_oldest": 0, "warn_rows": 0, "warn_wal_bytes": 0} | {setting: 10}
    maintenance, store = Maintenance(engine, 1, settings(**given), list), outbox.store()
    outbox.index_many("contacts", [(f"c{n}", {}) for n in range(20)])
    outbox.raw("UPDATE outbox_events SET created_at = created_at - 3600000")
    for _ in range(3):
        maintenance.watch(store)
    (line,) = said
    assert line.startswith(f"WARNING {warning}")
    outbox.raw("UPDATE outbox_events SET state = 'done', finished_at = 1")
    prune(store, now_ms())
    store.connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for _ in range(3):
        maintenance.watch(store)
    assert said[1:] == [f"INFO {back}"]


def test_value_that_stays_at_its_limit_makes_no_noise() -> None:
    watch = growth.LimitWatch()
    limits = growth.Limits(0, 1_000, 0)
    seen = [
        [each.over for each in watch.changes(growth.growth(growth.Measured(0, rows, 0), limits))]
        for rows in (999, 1_000, 999, 1_001, 950, 1_000, 899, 950, 1_000)
    ]
    assert seen == [[], [True], [], [], [], [], [False], [], [True]]


def test_status_and_check_show_what_has_grown(outbox: Outbox) -> None:
    def call(*arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(main, arguments, env={"OUTBOX_DATABASE_URL": "sqlite:///app.db", **environment})

    outbox.index_many("contacts", [("c1", {}), ("c2", {})])
    assert json.loads(call("status", "--json").stdout)["warnings"] == []
    grown = {"OUTBOX_WARN_ROWS": "2", "OUTBOX_WARN_WAL_BYTES": "1"}
    facts = json.loads(call("status", "--json", **grown).stdout)
    assert [each["name"] for each in facts["warnings"]] == ["rows", "write-ahead log"]
    assert facts["database"]["bytes"] > facts["database"]["free_bytes"] == 0 < facts["database"]["wal_bytes"]
    assert "GROWN: 2 rows in outbox_events  → a lower OUTBOX_RETENTION_HOURS" in call("status", **grown).stdout
    for environment, level in (({}, "ok"), (grown, "warn")):
        found = {each["name"]: each["level"] for each in json.loads(call("check", "--json", **environment).stdout)}
        assert (found["queue"], found["rows"], found["write-ahead log"]) == ("ok", level, level)


def test_check_warns_by_the_limits_that_it_is_given(outbox: Outbox) -> None:
    outbox.index("contacts", "c1", {})
    outbox.raw("UPDATE outbox_events SET created_at = created_at - 60000")
    for limit, level in ((0, "ok"), (30, "warn"), (90, "ok")):
        (found,) = [
            each for each in check.database(outbox.engine, limits=growth.Limits(limit, 0, 0)) if each.name == "queue"
        ]
        assert found.level == level


def test_counts_agree_with_the_table(outbox: Outbox) -> None:
    history(outbox, "dead", "index", "index")
    outbox.index_many("contacts", [(f"d{n}", {}) for n in range(6)])
    outbox.raw("UPDATE outbox_events SET available_at = 1 WHERE document_id = 'd1'")
    outbox.raw("UPDATE outbox_events SET state = 'claimed' WHERE document_id IN ('d2', 'd3')")
    assert outbox.counts() == {"pending": 4, "claimed": 2, "done": 2, "dead": 1}

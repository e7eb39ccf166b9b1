"""What every database must answer behind the seam: statements, transactions, ids, processes, sizes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy import text

from outbox.errors import ConfigurationError
from outbox.store import malformed, outcomes, upkeep, versions
from outbox.store.models import EPOCH_STEP
from outbox.store.store import LockTimes, Store, dialect_of
from tests.conformance.database import (
    NOW,
    Database,
    applied,
    claimed,
    in_threads,
)
from tests.support import LIMIT_S
from tests.support.relays import until

# -- a statement ------------------------------------------------------------------------------------------------


def test_database_that_is_not_supported_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="does not work on mysql"):
        dialect_of(_Speaking("mysql"))  # type: ignore[arg-type]


class _Speaking:
    """What `dialect_of` looks at of an engine."""

    def __init__(self, name: str) -> None:
        self.dialect = type("dialect", (), {"name": name})


@pytest.mark.parametrize("wanted", [[], [1], [3, 5, 4_000], list(range(2, 10_000, 3))])
def test_among_a_list_of_any_length_is_one_parameter(database: Database, store: Store, wanted: list[int]) -> None:
    ids = database.insert(*(("contacts", f"c{n}") for n in range(20)))
    found = store.run(f"SELECT id FROM outbox_events WHERE id {store.dialect.among('ids')} ORDER BY id", ids=wanted)
    assert [row[0] for row in found] == [each for each in ids if each in wanted]
    others = store.run(f"SELECT id FROM outbox_events WHERE id {store.dialect.outside('ids')} ORDER BY id", ids=wanted)
    assert [row[0] for row in others] == [each for each in ids if each not in wanted]


ODD_TEXTS = [
    "plain",
    "it's",
    'a "quoted" one',
    "back\\slash",
    "é ü 漢",
    "😀",
    "100 %",
    ":name",
    "{curly}",
    "line\nbreak",
    "",
]


def test_text_of_any_kind_is_found_among_texts(database: Database, store: Store) -> None:
    database.insert(*(("contacts", each) for each in ODD_TEXTS))
    for wanted in (ODD_TEXTS, ODD_TEXTS[2:5], []):
        found = store.run(
            f"SELECT document_id FROM outbox_events WHERE document_id {store.dialect.among('texts')}", texts=wanted
        )
        assert {row[0] for row in found} == set(wanted)


def test_list_of_tuples_is_a_table(store: Store) -> None:
    given = [(each, at + 10**12, None) for at, each in enumerate(ODD_TEXTS)]
    pairs = store.dialect.table("pairs", name="TEXT", number="BIGINT", absent="TEXT")
    found = store.run(f"SELECT name, number, absent, p.place FROM {pairs} AS p ORDER BY number", pairs=given)
    assert [tuple(row) for row in found] == [(*each, place) for place, each in enumerate(given, 1)]
    assert store.run(f"SELECT count(*) FROM {pairs} AS p", pairs=[]).scalar_one() == 0


def test_parameters_are_taken_by_name_in_any_number_and_order(store: Store) -> None:
    sql = "SELECT CAST(:b AS BIGINT), CAST(:a AS BIGINT), CAST(:b AS BIGINT), ': no :parameter 5 % 3'"
    assert tuple(store.run(sql, a=1, b=2, unused=3).one()) == (2, 1, 2, ": no :parameter 5 % 3")


def test_greatest_and_least_of_values(store: Store) -> None:
    sql = store.dialect
    found = store.run(f"SELECT {sql.greatest('1', '3', '2')}, {sql.least('4', '3')}").one()
    assert tuple(found) == (3, 3)


def test_length_of_bytes_is_not_that_of_characters(store: Store) -> None:
    as_bytes = store.dialect.as_bytes("CAST(:text AS TEXT)")
    found = store.run(f"SELECT {as_bytes}, length({as_bytes})", text="é😀").one()
    assert (bytes(found[0]), found[1]) == ("é😀".encode(), 6)


def test_temporary_table_is_empty_each_time_and_of_one_connection(database: Database, store: Store) -> None:
    for _ in range(2):
        store.dialect.temporary(store.run, "noted", name="TEXT", number="BIGINT")
        assert store.run("SELECT count(*) FROM noted").scalar_one() == 0
        for _ in range(2):
            store.run("INSERT INTO noted VALUES ('a', 1) ON CONFLICT DO NOTHING")
        assert store.run("SELECT count(*) FROM noted").scalar_one() == 1
    other = database.store()
    other.dialect.temporary(other.run, "noted", name="TEXT", number="BIGINT")
    assert other.run("SELECT count(*) FROM noted").scalar_one() == 0


# -- transactions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_transaction_that_fails_leaves_nothing(database: Database, store: Store, *, durable: bool) -> None:
    with pytest.raises(RuntimeError), store.write(durable=durable):
        store.run("INSERT INTO outbox_indexes (index_name, physical_index) VALUES ('a', 'a-1')")
        raise RuntimeError
    assert database.store().targets() == {}
    with store.write(durable=durable):
        store.run("INSERT INTO outbox_indexes (index_name, physical_index) VALUES ('a', 'a-1')")
    assert database.store().targets() == {"a": "a-1"}


def test_who_writes_alone_loses_no_update_of_another(database: Database, store: Store) -> None:
    with store.write(durable=False):
        versions.raise_epoch(store, 0, NOW)

    def count(store: Store) -> None:
        for _ in range(50):
            with store.write(durable=False, alone=True):
                epoch = store.control().epoch
                store.run("UPDATE outbox_control SET epoch = :next", next=epoch + 1)

    in_threads(*((count, database.store()) for _ in range(3)))
    assert store.control().epoch == 152


# -- ids --------------------------------------------------------------------------------------------------------


def test_ids_of_one_insert_belong_to_its_rows_whatever_others_insert(database: Database) -> None:
    """In order, but with gaps where a database has them."""
    written: dict[int, str] = {}

    def write(name: str) -> None:
        for batch in range(20):
            documents = [f"{name}-{batch}-{n}" for n in range(10)]
            with database.engine.begin() as connection:
                rows = [("index", "contacts", each, None, None, len(each) + 2, NOW) for each in documents]
                ids = dialect_of(connection).insert(connection, rows, [f'"{each}"' for each in documents])
            assert list(ids) == sorted(set(ids))
            written.update(zip(ids, documents, strict=True))

    in_threads((write, "a"), (write, "b"))
    assert len(written) == 400
    assert {row["id"]: row["document_id"] for row in database.store().events()} == written
    assert {row["id"]: row["document"] for row in database.store().events()} == {
        id_: f'"{each}"' for id_, each in written.items()
    }


def test_id_is_not_issued_again_when_its_row_is_gone(database: Database, store: Store) -> None:
    ids = database.insert(("contacts", "c1"), ("contacts", "c2"))
    with store.write(durable=True):
        assert versions.remove(store, ids) == 2
    assert database.insert(("contacts", "c3"))[0] > max(ids)


def test_watermark_is_not_below_any_id_that_was_issued(database: Database, store: Store) -> None:
    before = store.watermark()
    ids = database.insert(*(("contacts", f"c{n}") for n in range(3)))
    assert before < min(ids)
    assert store.watermark() >= max(ids)
    assert store.highest_id() >= max(ids)


def test_tokens_can_be_raised_and_never_lowered(store: Store) -> None:
    for last in (1_000, 10):  # before the first claim as well
        with store.write(durable=True, alone=True):
            store.dialect.raise_tokens(store.run, last)
            assert versions.draw(store) % EPOCH_STEP > 1_000


# -- the database itself ----------------------------------------------------------------------------------------


def test_signal_comes_from_the_commits_of_others(database: Database, store: Store) -> None:
    before = store.signal()
    assert store.signal() == before
    database.insert(("contacts", "c1"))
    assert store.signal() != before


def test_own_commit_is_no_signal(database: Database, store: Store) -> None:
    database.insert(("contacts", "c1"))
    before = store.signal()
    held = claimed(store)
    outcomes.record(store, held, applied(held), NOW)
    assert store.signal() == before


def test_schema_token_changes_with_the_tables(database: Database, store: Store) -> None:
    before = store.schema_token()
    database.insert(("contacts", "c1"))
    assert store.schema_token() == before
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE another (id INTEGER PRIMARY KEY)"))
    assert store.schema_token() != before


@pytest.mark.parametrize(("kind", "name", "other"), [("relay", 7, 8), ("reindex", "a1b2", "c3d4")])
def test_process_is_there_until_it_ends(database: Database, kind: str, name: Any, other: Any) -> None:
    presence, seen = database.store().presence, database.store().presence
    held = presence.hold(kind, name)
    assert seen.live(kind, [other, name]) == [name]
    assert seen.dead(kind, [other, name]) == []
    held.end()
    assert seen.live(kind, [other, name]) == []


@pytest.mark.parametrize(("kind", "name"), [("relay", 7), ("reindex", "a1b2")])
def test_killed_process_is_dead_until_its_locks_are_removed(database: Database, kind: str, name: Any) -> None:
    script = (
        "import os, sys\nfrom sqlalchemy import create_engine\nfrom outbox.store.store import dialect_of\n"
        "engine = create_engine(sys.argv[1])\n"
        f"held = dialect_of(engine).presence(engine).hold({kind!r}, {name!r})\nos._exit(9)"
    )
    url = database.engine.url.render_as_string(hide_password=False)
    subprocess.run([sys.executable, "-c", script, url], check=False, timeout=LIMIT_S)
    presence = database.store().presence
    until(lambda: presence.dead(kind, [name]) == [name], "its lock is gone")
    assert presence.live(kind, [name]) == []
    presence.remove_locks(kind, [name])
    assert presence.dead(kind, [name]) == []


def test_relays_are_listed_until_they_are_taken_off(store: Store) -> None:
    relays = [store.register_relay("host", pid, "1", NOW) for pid in (1, 2, 3)]
    assert relays == sorted(set(relays))
    upkeep.heartbeat(store, relays[0], [{"index": None, "reason": "it's away"}], LockTimes(2.4, 1.6, 0.9), NOW + 1)
    store.deregister_relays(relays[1:])
    (left,) = store.relays()
    assert (left["id"], left["heartbeat_at"], left["breakers"][0]["reason"]) == (relays[0], NOW + 1, "it's away")
    assert (left["lock_waited_ms"], left["lock_held_ms"], left["lock_longest_ms"]) == (2, 2, 1)


def test_time_for_which_a_store_waits_for_the_lock_and_holds_it_is_counted(store: Store) -> None:
    with store.write(durable=False, alone=True):
        pass
    times = store.lock_times
    assert 0 < times.longest_ms == times.held_ms
    longest = times.longest_ms
    with pytest.raises(ZeroDivisionError), store.write(durable=False, alone=True):
        _ = 1 / 0
    assert times.held_ms > longest
    assert times.waited_ms > 0


def test_clean_rows_are_not_malformed(database: Database, store: Store) -> None:
    (row,) = database.insert(("contacts", "é"), tenant="acme")
    before = database.row(row)
    assert malformed.end(store, NOW) == 0
    assert database.row(row) == before
    assert not store.dialect.is_row_fault(ValueError("x"))
    assert not store.dialect.is_row_fault(None)


def test_sizes_grow_with_what_is_written(database: Database, store: Store) -> None:
    before = store.sizes()
    database.insert(*(("contacts", "c" * 200) for _ in range(2_000)))
    upkeep.checkpoint(store)
    assert store.sizes().used > before.used
    assert min(store.sizes()) >= 0


def test_tidying_up_is_no_harm_beside_a_reader(database: Database, store: Store) -> None:
    database.insert(("contacts", "c1"))
    with database.engine.connect() as reader:
        reader.execute(text("SELECT count(*) FROM outbox_events")).one()
        upkeep.checkpoint(store)
    assert store.counts()["pending"] == 1


def test_nothing_is_found_wrong_with_a_database_that_was_prepared(database: Database) -> None:
    found = dialect_of(database.engine).findings(database.engine)
    assert [each for each in found if each.level == "fail"] == []
    assert len({each.name for each in found}) == len(found) > 0
    assert found[-1].name != "database"

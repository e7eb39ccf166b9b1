"""Ids are given in one order on PostgreSQL, and transactions end in another: documents follow the commits."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from outbox import EntityRegistry, OutboxRepository
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.store import claims, operators, outcomes
from outbox.store.floor import Floor
from outbox.store.models import now_ms
from outbox.store.store import Store
from tests.conformance.database import LEASE_MS, NOW, Database, applied, claim, claimed, ids_of
from tests.support import writers
from tests.support.outbox import Outbox
from tests.support.postgres import Postgres
from tests.support.relays import until
from tests.support.writers import Base, Company, Contact

registry = EntityRegistry()
registry.add(
    Contact, index="contacts", to_document=lambda contact: {"name": contact.name, "company": contact.company.name}
)


@pytest.fixture
def engine(postgres: Postgres) -> Iterator[Engine]:
    with postgres.database() as url:
        made = create_engine(url)
        yield made
        made.dispose()


@pytest.fixture
def database(engine: Engine) -> Iterator[Database]:
    made = Database(engine)
    yield made
    made.opened.close()


@pytest.fixture
def store(database: Database) -> Store:
    return database.store()


@pytest.fixture
def outbox(engine: Engine) -> Iterator[Outbox]:
    made = Outbox(engine)
    yield made
    made.close()


@pytest.fixture
def search(tmp_path: Path) -> Iterator[EmbeddedDestination]:
    with closing(EmbeddedDestination(tmp_path / "search.db")) as made:
        yield made


def held(search: EmbeddedDestination, document_id: str) -> dict[str, Any]:
    return search.read("contacts", [document_id])[document_id].source


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_slow_look_has_the_next_ones_begin_where_it_found_rows_for_twenty_times_as_long() -> None:
    clock = Clock()
    floor = Floor(clock)

    def look(seconds: float, *found: int) -> int:
        since = floor.begin()
        clock.now += seconds
        floor.end(found)
        return since

    assert [look(0.01, 5), look(0.01, 6), look(0.1, 9, 7)] == [0, 0, 0]
    assert [look(1.0, 30), look(0.9), look(0.0, 40)] == [7, 7, 7]
    clock.now += 0.11
    assert [look(0.1), look(0.1, 50), look(0.0)] == [0, 0, 50]


def test_row_that_is_committed_late_below_the_floor_of_a_relay_waits_for_its_next_full_look(
    database: Database, store: Store
) -> None:
    clock = Clock()
    floor = Floor(clock)
    with database.engine.connect() as slow, slow.begin():
        (late,) = store.dialect.insert(slow, [("update", "contacts", "late", None, None, 0, NOW)])
        (first,) = database.insert(("contacts", "c1"))
        floor.begin()
        clock.now += 1
        floor.end([first])
    one = claimed(store, rows=9, floor=floor)
    assert (ids_of(one), one.more) == ([first], True)
    assert claim(store, floor=floor) is None
    clock.now += 20
    assert ids_of(claim(store, floor=floor)) == [late]


def test_row_that_is_committed_after_a_later_one_was_claimed_waits_for_the_end_of_that_claim(
    database: Database, store: Store
) -> None:
    with database.engine.connect() as slow, slow.begin():
        (first,) = store.dialect.insert(slow, [("update", "contacts", "c1", None, None, 0, NOW)])
        (second,) = database.insert(("contacts", "c1"), action="update")
        one = claimed(store)
        assert ids_of(one) == [second]
    other = database.store()
    assert claim(other) is None
    assert database.row(first)["available_at"] == NOW + LEASE_MS
    (third,) = database.insert(("contacts", "c1"), action="update")
    assert claim(other) is None
    outcomes.record(store, one, applied(one), NOW)
    late = claimed(other, now=NOW + 1)
    assert (ids_of(late), late.version > one.version) == ([first, third], True)


def test_row_that_is_committed_late_takes_its_turn_when_the_relay_that_has_the_later_one_was_killed(
    database: Database, store: Store
) -> None:
    with database.engine.connect() as slow, slow.begin():
        (first,) = store.dialect.insert(slow, [("update", "contacts", "c1", None, None, 0, NOW)])
        (second,) = database.insert(("contacts", "c1"), action="update")
        one = claimed(store)
    other = database.store()
    assert claim(other) is None
    claims.release(store, one, ids_of(one), NOW, undelivered=False)  # as the reaper does
    assert ids_of(claim(other, now=NOW + LEASE_MS + 1)) == [first, second]


def test_document_written_whole_by_two_transactions_is_that_of_the_one_that_ends_last(
    outbox: Outbox, search: EmbeddedDestination
) -> None:
    with outbox.sessions.begin() as slow:
        OutboxRepository(slow).index("contacts", "c1", {"of": "the first to begin"})
        outbox.index("contacts", "c1", {"of": "the first to end"})
        outbox.drain(search)
        assert held(search, "c1") == {"of": "the first to end"}
    outbox.drain(search)
    assert held(search, "c1") == {"of": "the first to begin"}
    assert outbox.counts() == {"pending": 0, "claimed": 0, "done": 2, "dead": 0}


def test_document_of_two_rows_that_are_changed_side_by_side_has_both_changes(
    outbox: Outbox, search: EmbeddedDestination
) -> None:
    Base.metadata.create_all(outbox.engine)
    with Session(outbox.engine) as session, session.begin():
        session.add(Contact(id=1, name="Ada", company=Company(id=1, name="Analytical")))

    def changed(session: Session, of: Any, name: str) -> None:
        session.get_one(of, 1).name = name
        session.flush()
        OutboxRepository(session, registry).refresh("contacts", 1)

    relay = outbox.relay(search, registry=registry)
    with outbox.sessions.begin() as slow:
        changed(slow, Company, "Engines")
        with outbox.sessions.begin() as quick:
            changed(quick, Contact, "Ada Lovelace")
        while relay.run_once():
            pass
        assert held(search, "1") == {"name": "Ada Lovelace", "company": "Analytical"}
    while relay.run_once():
        pass
    assert held(search, "1") == {"name": "Ada Lovelace", "company": "Engines"}
    assert outbox.counts()["dead"] == 0


@pytest.fixture
def sessions(outbox: Outbox) -> sessionmaker[Session]:
    """Captured ones, with a contact of a company in the database."""
    Base.metadata.create_all(outbox.engine)
    captured = writers.registry.capture(sessionmaker(outbox.engine))
    with captured.begin() as session:
        session.add(Contact(id=1, name="Ada", company=Company(id=1, name="Analytical")))
    return captured


def renamed(session: Session) -> None:
    session.get_one(Company, 1).name = "Engines"
    session.flush()


def test_company_that_is_renamed_reaches_contacts_that_another_transaction_has_noted_meanwhile(
    outbox: Outbox, search: EmbeddedDestination, sessions: sessionmaker[Session]
) -> None:
    """What that one has noted may be delivered before this one is committed."""
    with sessions.begin() as slow:
        slow.add(Contact(id=2, name="Charles", company_id=1))
        slow.flush()
        with sessions.begin() as quick:
            quick.get_one(Contact, 1).name = "Ada Lovelace"
        outbox.drain(search, registry=writers.registry)
        renamed(slow)
    outbox.drain(search, registry=writers.registry)
    assert held(search, "1") == {"name": "Ada Lovelace", "company": {"name": "Engines"}}


def test_company_that_is_renamed_reaches_contacts_that_others_make_of_it_meanwhile(
    outbox: Outbox, search: EmbeddedDestination, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as slow:
        renamed(slow)
        with sessions.begin() as quick:
            quick.add(Contact(id=2, name="Charles", company_id=1))
        outbox.drain(search, registry=writers.registry)
        assert held(search, "2") == {"name": "Charles", "company": {"name": "Analytical"}}
    outbox.drain(search, registry=writers.registry)
    assert held(search, "2") == {"name": "Charles", "company": {"name": "Engines"}}
    assert outbox.counts()["done"] == 4  # none twice


def test_relay_reads_what_documents_are_made_of_after_the_end_of_those_that_have_looked_for_the_last_time(
    outbox: Outbox, search: EmbeddedDestination, sessions: sessionmaker[Session]
) -> None:
    outbox.drain(search, registry=writers.registry)
    with ThreadPoolExecutor(1) as pool:
        with outbox.engine.begin() as ending:
            ending.execute(text("UPDATE companies SET name = 'Engines'"))
            outbox.store().dialect.announce_end(ending)
            with sessions.begin() as quick:
                quick.add(Contact(id=2, name="Charles", company_id=1))
            delivered = pool.submit(outbox.drain, search, registry=writers.registry)
            until(lambda: outbox.counts()["claimed"] == 1, "the relay has it")
            assert not delivered.done()
        delivered.result()
    assert held(search, "2") == {"name": "Charles", "company": {"name": "Engines"}}


def test_dead_row_is_retried_though_one_with_a_higher_id_was_delivered_before_it_was_committed(
    outbox: Outbox, search: EmbeddedDestination
) -> None:
    """The later id says nothing: its document was written first."""
    search.ensure_index("contacts", {"properties": {"n": {"type": "long"}}})
    with outbox.sessions.begin() as slow:
        late = OutboxRepository(slow).index("contacts", "c1", {"n": "no number"})
        outbox.index("contacts", "c1", {"n": 1})
        outbox.drain(search)
    outbox.drain(search)
    assert late is not None
    assert outbox.state(late) == "dead"
    retried = operators.retry_dead(outbox.store(), [late], now_ms())
    assert (retried.pending, retried.superseded, retried.overtaken) == (1, 0, {})

"""Rows that stand for an entity: the relay sends what the database says of it when the row is delivered."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from outbox import EntityRegistry, OutboxRepository
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.store.models import now_ms
from tests.support import LIMIT_S
from tests.support.models import Base, Company, Contact
from tests.support.outbox import Outbox
from tests.support.relays import Relays

SECOND = 1_000


@pytest.fixture
def registry(outbox: Outbox) -> EntityRegistry:
    Base.metadata.create_all(outbox.engine)
    made = EntityRegistry()
    made.add(
        Contact,
        index="contacts",
        fields=["name", "phone"],
        tenant="tenant",
        tenancy="prefixed",
        when=lambda contact: not contact.archived,
    )
    return made


def save(outbox: Outbox, registry: EntityRegistry, **values: Any) -> int:
    with outbox.sessions.begin() as session:
        contact = session.merge(Contact(**values))
        return OutboxRepository(session, registry).refresh(contact)[-1]


def documents(embedded: EmbeddedDestination) -> dict[str, Any]:
    ids = [f"2:{tenant}:{number}" for tenant in ("t1", "t2") for number in range(1, 5)]
    return {id_: stored.source for id_, stored in embedded.read("contacts-000001", ids).items()}


def deliver(outbox: Outbox, embedded: EmbeddedDestination, registry: EntityRegistry, now: int | None = None) -> None:
    relay = outbox.relay(embedded, registry=registry)
    while relay.run_once(now):
        pass


def test_document_is_what_the_database_says_at_delivery(
    outbox: Outbox, embedded: EmbeddedDestination, registry: EntityRegistry
) -> None:
    first = save(outbox, registry, id=1, name="Ada")
    with outbox.sessions.begin() as session:
        session.get_one(Contact, 1).phone = "123"  # nobody told the outbox
    deliver(outbox, embedded, registry)
    assert documents(embedded) == {"2:t1:1": {"name": "Ada", "phone": "123", "tenantId": "t1"}}
    assert outbox.outcome(first) == "applied"


def test_two_sessions_that_change_different_columns_of_a_row_both_arrive(
    outbox: Outbox, embedded: EmbeddedDestination, registry: EntityRegistry
) -> None:
    save(outbox, registry, id=1, name="Ada", phone="1")
    stale = Session(outbox.engine.execution_options(outbox_begin="DEFERRED"), expire_on_commit=False)
    old = stale.get_one(Contact, 1)
    stale.commit()
    save(outbox, registry, id=1, name="Ada Lovelace", phone="1")
    with stale.begin():
        old.phone = "2"
        OutboxRepository(stale, registry).refresh(old)
    stale.close()
    deliver(outbox, embedded, registry)
    assert documents(embedded) == {"2:t1:1": {"name": "Ada Lovelace", "phone": "2", "tenantId": "t1"}}


def test_row_that_is_gone_excluded_or_another_tenants_leaves_no_document(
    outbox: Outbox, embedded: EmbeddedDestination, registry: EntityRegistry
) -> None:
    for number in range(1, 5):
        save(outbox, registry, id=number, name="Ada")
    deliver(outbox, embedded, registry)
    with outbox.sessions.begin() as session:
        gone, archived, moved = (session.get_one(Contact, number) for number in (1, 2, 3))
        repo = OutboxRepository(session, registry)
        repo.refresh(gone)
        repo.refresh(moved)  # its place before …
        session.delete(gone)
        archived.archived, moved.tenant = True, "t2"
        rows = [*repo.refresh(archived), *repo.refresh(moved)]  # … and after
    deliver(outbox, embedded, registry)
    assert sorted(documents(embedded)) == ["2:t1:4", "2:t2:3"]
    assert [outbox.outcome(row) for row in rows] == ["deleted", "applied"]


def test_object_in_memory_is_refreshed_where_the_database_says_that_its_document_is(
    outbox: Outbox, embedded: EmbeddedDestination, registry: EntityRegistry
) -> None:
    save(outbox, registry, id=1, name="Ada", tenant="t1")
    deliver(outbox, embedded, registry)
    with outbox.sessions.begin() as session:
        contact = session.get_one(Contact, 1)
        session.execute(update(Contact.__table__).values(tenant="t2", name="Grace"))
        assert contact.tenant == "t1"
        assert len(OutboxRepository(session, registry).refresh(contact)) == 2
    deliver(outbox, embedded, registry)
    assert [(id_, held["name"]) for id_, held in documents(embedded).items()] == [("2:t2:1", "Grace")]


def test_document_that_cannot_be_made_fails_alone_and_is_retried(
    outbox: Outbox, embedded: EmbeddedDestination, registry: EntityRegistry
) -> None:
    broken: set[int] = {2}

    def to_document(contact: Contact) -> dict[str, Any]:
        if contact.id in broken:
            raise KeyError("no such price list")
        return {"name": contact.name}

    registry = EntityRegistry()
    registry.add(Contact, index="contacts", to_document=to_document, tenant="tenant", tenancy="prefixed")
    rows = [save(outbox, registry, id=number, name="Ada") for number in (1, 2, 3)]
    now = now_ms()
    deliver(outbox, embedded, registry, now)
    assert [outbox.state(row) for row in rows] == ["done", "pending", "done"]
    assert (outbox.row(rows[1])["attempts"], "no such price list" in outbox.row(rows[1])["error"]) == (1, True)
    broken.clear()
    deliver(outbox, embedded, registry, now + 3 * SECOND)
    assert outbox.state(rows[1]) == "done"

    broken.add(3)
    row = save(outbox, registry, id=3, name="Grace")
    for seconds in (3, 10, 20, 40):
        deliver(outbox, embedded, registry, now + seconds * SECOND)
    assert (outbox.state(row), outbox.row(row)["attempts"]) == ("dead", 4)


def test_rows_of_entities_wait_for_a_relay_that_knows_them(
    outbox: Outbox, embedded: EmbeddedDestination, registry: EntityRegistry
) -> None:
    row = save(outbox, registry, id=1, name="Ada")
    other = outbox.index("deals", "d1", {})
    now = now_ms()
    relay = outbox.relay(embedded)
    for _ in range(5):
        relay.run_once(now)
    assert (outbox.state(row), outbox.row(row)["attempts"], outbox.state(other)) == ("pending", 0, "done")
    (breaker,) = relay.breakers()
    assert (breaker["index"], "set OUTBOX_ENTITIES" in breaker["reason"]) == ("contacts", True)
    deliver(outbox, embedded, EntityRegistry(), now + 60 * SECOND)  # of another application
    deliver(outbox, embedded, registry, now + 120 * SECOND)
    assert outbox.state(row) == "done"


def test_table_of_an_entity_that_is_missing_kills_no_row(
    outbox: Outbox, embedded: EmbeddedDestination, registry: EntityRegistry
) -> None:
    row = save(outbox, registry, id=1, name="Ada")
    outbox.raw("ALTER TABLE contacts RENAME TO elsewhere")
    now = now_ms()
    for minutes in range(10):
        deliver(outbox, embedded, registry, now + minutes * 60 * SECOND)
    assert (outbox.state(row), outbox.row(row)["attempts"]) == ("pending", 0)
    outbox.raw("ALTER TABLE elsewhere RENAME TO contacts")
    deliver(outbox, embedded, registry, now + 3_600 * SECOND)
    assert outbox.state(row) == "done"


def test_table_of_an_entity_that_is_missing_holds_back_no_row_of_another_in_the_same_claim(
    outbox: Outbox, embedded: EmbeddedDestination, registry: EntityRegistry
) -> None:
    registry.add(Company, index="companies", fields=["name"])
    with outbox.sessions.begin() as session:
        company = session.merge(Company(code="a", region=1, name="Acme"))
        (missing,) = OutboxRepository(session, registry).refresh(company)
    row = save(outbox, registry, id=1, name="Ada")
    outbox.raw("ALTER TABLE companies RENAME TO elsewhere")
    deliver(outbox, embedded, registry)
    assert (outbox.state(missing), outbox.row(missing)["error_type"]) == ("pending", "entity_unavailable")
    assert (outbox.state(row), outbox.row(row)["deliveries"]) == ("done", 1)


def test_relay_of_the_version_before_removes_nothing_from_the_new_index_of_an_entity(
    outbox: Outbox, embedded: EmbeddedDestination, registry: EntityRegistry
) -> None:
    moved = EntityRegistry()
    moved.add(Contact, index="people", fields=["name"])
    row = save(outbox, moved, id=1, name="Ada")
    deliver(outbox, embedded, moved)
    row = save(outbox, moved, id=1, name="Ada Lovelace")
    now = now_ms()
    deliver(outbox, embedded, registry, now)
    assert (outbox.state(row), outbox.row(row)["error_type"]) == ("pending", "unknown_entity")
    assert "'contacts' has no documents in index 'people' here" in outbox.row(row)["error"]
    assert "outbox-relay purge --index people" in outbox.row(row)["error"]
    assert {id_: stored.source for id_, stored in embedded.read("people-000001", ["1"]).items()} == {
        "1": {"name": "Ada"}
    }
    deliver(outbox, embedded, moved, now + 60 * SECOND)
    assert outbox.outcome(row) == "applied"


@pytest.mark.parametrize("name", ["*", "a,b", "-x", "../x", "<x-{now/d}>", "Contacts", "_all", ""])
def test_illegal_index_name_of_another_program_reaches_no_other_index(
    outbox: Outbox, embedded: EmbeddedDestination, name: str
) -> None:
    good = outbox.index("contacts", "c1", {"n": 1})
    bad = outbox.put_raw(name, "c1", '{"stolen":true}')
    relay = outbox.relay(embedded)
    while relay.run_once():
        pass
    assert (outbox.state(good), outbox.state(bad)) == ("done", "dead")
    assert outbox.row(bad)["error_type"] == "illegal_index_name"
    assert embedded.read("contacts-000001", ["c1"])["c1"].source == {"n": 1}


APPLICATION = """
import os, signal
from outbox import EntityRegistry
from tests.support.models import Contact

def to_document(contact):
    if contact.id == 2:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does to a process that takes all memory
    return {"name": contact.name}

registry = EntityRegistry()
registry.add(Contact, index="contacts", to_document=to_document, tenant="tenant", tenancy="prefixed")
"""


@pytest.mark.usefixtures("embedded")
@pytest.mark.slow
def test_document_that_kills_each_relay_holds_up_nobody_and_is_dead_in_the_end(
    outbox: Outbox, registry: EntityRegistry, tmp_path: Path
) -> None:
    (tmp_path / "killing.py").write_text(APPLICATION)
    relays = Relays(outbox, "http://127.0.0.1:9", tmp_path)
    environment = {
        "PYTHONPATH": ":".join([str(Path(__file__).parents[1]), *filter(None, sys.path)]),
        "OUTBOX_DESTINATION": "embedded",
        "OUTBOX_EMBEDDED_PATH": str(tmp_path / "search.db"),
        "OUTBOX_ENTITIES": "killing:registry",
        "OUTBOX_LONE_AFTER": "3",
        "OUTBOX_CONCURRENCY": "1",  # what was sent before is recorded when the killing row is loaded
    }
    rows = [save(outbox, registry, id=number, name="Ada") for number in (1, 2, 3)]
    deaths = 0
    while relays.start("--drain", **environment).wait(LIMIT_S) == -9:
        deaths += 1
        assert deaths < 10
        if deaths == 4:  # alone by now
            rows.append(save(outbox, registry, id=4, name="Grace"))
        if deaths == 5:
            assert (outbox.state(rows[3]), outbox.state(rows[1])) == ("done", "claimed")
    assert [outbox.state(row) for row in rows] == ["done", "dead", "done", "done"]
    assert outbox.row(rows[1])["error_type"] == "poison"
    assert json.loads(relays.call("dead", "list", "--json", **environment).stdout)[0]["id"] == rows[1]

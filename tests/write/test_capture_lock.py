"""Capture looks and writes under one lock: what another writer does in between is either before both, or after."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, delete, event, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from outbox import EntityRegistry, OutboxRepository, sqlite
from outbox.triggers import installer as triggers
from tests.support.watching import Rows
from tests.write import ON_SQLITE
from tests.write.models import Contact


@pytest.fixture(params=["prepared", "plain"])
def captured(
    request: pytest.FixtureRequest, database: Engine, registry: EntityRegistry
) -> Iterator[sessionmaker[Session]]:
    registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy="prefixed")
    plain = create_engine(database.url)
    yield registry.capture(sessionmaker(database if request.param == "prepared" else plain))
    plain.dispose()


def change_tenant(session: Session, contact: Contact) -> None:
    contact.tenant_id = "other"
    session.flush()


def remove(session: Session, contact: Contact) -> None:
    session.delete(contact)
    session.flush()


def update_by_criteria(session: Session, _: Contact) -> None:
    session.execute(update(Contact).where(Contact.name == "Ada").values(name="Grace"))


def delete_by_criteria(session: Session, _: Contact) -> None:
    session.execute(delete(Contact).where(Contact.name == "Ada"))


@pytest.mark.parametrize("change", [change_tenant, remove, update_by_criteria, delete_by_criteria])
def test_no_other_writer_comes_between_the_look_and_the_write(
    change: Callable[[Session, Contact], None], captured: sessionmaker[Session], database: Engine
) -> None:
    with captured.begin() as session:
        session.add(Contact(id=1, name="Ada", tenant_id="acme"))
    other = sqlite3.connect(str(database.url.database), timeout=0, isolation_level=None)
    came_between: list[str] = []

    def write_elsewhere(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        """Right before each statement that looks or writes, once the change has begun."""
        if "contacts" in statement and not statement.startswith("INSERT"):
            try:
                other.execute("UPDATE contacts SET tenant_id = tenant_id")
                came_between.append(statement)
            except sqlite3.OperationalError:
                pass  # locked

    with captured() as session:
        contact = session.get_one(Contact, 1)
        engine = session.get_bind()
        event.listen(engine, "before_cursor_execute", write_elsewhere)
        change(session, contact)
        event.remove(engine, "before_cursor_execute", write_elsewhere)
        session.commit()
    other.close()
    assert came_between == []


@ON_SQLITE
def test_rows_of_others_between_the_read_and_the_write_are_not_waited_for(
    database: Engine, registry: EntityRegistry, sessions: sessionmaker[Session]
) -> None:
    registry.add(Contact, index="contacts", fields=["name"])
    with database.begin() as connection:
        triggers.install(connection, registry)
    with sessions() as session:
        session.execute(select(Contact)).all()
        with database.begin() as connection:  # another application, whose row is not ours to wait for
            connection.execute(text("INSERT INTO contacts (id, name, archived) VALUES (1, 'theirs', 0)"))
        session.execute(text("INSERT INTO contacts (id, name, archived) VALUES (2, 'ours', 0)"))
        session.commit()
        with database.begin() as connection:
            connection.execute(text("UPDATE outbox_events SET state = 'done', outcome = 'applied' WHERE id = 2"))
        assert OutboxRepository(session).wait_until_synced(timeout=10) == {2: "applied"}


def test_session_that_has_only_read_since_its_commit_may_wait(
    database: Engine, registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows
) -> None:
    registry.add(Contact, index="contacts", fields=["name"])
    with sessions() as session:
        session.add(Contact(id=1, name="Ada"))
        session.commit()
        assert new() == ["contacts/1"]
        with database.begin() as connection:
            connection.execute(text("UPDATE outbox_events SET state = 'done', outcome = 'applied'"))
        assert session.get_one(Contact, 1).name == "Ada"
        assert OutboxRepository(session).wait_until_synced(timeout=10) == {1: "applied"}


def test_document_made_by_hand_under_the_lock_is_as_new_as_its_row(database: Engine) -> None:
    with sessionmaker(database).begin() as session:
        session.add(Contact(id=1, name="Ada"))
    with Session(database) as session, session.begin():
        contact = session.get_one(Contact, 1)
        with database.begin() as connection:
            connection.execute(text("UPDATE contacts SET name = 'Grace'"))
        if database.dialect.name == "sqlite":
            sqlite.lock(session)
        else:
            session.refresh(contact, with_for_update=True)
        OutboxRepository(session).index("by-hand", "1", {"name": contact.name})
    with database.connect() as connection:
        assert connection.scalar(text("SELECT document FROM outbox_documents")) == '{"name":"Grace"}'

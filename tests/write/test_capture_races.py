"""What other transactions commit on PostgreSQL between the look at rows and the statement that changes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, delete, event, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from outbox import EntityRegistry
from outbox.errors import DatabaseUnavailable
from tests.support.watching import Rows
from tests.write.models import Base, Contact, Phone


@pytest.fixture
def engine(postgresql_engine: Engine) -> Engine:
    Base.metadata.create_all(postgresql_engine)
    with postgresql_engine.begin() as connection:
        made = "INSERT INTO contacts (id, name, archived, tenant_id) VALUES"
        connection.execute(text(f"{made} (1, 'open', false, 't1'), (2, 'closed', false, 't1')"))
        connection.execute(text("INSERT INTO phones (id, number) VALUES (1, '123')"))
    return postgresql_engine


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    registry = EntityRegistry()
    fields = ["name", "phones.number"]
    registry.add(Contact, index="contacts", fields=fields, tenant="tenant_id", tenancy="prefixed")
    return registry.capture(sessionmaker(engine))


@pytest.fixture
def new(engine: Engine) -> Rows:
    return Rows(engine)


@contextmanager
def just_before(
    engine: Engine, start: str, then: Callable[[Connection], object], times: int = 1
) -> Iterator[list[Exception]]:
    """Another transaction, which is committed as a statement that begins so is about to be carried out. What failed."""
    left, failed = [then] * times, list[Exception]()
    other = create_engine(engine.url, connect_args={"options": "-c lock_timeout=100"})

    def committed(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith(start) and left:
            try:
                with other.begin() as connection:
                    left.pop()(connection)
            except OperationalError as error:
                failed.append(error)

    event.listen(engine, "before_cursor_execute", committed)
    yield failed
    event.remove(engine, "before_cursor_execute", committed)
    other.dispose()
    assert left == []


def opens_the_other(connection: Connection) -> None:
    connection.execute(text("UPDATE contacts SET name = 'open' WHERE id = 2"))


def moves_the_first(connection: Connection) -> None:
    connection.execute(text("UPDATE contacts SET tenant_id = 't9' WHERE id = 1"))


def test_row_that_comes_to_match_an_update_is_noted(engine: Engine, sessions: sessionmaker[Session], new: Rows) -> None:
    with just_before(engine, "UPDATE contacts", opens_the_other), sessions.begin() as session:
        result: Any = session.execute(update(Contact).where(Contact.name == "open").values(name="won"))
        assert result.rowcount == 2
    assert sorted(new()) == ["contacts/2:t1:1", "contacts/2:t1:2"]


@pytest.mark.parametrize(
    ("change", "noted"),
    [
        (delete(Contact), []),
        (update(Contact).values(tenant_id="t2"), ["contacts/2:t2:1", "contacts/2:t2:2"]),
    ],
)
def test_row_that_comes_to_match_a_statement_leaves_its_place(
    engine: Engine, sessions: sessionmaker[Session], new: Rows, change: Any, noted: list[str]
) -> None:
    start = "DELETE FROM contacts" if change.is_delete else "UPDATE contacts"
    with just_before(engine, start, opens_the_other), sessions.begin() as session:
        result: Any = session.execute(change.where(Contact.name == "open"))
        assert result.rowcount == 2
    assert sorted(new()) == ["contacts/2:t1:1", "contacts/2:t1:2", *noted]


def test_statement_that_meets_new_rows_over_and_over_changes_nothing_and_says_what_to_do(
    engine: Engine, sessions: sessionmaker[Session], new: Rows
) -> None:
    numbers = iter(range(10, 20))

    def adds_one(connection: Connection) -> None:
        made = "INSERT INTO contacts (id, name, archived, tenant_id) VALUES (:id, 'open', false, 't1')"
        connection.execute(text(made), {"id": next(numbers)})

    with just_before(engine, "DELETE FROM contacts", adds_one, times=5), sessions.begin() as session:
        with pytest.raises(DatabaseUnavailable, match="roll the transaction back, and try again"):
            session.execute(delete(Contact).where(Contact.name == "open"))
        assert session.query(Contact).count() == 7
    assert new() == []


@pytest.mark.parametrize("change", [delete(Contact), update(Contact).values(tenant_id="t2")])
def test_row_that_another_worker_lets_go_of_is_not_taken_for_the_one_that_was_looked_at(
    engine: Engine, sessions: sessionmaker[Session], new: Rows, change: Any
) -> None:
    first = select(Contact.id).order_by(Contact.id).limit(1).with_for_update(skip_locked=True).scalar_subquery()
    start = "DELETE FROM contacts" if change.is_delete else "UPDATE contacts"
    with engine.connect() as other, sessions.begin() as session:
        other.execute(text("SELECT * FROM contacts WHERE id = 1 FOR UPDATE"))
        with just_before(engine, start, lambda _: other.rollback()):
            (taken,) = session.scalars(change.where(Contact.id == first).returning(Contact.id))
    assert sorted(new()) == [f"contacts/2:t1:{taken}", *([] if change.is_delete else [f"contacts/2:t2:{taken}"])]


@pytest.mark.parametrize("by", ["statement", "object", "many"])
@pytest.mark.parametrize("goes", [True, False])
def test_row_stays_where_it_was_when_that_was_looked_at(
    engine: Engine, sessions: sessionmaker[Session], new: Rows, by: str, goes: bool
) -> None:
    start = "DELETE FROM contacts" if goes else "UPDATE contacts"
    with just_before(engine, start, moves_the_first) as failed, sessions.begin() as session:
        if by == "object":
            found = session.get_one(Contact, 1)
            if goes:
                session.delete(found)
            else:
                found.tenant_id = "t2"
        elif by == "many" and not goes:
            session.execute(update(Contact), [{"id": 1, "tenant_id": "t2"}])
        else:
            change: Any = delete(Contact) if goes else update(Contact).values(tenant_id="t2")
            session.execute(change.where(Contact.id == 1))
    assert [type(each.orig).__name__ for each in failed] == ["LockNotAvailable"]  # type: ignore[attr-defined]
    assert sorted(new()) == ["contacts/2:t1:1", *([] if goes else ["contacts/2:t2:1"])]


@pytest.mark.parametrize("by_object", [True, False])
def test_row_that_others_are_made_of_belongs_where_it_did_when_that_was_looked_at(
    engine: Engine, sessions: sessionmaker[Session], new: Rows, by_object: bool
) -> None:
    def belongs_to_the_second(connection: Connection) -> None:
        connection.execute(text("UPDATE phones SET contact_id = 2 WHERE id = 1"))

    with just_before(engine, "UPDATE phones", belongs_to_the_second) as failed, sessions.begin() as session:
        if by_object:
            session.get_one(Phone, 1).contact_id = 1
        else:
            session.execute(update(Phone).where(Phone.number == "123").values(contact_id=1))
    assert len(failed) == 1
    assert new() == ["contacts/2:t1:1"]

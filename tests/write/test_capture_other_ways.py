"""Ways of SQLAlchemy's documentation to write and to read that are captured as any other, and give what they gave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import CursorResult, Engine, bindparam, delete, event, insert, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import ORMExecuteState, Session, aliased, sessionmaker

from outbox import ConfigurationError, EntityRegistry
from tests.support.watching import Rows
from tests.write.models import Contact


@pytest.fixture
def session(registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows) -> Any:
    registry.add(Contact, index="contacts", fields=["name"])
    with sessions() as session:
        session.add_all([Contact(id=at, name="Ada") for at in (1, 2)])
        session.commit()
        new()
        yield session


# -- statements that return objects: select(Model).from_statement(…) -----------------------------------------------


def upserted(session: Session) -> Any:
    own = {"sqlite": sqlite_insert, "postgresql": postgresql_insert}[session.get_bind().dialect.name]
    statement: Any = own(Contact).values([{"id": at, "name": "Grace", "archived": False} for at in (2, 3)])
    return statement.on_conflict_do_update(index_elements=["id"], set_={"name": statement.excluded.name})


@pytest.mark.parametrize(
    ("made", "ids"),
    [
        pytest.param(upserted, [2, 3], id="upsert"),
        pytest.param(lambda _: update(Contact).where(Contact.id == 2).values(name="Grace"), [2], id="update"),
        pytest.param(lambda _: delete(Contact).where(Contact.id == 2), [2], id="delete"),
    ],
)
def test_statement_whose_objects_are_asked_for_is_noted(
    session: Session, new: Rows, made: Callable[[Session], Any], ids: list[int]
) -> None:
    asked = select(Contact).from_statement(made(session).returning(Contact))
    found = session.scalars(asked, execution_options={"populate_existing": True}).all()
    assert sorted(each.id for each in found) == ids
    session.commit()
    assert sorted(new()) == [f"contacts/{at}" for at in ids]


def test_statement_that_returns_no_objects_is_refused_with_what_to_write(session: Session, new: Rows) -> None:
    statement = insert(Contact).values(id=9, name="Grace", archived=False).returning(Contact.name)
    with pytest.raises(ConfigurationError, match=r"returns no Contact.*pass the insert\(\) or update\(\) itself"):
        session.execute(select(Contact.name).from_statement(statement))
    session.commit()
    assert (new(), session.get(Contact, 9)) == ([], None)


# -- what insert() gives back --------------------------------------------------------------------------------------


def test_result_of_an_insert_is_what_it_was(session: Session, new: Rows) -> None:
    values = {"name": "Grace", "archived": False}
    result: Any = session.execute(insert(Contact).values(id=3, **values))
    assert (result.lastrowid, result.inserted_primary_key, result.rowcount, result.returns_rows) == (3, (3,), 1, False)
    result = session.execute(insert(Contact).values(id=4, **values).return_defaults())
    assert tuple(result.inserted_primary_key) == (4,)
    raw = insert(Contact).execution_options(dml_strategy="raw")
    result = session.execute(raw, [{"id": at, **values} for at in (5, 6)])
    assert (isinstance(result, CursorResult), result.rowcount) == (True, 2)
    session.commit()
    assert sorted(new()) == [f"contacts/{at}" for at in (3, 4, 5, 6)]


# -- update() and delete() -----------------------------------------------------------------------------------------


def test_update_of_many_by_criteria_is_noted(session: Session, new: Rows) -> None:
    statement = update(Contact).where(Contact.id == bindparam("which")).values(name=bindparam("called"))
    given = [{"which": at, "called": "Grace"} for at in (1, 2, 7)]
    session.execute(statement, given, execution_options={"dml_strategy": "core_only"})
    session.commit()
    assert sorted(new()) == ["contacts/1", "contacts/2"]


@pytest.mark.parametrize(
    "made", [lambda of: update(of).where(of.id == 2).values(name="x"), lambda of: delete(of).where(of.id == 2)]
)
def test_statement_about_an_alias_notes_its_rows_alone(session: Session, new: Rows, made: Callable[[Any], Any]) -> None:
    session.execute(made(aliased(Contact)), execution_options={"synchronize_session": False})
    session.commit()
    assert new() == ["contacts/2"]


@pytest.mark.parametrize("returning", [False, True])
@pytest.mark.parametrize("way", ["session", "connection"])
def test_result_of_what_a_listener_carries_out_instead_is_what_it_was(
    session: Session, new: Rows, way: str, returning: bool
) -> None:
    @event.listens_for(session, "do_orm_execute")
    def delete_softly(state: ORMExecuteState) -> Any:
        if not state.is_delete:
            return None
        run = state.session if way == "session" else state.session.connection()
        return run.execute(update(Contact).where(Contact.id == 1).values(name="deleted"))

    statement = delete(Contact).where(Contact.id == 1)
    result: Any = session.execute(statement.returning(Contact.name) if returning else statement)
    assert result.rowcount == 1
    session.commit()
    assert new() == (["contacts/1"] if way == "session" else [])


# -- sessions that read from another database ----------------------------------------------------------------------


def test_session_that_reads_from_a_replica_notes_where_it_writes(
    database: Engine, registry: EntityRegistry, new: Rows
) -> None:
    """The `RoutingSession` of SQLAlchemy's documentation, with a replica that knows nothing of the outbox."""
    replica = "no database, that is asked for nothing but reads"

    class Routing(Session):
        def get_bind(self, *_: Any, **asked: Any) -> Any:
            return database if self._flushing or getattr(asked.get("clause"), "is_dml", False) else replica

    registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy="prefixed")
    with registry.capture(sessionmaker(class_=Routing))() as session:
        session.add(Contact(id=1, name="Ada", tenant_id="t1"))
        session.commit()
        assert new() == ["contacts/2:t1:1"]
        session.execute(update(Contact).values(name="Grace"), execution_options={"synchronize_session": False})
        session.commit()
        assert new() == ["contacts/2:t1:1"]
        session.execute(update(Contact).values(tenant_id="t2"), execution_options={"synchronize_session": False})
        session.commit()
        assert sorted(new()) == ["contacts/2:t1:1", "contacts/2:t2:1"]

"""What ORM statements change becomes rows, and their callers notice nothing of it."""

from __future__ import annotations

import gc
import sqlite3
from typing import Any, NamedTuple

import pytest
from sqlalchemy import ColumnElement, Engine, Integer, bindparam, delete, event, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import Session, sessionmaker

from outbox import ConfigurationError, EntityRegistry, OutboxRepository
from outbox.triggers import installer as triggers
from tests.support.following import Following
from tests.support.watching import Rows
from tests.write import ON_SQLITE
from tests.write.models import Contact, Order, Tag


@pytest.mark.usefixtures("contacts")
def test_statement_touches_the_rows_of_its_criteria_only(sessions: sessionmaker[Session], new: Rows) -> None:
    with sessions() as session:
        session.add_all([Contact(id=at, name="Ada" if at % 2 else "Bob") for at in range(1, 6)])
        session.commit()
        new()
        session.execute(update(Contact).where(Contact.name == "Bob").values(name="Grace"))  # no longer matches
        session.commit()
        assert new() == ["contacts/2", "contacts/4"]
        session.execute(update(Contact).where(Contact.id == bindparam("which")).values(name="x"), {"which": 1})
        session.commit()
        assert new() == ["contacts/1"]
        session.execute(update(Contact).where(Contact.id == 99).values(name="x"))
        session.commit()
        assert new() == []
        session.execute(update(Contact), [{"id": 3, "name": "y"}, {"id": 5, "secret": "z"}])
        session.commit()
        assert new() == ["contacts/3", "contacts/5"]
        session.query(Contact).filter(Contact.id < 3).update({"name": "q"}, synchronize_session=False)
        session.commit()
        assert new() == ["contacts/1", "contacts/2"]
        session.execute(delete(Contact).where(Contact.id == 1))
        session.query(Contact).filter(Contact.id > 4).delete()
        session.commit()
        assert new() == ["contacts/1", "contacts/5"]
        assert sorted(session.scalars(select(Contact.id))) == [2, 3, 4]


@pytest.mark.usefixtures("contacts")
def test_statement_that_sees_pending_changes_touches_what_they_make_it_match(
    sessions: sessionmaker[Session], new: Rows
) -> None:
    with sessions() as session:
        session.add(Contact(id=1, name="Ada"))
        session.commit()
        new()
        session.get_one(Contact, 1).secret = "x"  # pending, and no reason for a row by itself
        session.execute(update(Contact).where(Contact.secret == "x").values(name="Grace"))
        session.commit()
        assert new() == ["contacts/1"]


@pytest.mark.usefixtures("contacts")
def test_listener_that_hides_rows_from_queries_hides_none_from_capture(
    sessions: sessionmaker[Session], new: Rows
) -> None:
    with sessions() as session:
        session.add(Contact(id=1, name="Ada", archived=True))
        session.commit()
        new()

        @event.listens_for(session, "do_orm_execute")
        def hide(state: Any) -> None:
            if state.is_select:
                state.statement = state.statement.where(Contact.archived.is_(False))

        session.execute(update(Contact).values(name="Grace"))
        session.commit()
        assert new() == ["contacts/1"]


@pytest.mark.usefixtures("contacts")
@ON_SQLITE
def test_inserted_rows_are_known_by_what_the_database_returns(sessions: sessionmaker[Session], new: Rows) -> None:
    with sessions() as session:
        session.execute(insert(Contact), [{"name": "a"}, {"name": "b", "email": "x"}])
        session.execute(insert(Contact).values([{"name": "c"}, {"name": "d"}]))
        session.execute(insert(Contact).values(name="e"))
        session.execute(
            insert(Contact).from_select(["name", "archived"], select(Contact.name, Contact.archived).limit(1))
        )
        session.commit()
        assert new() == [f"contacts/{at}" for at in range(1, 7)]
        upsert = sqlite_insert(Contact).values(id=3, name="z", archived=False)
        session.execute(upsert.on_conflict_do_update(index_elements=["id"], set_={"name": "z"}))
        session.execute(upsert.on_conflict_do_nothing())
        session.commit()
        assert new() == ["contacts/3"]


@pytest.mark.usefixtures("contacts")
@ON_SQLITE
def test_caller_of_a_statement_gets_what_it_asked_for(sessions: sessionmaker[Session], database: Engine) -> None:
    bare = sessionmaker(database)
    for make in (sessions, bare):
        with make() as session:
            single = session.execute(insert(Contact).values(name="a"))
            assert tuple(single.inserted_primary_key) == (1,)  # type: ignore[attr-defined]
            assert single.rowcount == 1  # type: ignore[attr-defined]
            many = session.scalars(insert(Contact).returning(Contact), [{"name": "b"}, {"name": "c"}]).all()
            assert [each.name for each in many] == ["b", "c"]
            assert many[0] is session.get(Contact, 2)
            pairs = session.execute(insert(Contact).returning(Contact.name, Contact.id), [{"name": "d"}])
            assert [tuple(each) for each in pairs] == [("d", 4)]
            changed = session.execute(update(Contact).where(Contact.id < 3).values(name="x"))
            assert changed.rowcount == 2  # type: ignore[attr-defined]
            moved = session.execute(update(Contact).where(Contact.id == 4).values(id=9))
            assert moved.rowcount == 1  # type: ignore[attr-defined]
            named = session.execute(update(Contact).where(Contact.id == 9).values(id=8).returning(Contact.name))
            assert named.mappings().all() == [{"name": "d"}]
            assert session.execute(delete(Contact).where(Contact.id == 8)).rowcount == 1  # type: ignore[attr-defined]
            session.rollback()


@pytest.mark.usefixtures("contacts")
def test_statements_on_tables_are_not_seen_and_refresh_is_the_remedy(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows
) -> None:
    with sessions() as session:
        session.execute(insert(Contact.__table__), {"id": 1, "name": "Ada", "archived": False})
        session.bulk_insert_mappings(Contact, [{"id": 2, "name": "Bob"}])  # type: ignore[arg-type]
        session.commit()
        assert new() == []
        repo = OutboxRepository(session, registry)
        repo.refresh("contacts", 1)
        repo.refresh(session.get_one(Contact, 2))
        session.commit()
        assert new() == ["contacts/1", "contacts/2"]


@pytest.mark.usefixtures("contacts")
@ON_SQLITE
def test_no_cursor_is_left_to_the_garbage_collector_of_another_thread(
    sessions: sessionmaker[Session], database: Engine, registry: EntityRegistry
) -> None:
    """It would reset its statement, which the connection keeps for the next one and may be using at that moment."""
    with database.begin() as connection:
        triggers.install(connection, registry)
    for covered in (True, False):
        gc.collect()
        gc.disable()  # what it would have to find stays to be found
        try:
            with sessions.begin() as session:
                session.add_all([Contact(id=n + covered * 10, name="Ada", tenant_id="t1") for n in (1, 2)])
                session.flush()
                OutboxRepository(session).index_many("notes", [("1", {}), ("2", {})])
            cursors = [each for each in gc.get_objects() if isinstance(each, sqlite3.Cursor)]
            assert [each for each in cursors if not _is_closed(each)] == []
        finally:
            gc.enable()
        with database.begin() as connection:
            triggers.remove(connection)


def _is_closed(cursor: sqlite3.Cursor) -> bool:
    try:
        cursor.fetchone()
    except sqlite3.ProgrammingError:  # or its connection is
        return True
    return False


@pytest.mark.parametrize("when", ["before_flush", "after_flush"])
@pytest.mark.usefixtures("contacts")
def test_statement_of_a_listener_to_the_flush_itself_is_noted(
    sessions: sessionmaker[Session], new: Rows, when: str
) -> None:
    with sessions.begin() as session:
        session.add_all([Contact(id=1, name="Ada", tenant_id="t1"), Tag(id=1, label="a")])
    assert new() == ["contacts/1"]

    def rename(session: Session, *_: Any) -> None:
        session.execute(update(Contact).where(Contact.id == 1).values(name="Grace"))

    event.listen(sessions, when, rename)
    with sessions.begin() as session:
        session.get_one(Tag, 1).label = "b"
    assert new() == ["contacts/1"]


# -- criteria that mean other rows each time they are asked --------------------------------------------------------


class Drawn(NamedTuple):
    """Contacts whose documents move with their tenant, or do not move; and what follows them."""

    sessions: sessionmaker[Session]
    following: Following
    any_one: ColumnElement[int]


@pytest.fixture(params=["shared", "prefixed"])
def drawn(
    request: pytest.FixtureRequest, database: Engine, registry: EntityRegistry, sessions: sessionmaker[Session]
) -> Drawn:
    registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy=request.param)
    following = Following(database, registry)
    with sessions.begin() as session:
        session.add_all(Contact(id=at, name="Ada", tenant_id="t1") for at in range(1, 41))
    following.follow()
    return Drawn(sessions, following, select(Contact.id).order_by(func.random()).limit(1).scalar_subquery())


@pytest.mark.parametrize(
    "change", [update(Contact).values(name="Grace"), update(Contact).values(tenant_id="t2"), delete(Contact)]
)
@pytest.mark.parametrize("how", ["plain", "returning", "objects"])
def test_rows_that_criteria_draw_are_those_that_are_noted(drawn: Drawn, change: Any, how: str) -> None:
    statement = change.where(Contact.id == drawn.any_one)
    if how == "objects":
        statement = select(Contact).from_statement(statement.returning(Contact))
    elif how == "returning":
        statement = statement.returning(Contact.id)
    for _ in range(3):
        with drawn.sessions.begin() as session:
            result: Any = session.execute(statement, execution_options={"synchronize_session": False})
            assert (result.rowcount if how == "plain" else len(result.all())) == 1
        assert drawn.following.follow() == drawn.following.rebuilt()


@pytest.mark.parametrize("synchronize", ["auto", "evaluate", "fetch"])
def test_objects_in_the_session_follow_a_statement_that_goes_by_the_keys_of_its_rows(
    database: Engine, registry: EntityRegistry, sessions: sessionmaker[Session], synchronize: Any
) -> None:
    registry.add(Order, index="orders", fields=["name"], tenant="name", tenancy="prefixed")
    following = Following(database, registry)
    options = {"synchronize_session": synchronize}
    with sessions.begin() as session:
        held = [Order(shop=shop, number=at, name="a") for shop in "xy" for at in (1, 2)]
        session.add_all(held)
        session.flush()
        first = func.lower(Order.shop) == "x"
        session.execute(update(Order).where(first, Order.number == 1).values(name="b"), execution_options=options)
        session.execute(update(Order).where(first, Order.number > 9).values(name="c"), execution_options=options)
        assert [each.name for each in held] == ["b", "a", "a", "a"]
        session.execute(delete(Order).where(first, Order.number == 1), execution_options=options)
        assert held[0] not in session
    assert following.follow() == following.rebuilt()
    assert sorted(following.index) == [("orders", place) for place in ("1:a:x|2", "1:a:y|1", "1:a:y|2")]


@ON_SQLITE
def test_function_in_criteria_is_called_once(drawn: Drawn, database: Engine) -> None:
    calls: list[int] = []
    event.listen(
        database, "checkout", lambda raw, *_: raw.create_function("called", 1, lambda at: calls.append(at) or at)
    )
    for statement in (update(Contact).values(tenant_id="t2"), delete(Contact)):
        with drawn.sessions.begin() as session:
            only = select(func.called(7, type_=Integer)).scalar_subquery()
            session.execute(statement.where(Contact.id == only), execution_options={"synchronize_session": False})
        assert calls == [7]
        calls.clear()


@pytest.mark.parametrize(("tenancy", "is_refused"), [("shared", False), ("prefixed", True)])
def test_statement_in_a_cte_of_criteria_is_carried_out_once_or_refused(
    database: Engine,
    registry: EntityRegistry,
    sessions: sessionmaker[Session],
    new: Rows,
    tenancy: Any,
    is_refused: bool,
) -> None:
    if database.dialect.name == "sqlite":
        pytest.skip("SQLite has none that writes")
    registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy=tenancy)
    with sessions.begin() as session:
        session.add_all(Contact(id=at, name="Ada", tenant_id="t1") for at in (1, 2, 3))
        session.add_all([Tag(id=1, label="a"), Tag(id=2, label="a")])
    marked = update(Tag).values(label=Tag.label + "!").returning(Tag.id).cte("marked")
    criteria = Contact.id.in_(select(marked.c.id))
    for statement in (update(Contact).values(name="Grace"), update(Contact).values(tenant_id="t2"), delete(Contact)):
        new()
        with sessions() as session:
            leaves = statement.is_delete or "tenant_id" in statement.compile().params
            if is_refused and leaves:
                with pytest.raises(ConfigurationError, match="execute that statement first"):
                    session.execute(statement.where(criteria), execution_options={"synchronize_session": False})
            else:
                session.execute(statement.where(criteria), execution_options={"synchronize_session": False})
                assert session.scalars(select(Tag.label)).all() == ["a!", "a!"]
                session.execute(update(Tag).values(label="a"))
                session.commit()
                assert len(new()) == 2

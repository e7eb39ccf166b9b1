"""Sessions with several databases, and those that stand for one of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from outbox import ConfigurationError, EntityRegistry, OutboxRepository, sqlite
from outbox.models import events, metadata
from tests.support.watching import Rows
from tests.write import ON_SQLITE
from tests.write.models import Account, Base, Contact

OUTBOX = metadata.sorted_tables


class OtherBase(DeclarativeBase):
    pass


class Line(OtherBase):
    """Of no entity, in a database of its own."""

    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    sqlite.prepare(engine)
    OtherBase.metadata.create_all(engine)
    Base.metadata.create_all(engine)
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.mark.usefixtures("contacts")
def test_write_of_no_entity_is_not_kept_from_a_database_without_an_outbox(
    database: Engine, elsewhere: Engine, registry: EntityRegistry
) -> None:
    captured = registry.capture(sessionmaker(binds={Base: database, OtherBase: elsewhere}))
    with captured.begin() as session:
        session.add(Line(id=1, text="x"))
    with captured() as session:
        assert session.get_one(Line, 1).text == "x"


@ON_SQLITE
@pytest.mark.usefixtures("contacts")
def test_flush_that_writes_to_another_database_alone_does_not_lock_that_of_the_outbox(
    database: Engine, elsewhere: Engine, registry: EntityRegistry, new: Rows
) -> None:
    captured = registry.capture(sessionmaker(database, binds={OtherBase: elsewhere}))
    with captured.begin() as session:
        session.add(Line(id=1, text="x"))
        session.flush()
        with Session(database) as other:
            other.connection().exec_driver_sql("PRAGMA busy_timeout = 0")
            other.add(Contact(id=1, name="Ada"))
            other.commit()
        session.add(Contact(id=2, name="Bob"))
    assert new() == ["contacts/2"]


@pytest.mark.usefixtures("contacts")
def test_entity_of_a_session_that_knows_no_outbox_is_told_how_to_bind_it(
    database: Engine, elsewhere: Engine, registry: EntityRegistry, new: Rows
) -> None:
    captured = registry.capture(sessionmaker(binds={Base: database, OtherBase: elsewhere}))
    with captured() as session, pytest.raises(ConfigurationError, match="sorted_tables"):
        session.add(Contact(id=1, name="Ada"))
        session.flush()
    captured.configure(binds={Base: database, OtherBase: elsewhere, **dict.fromkeys(OUTBOX, database)})
    with captured.begin() as session:
        session.add_all([Contact(id=1, name="Ada"), Line(id=1, text="x")])
    assert new() == ["contacts/1"]


@pytest.mark.usefixtures("contacts")
def test_entity_whose_outbox_is_in_another_database_is_refused_by_name(
    database: Engine, elsewhere: Engine, registry: EntityRegistry
) -> None:
    captured = registry.capture(sessionmaker(binds={Base: elsewhere, **dict.fromkeys(OUTBOX, database)}))
    with captured() as session, pytest.raises(ConfigurationError, match=r"entity 'contacts' is in .*elsewhere\.db"):
        session.add(Contact(id=1, name="Ada"))
        session.flush()
    for engine in (database, elsewhere):
        with Session(engine) as session:
            assert session.execute(select(events.c.id)).all() == []


TRANSLATED = {"schema_translate_map": {None: "acme"}}


def add_of_an_engine(sessions: sessionmaker[Session], database: Engine) -> None:
    with sessions.begin() as session:
        session.bind = database.execution_options(**TRANSLATED)
        session.add(Contact(id=2, name="Grace", tenant_id="t1"))


def add_of_a_later_connection(sessions: sessionmaker[Session], _database: Engine) -> None:
    with sessions.begin() as session:
        session.add(Contact(id=2, name="Grace", tenant_id="t1"))
    with sessions.begin() as session:
        session.connection(execution_options=TRANSLATED)
        session.add(Contact(id=2, name="Grace", tenant_id="t1"))


def update_of_a_statement(sessions: sessionmaker[Session], _database: Engine) -> None:
    with sessions.begin() as session:
        session.execute(update(Contact).values(name="Grace"), execution_options=TRANSLATED)


def change_of_what_documents_are_made_of(sessions: sessionmaker[Session], database: Engine) -> None:
    with sessions.begin() as session:
        session.bind = database.execution_options(**TRANSLATED)
        session.add(Account(id=1, name="Acme"))


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    "change",
    [add_of_an_engine, add_of_a_later_connection, update_of_a_statement, change_of_what_documents_are_made_of],
)
def test_entity_that_is_written_to_another_schema_than_relays_read_is_refused(
    change: Callable[[sessionmaker[Session], Engine], None], database: Engine, registry: EntityRegistry
) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA acme")
        for table in ("contacts", "accounts"):
            connection.exec_driver_sql(f"CREATE TABLE acme.{table} (LIKE {table})")
        connection.exec_driver_sql(
            "INSERT INTO acme.contacts (id, name, tenant_id, archived) VALUES (1, 'Ada', 't1', false)"
        )
    registry.add(Contact, index="contacts", fields=["name", "account.name"], tenant="tenant_id")
    sessions = registry.capture(sessionmaker(database))
    with pytest.raises(ConfigurationError, match=r"schema_translate_map \{None: 'acme'\}.* set the search_path"):
        change(sessions, database)
    with database.connect() as connection:
        assert connection.exec_driver_sql("SELECT name FROM acme.contacts").scalars().all() == ["Ada"]


def test_scoped_session_is_that_of_the_moment(database: Engine) -> None:
    scoped = scoped_session(sessionmaker(database))
    repository = OutboxRepository(scoped)
    repository.index("x", "1", {"n": 1})
    scoped.commit()
    scoped.remove()  # the end of a request
    if database.dialect.name == "sqlite":
        sqlite.lock(scoped)
    repository.index("x", "2", {"n": 2})
    scoped.commit()
    scoped.remove()
    with Session(database) as session:
        assert session.scalars(select(events.c.document_id)).all() == ["1", "2"]

"""Sessions with several databases, and those that stand for one of a request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from outbox import ConfigurationError, EntityRegistry, OutboxRepository, sqlite
from outbox.models import events, metadata
from tests.support.watching import Rows
from tests.write import ON_SQLITE
from tests.write.models import Base, Contact

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

"""A database of each kind with foreign keys enforced, and triggers in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, event

from tests.triggers.world import Base, World, World_, registered


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Of each kind of database, with the outbox tables."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_engine")
        return
    with request.getfixturevalue("postgres").database() as url:
        made = create_engine(url)
        yield made
        made.dispose()


@pytest.fixture
def database(engine: Engine) -> Engine:
    """The tables, with foreign keys enforced."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys = ON"))
        engine.dispose()
    Base.metadata.create_all(engine)
    return engine


@pytest.fixture
def world(database: Engine) -> World_:
    return lambda *models, **given: World(database, registered(*models, **given))


@pytest.fixture
def unenforced(engine: Engine) -> Engine:
    """Alembic's batches need foreign keys off."""
    Base.metadata.create_all(engine)
    return engine

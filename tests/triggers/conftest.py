"""A database with foreign keys enforced, and triggers in it."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, event

from tests.triggers.world import Base, World, World_, registered


@pytest.fixture
def database(engine: Engine) -> Engine:
    """The tables, with foreign keys enforced."""
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

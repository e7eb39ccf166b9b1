"""A registry, and a database that has the tables of the models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from outbox import EntityRegistry
from tests.entities.world import Base


@pytest.fixture
def database(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    return engine


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    with Session(database) as made:
        yield made


@pytest.fixture
def registry() -> EntityRegistry:
    return EntityRegistry()


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest) -> Engine:
    """Of each kind of database, with the outbox tables."""
    made: Engine = request.getfixturevalue(f"{request.param}_engine")
    return made

"""An application whose session is captured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.dialects.postgresql.base import PGDDLCompiler
from sqlalchemy.orm import Session, sessionmaker

from outbox import EntityRegistry
from outbox.entities.entity import Entity
from tests.support.watching import Rows
from tests.write.models import Base, Contact


class WithoutForeignKeys(PGDDLCompiler):
    """Makes tables without them."""

    def visit_foreign_key_constraint(self, constraint: Any, **options: Any) -> Any:  # noqa: ARG002
        return None


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Of each kind of database, with the outbox tables."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_engine")
        return
    with request.getfixturevalue("postgres").database() as url:
        # Foreign keys are not looked after, as on SQLite unless it is told to: these tests write what they like.
        if "triggers" in request.node.name:  # which that role does not fire
            made = create_engine(url)
            made.dialect.ddl_compiler = WithoutForeignKeys
        else:
            made = create_engine(url, connect_args={"options": "-c session_replication_role=replica"})
        yield made
        made.dispose()


@pytest.fixture
def database(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    if engine.dialect.name == "postgresql":  # where an id that is given is given once more
        with engine.begin() as connection:
            for name in inspect(connection).get_sequence_names():
                if not name.startswith("outbox"):
                    connection.execute(text(f"ALTER SEQUENCE {name} RESTART WITH 1001"))
    return engine


@pytest.fixture
def registry() -> EntityRegistry:
    return EntityRegistry()


@pytest.fixture
def sessions(database: Engine, registry: EntityRegistry) -> sessionmaker[Session]:
    return registry.capture(sessionmaker(database))


@pytest.fixture
def contacts(registry: EntityRegistry) -> Entity:
    return registry.add(Contact, index="contacts", fields=["name", "email"], tenant="tenant_id")


@pytest.fixture
def new(database: Engine) -> Rows:
    return Rows(database)

"""An application whose session is captured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.dialects.postgresql.base import PGDDLCompiler
from sqlalchemy.orm import Session, sessionmaker

from outbox import EntityRegistry
from outbox.entities.entity import Entity
from tests.support.watching import Rows
from tests.write.models import Base, Contact

# As SQLite numbers rows: one above the highest there is, whoever has given that.
NEXT_ID = """
    CREATE FUNCTION next_id(of regclass, in_table text, in_column text) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE own bigint := nextval(of); above bigint;
    BEGIN
        EXECUTE format('SELECT coalesce(max(%I), 0) + 1 FROM %I', in_column, in_table) INTO above;
        RETURN CASE WHEN above > own THEN setval(of, above) ELSE own END;
    END $$
"""
SERIALS = """
    SELECT s.relname, t.relname, a.attname FROM pg_class AS s
    JOIN pg_depend AS d ON d.objid = s.oid AND d.deptype = 'a'
    JOIN pg_class AS t ON t.oid = d.refobjid AND t.relname NOT LIKE 'outbox%'
    JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
    WHERE s.relkind = 'S'
"""


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
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(text(NEXT_ID))
            for sequence, table, column in connection.execute(text(SERIALS)):
                default = f"next_id('{sequence}', '{table}', '{column}')"
                connection.execute(text(f"ALTER TABLE {table} ALTER {column} SET DEFAULT {default}"))
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

"""Applications that listen to all engines of their process, relays among them, since these import their models."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, ExceptionContext, create_engine, event, text

from outbox import DatabaseUnavailable, EntityRegistry, schema
from outbox.cli import wiring
from outbox.relay.load import from_database
from outbox.store.store import Store
from tests.entities.world import Contact, refresh
from tests.support.outbox import settings
from tests.support.postgres import Postgres


@pytest.fixture(autouse=True)
def _errors_of_the_driver(postgres: Postgres) -> Iterator[None]:  # noqa: ARG001 which is started before
    """As PyPI's own application has it."""

    def unwrap(context: ExceptionContext) -> None:
        if context.original_exception is not None:
            raise context.original_exception from context.sqlalchemy_exception

    event.listen(Engine, "handle_error", unwrap)
    yield
    event.remove(Engine, "handle_error", unwrap)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, postgres: Postgres) -> Iterator[str]:
    if request.param == "sqlite":
        with closing(sqlite3.connect(tmp_path / "app.db")):
            yield f"sqlite:///{tmp_path / 'app.db'}"
        return
    with postgres.database() as made:
        yield made.render_as_string(hide_password=False)


@pytest.fixture
def own(url: str) -> Iterator[Engine]:
    """That of a relay or a command."""
    made = wiring.engine_of(settings(database_url=url), create=True)
    yield made
    made.dispose()


def test_rows_whose_table_is_away_are_not_at_fault(own: Engine) -> None:
    registry = EntityRegistry()
    entity = registry.add(Contact, index="contacts", fields=["name"])
    with own.connect() as connection, pytest.raises(DatabaseUnavailable, match="'contacts' cannot be loaded"):
        from_database(connection, registry, refresh(entity, "1"))


def test_engine_of_the_application_has_its_own_errors(url: str, own: Engine) -> None:
    engine = create_engine(url)
    with own.connect(), engine.connect() as connection, pytest.raises((sqlite3.Error, psycopg.Error)):
        connection.execute(text("SELECT 1 FROM nowhere"))
    engine.dispose()


def test_server_that_cannot_be_reached_is_said_in_one_line() -> None:
    unreached = settings(database_url="postgresql+psycopg://nobody@127.0.0.1:1/app")
    cannot = pytest.raises(DatabaseUnavailable, match=r"database app on 127\.0\.0\.1:1 cannot be opened")
    with cannot, wiring.open_store(unreached):
        pass


def test_connection_that_the_server_ends_is_replaced(postgres: Postgres) -> None:
    with postgres.database(empty=True) as url:
        engine = wiring.engine_of(settings(database_url=url.render_as_string(hide_password=False)))
        schema.upgrade(engine)
        with closing(Store(engine)) as store:
            pid = store.run("SELECT pg_backend_pid()").scalar_one()
            with engine.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            with pytest.raises(DatabaseUnavailable):
                store.run("SELECT 1")
            assert store.run("SELECT pg_backend_pid()").scalar_one() != pid
        engine.dispose()

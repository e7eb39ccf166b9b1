"""Where a bench has its outbox: a new file each time, or a new database of a PostgreSQL that runs as long as it."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import demo_database
from bench_load import INDEX, console, documents
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.orm import Session

from outbox import OutboxRepository, schema, sqlite
from outbox.store.models import now_ms

F = TypeVar("F", bound=Callable[..., Any])

AT_A_TIME = 10_000

on_postgres: Callable[[F], F] = click.option("--postgres", is_flag=True, help="On a PostgreSQL of its own.")


@contextmanager
def databases(*settings: str, postgres: bool) -> Iterator[Callable[[], Engine]]:
    """What makes a new database with empty outbox tables. Settings: `name=value`, of PostgreSQL."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        given = stack.enter_context(demo_database.postgres(console, directory, *settings)) if postgres else None
        server = make_url(given) if given else None
        numbers = itertools.count(1)

        def new() -> Engine:
            name = f"bench_{next(numbers)}"
            if server is None:
                engine = create_engine(f"sqlite:///{directory / name}.db")
                sqlite.prepare(engine)
            else:
                maintenance = create_engine(server, isolation_level="AUTOCOMMIT")
                with maintenance.connect() as connection:
                    connection.execute(text(f"CREATE DATABASE {name}"))
                maintenance.dispose()
                engine = create_engine(server.set(database=name))
            stack.callback(engine.dispose)
            schema.upgrade(engine)
            return engine

        yield new


def url_of(engine: Engine) -> str:
    """For OUTBOX_DATABASE_URL."""
    return engine.url.render_as_string(hide_password=False)


def number_of(connection: Connection, sql: str, **given: int) -> int:
    """What a SELECT of one number says now."""
    found: int = connection.execute(text(sql), given).scalar_one()
    connection.rollback()
    return found


def settle(engine: Engine) -> None:
    """Do at once what autovacuum does little by little where such rows come over days, not beside what is measured."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE) outbox_events"))
        connection.execute(text("CHECKPOINT"))


def made(engine: Engine, *, finished: int, waiting: int) -> Engine:
    """With so many rows that were finished before, and so many that wait."""
    if finished:
        with engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO outbox_events (action, index_name, document_id, document_bytes, state, outcome,"
                    " deliveries, created_at, finished_at)"
                    " WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < :finished)"
                    " SELECT 'index', :name, 'old-' || n, 900, 'done', 'applied', 1, :now - n, :now - n FROM n"
                ),
                {"finished": finished, "name": INDEX, "now": now_ms()},
            )
        if engine.dialect.name == "postgresql":
            settle(engine)
    contents = itertools.cycle([document for _, document in documents(1_000)])
    numbers = iter(range(waiting))
    while some := list(itertools.islice(numbers, AT_A_TIME)):
        with Session(engine) as session, session.begin():
            OutboxRepository(session).index_many(INDEX, [(f"contact-{n}", next(contents)) for n in some])
    return engine

"""The revision of the outbox tables: bring it up to date, print how, or refuse to work on another one.

Alembic is imported where it migrates: a relay only asks for the revision, and is 10 MB smaller without it.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from outbox.errors import ConfigurationError, DatabaseUnavailable, SchemaError, in_one_line
from outbox.store.models import VERSION_TABLE, metadata, unfinished
from outbox.store.postgresql.ddl import PRESENCE
from outbox.store.store import database_name, dialect_of, revision_of

if TYPE_CHECKING:
    from alembic.config import Config

_PACKAGE = Path(__file__).parent


def upgrade(engine: Engine) -> tuple[str | None, str]:
    """Bring the outbox tables to the newest revision. Returns the revision before and after.

    Raises `SchemaError`, and changes nothing, when they were made by other migrations or by a newer version, and
    `ConfigurationError` for an `AsyncEngine`, with the call that works.
    """
    if not isinstance(engine, Engine):
        raise ConfigurationError(
            "schema.upgrade takes an Engine; with a connection of an AsyncEngine, call "
            "await connection.run_sync(lambda sync: schema.upgrade(sync.engine))"
        )
    from alembic import command

    before = revision(engine)
    if before is None and _has_tables(engine) and (before := revision(engine)) is None:  # others may have made both now
        raise SchemaError(
            f"the outbox tables in {database_name(engine)} were made by other migrations ({VERSION_TABLE} is missing): "
            "do not run 'outbox-relay migrate' here, bring them up to date with those migrations"
        )
    _refuse_newer(engine, before)
    try:
        # With the lock before the look: of several that start together one migrates, and the others find it done.
        with dialect_of(engine).migrating(engine) as connection:
            command.upgrade(_config(connection=connection), "head")
    except DBAPIError as error:
        raise DatabaseUnavailable(
            f"database {database_name(engine)} cannot be migrated: {in_one_line(error.orig)}"
        ) from error
    return before, head()


def upgrade_sql(backend: str = "sqlite") -> str:
    """The SQL that creates the tables from nothing, for a database administrator to run; `backend`: or "postgresql"."""
    from alembic import command

    output = io.StringIO()
    command.upgrade(_config(output=output, backend=backend), "head", sql=True)
    return output.getvalue()


def revision(engine: Engine) -> str | None:
    """The revision the database is at; None without outbox tables. Raises `DatabaseUnavailable`."""
    try:
        with _reading(engine) as connection:
            return revision_of(connection)
    except DBAPIError as error:
        raise DatabaseUnavailable(
            f"database {database_name(engine)} cannot be opened: {in_one_line(error.orig)}; check OUTBOX_DATABASE_URL"
        ) from error


@cache
def head() -> str:
    """The revision that this version of outbox-relay needs.

    Read once: an upgrade beneath a running process brings the migrations of the next version to the same place.
    """
    return max(path.name.partition("_")[0] for path in (_scripts() / "versions").glob("[0-9]*.py"))


def require_head(engine: Engine) -> None:
    """Raises `SchemaError` unless the database is at the revision that this version needs.

    Of tables that other migrations made, unless they have what the claim reads as this version needs it.
    """
    at, needed = revision(engine), head()
    name = database_name(engine)
    if at is None and not _has_tables(engine):
        raise SchemaError(f"database {name} has no outbox tables: run 'outbox-relay migrate'")
    if at is not None and at < needed:
        raise SchemaError(
            f"database {name} is at revision {at}, this version needs {needed}: run 'outbox-relay migrate'"
        )
    if at is None:
        _require_parts(engine)
    _refuse_newer(engine, at)


def _require_parts(engine: Engine) -> None:
    held = f"SELECT 1 FROM outbox_events {dialect_of(engine).indexed('held')} WHERE {unfinished()} LIMIT 1"
    causes, dead_of_tenant = (
        f"SELECT 1 FROM outbox_events {dialect_of(engine).indexed(name)} WHERE state = 'dead' LIMIT 1"
        for name in ("causes", "dead_of_tenant")
    )
    for asked, remedy in (
        (held, "drop the index ix_outbox_events_held and create it"),
        ("SELECT 1 FROM outbox_pauses LIMIT 1", "create the table outbox_pauses"),
        ("SELECT 1 FROM outbox_audit LIMIT 1", "create the table outbox_audit"),
        ("SELECT 1 FROM outbox_failures LIMIT 1", "create the table outbox_failures"),
        ("SELECT error_field FROM outbox_events LIMIT 1", "add the column error_field to outbox_events"),
        ("SELECT version FROM outbox_events LIMIT 1", "add the column version to outbox_events"),
        ("SELECT last_id FROM outbox_reindex_jobs LIMIT 1", "add the column last_id to outbox_reindex_jobs"),
        (
            "SELECT last_token FROM outbox_control LIMIT 1",
            "add the column last_token to outbox_control, with the highest id in outbox_events,",
        ),
        ("SELECT timeline FROM outbox_control LIMIT 1", "add the column timeline to outbox_control"),
        (causes, "create the index ix_outbox_events_causes"),
        (dead_of_tenant, "create the index ix_outbox_events_dead_of_tenant"),
    ):
        try:
            with _reading(engine) as connection:
                connection.exec_driver_sql(asked)
        except DBAPIError as error:
            raise SchemaError(
                f"the outbox tables in {database_name(engine)} were made by other migrations for an earlier version of "
                f"outbox-relay ({in_one_line(error.orig)}): have them {remedy} as outbox.models.metadata has it now"
            ) from error


def include_object(_object: Any, name: str | None, type_: str, _reflected: bool, _compare_to: Any) -> bool:
    """For `context.configure(include_object=...)` in an application's own Alembic that leaves the outbox tables
    to `outbox-relay migrate`: autogenerate must not drop them."""
    return not (
        type_ == "table" and name is not None and (name in metadata.tables or name in (VERSION_TABLE, PRESENCE))
    )


def _refuse_newer(engine: Engine, at: str | None) -> None:
    if at is not None and at > (known := head()):
        raise SchemaError(
            f"database {database_name(engine)} is at revision {at}, newer than this version knows ({known}): "
            "upgrade outbox-relay, and restart what ran before"
        )


def _reading(engine: Engine) -> Connection:
    """A connection whose transactions take no write lock: a look waits for no writer."""
    return engine.execution_options(outbox_begin="DEFERRED").connect()


def _has_tables(engine: Engine) -> bool:
    """An application may have created them by its own migrations: then there is no revision to compare."""
    with _reading(engine) as connection:
        return engine.dialect.has_table(connection, "outbox_events")


def _scripts() -> Path:
    shipped = _PACKAGE / "_migrations"  # in the wheel; an editable install has only the checkout's
    return shipped if shipped.is_dir() else _PACKAGE.parent / "migrations"


def _config(*, output: io.StringIO | None = None, **attributes: Any) -> Config:
    from alembic.config import Config

    config = Config(output_buffer=output) if output else Config()
    config.set_main_option("script_location", str(_scripts()).replace("%", "%%"))
    config.attributes.update(attributes)
    return config

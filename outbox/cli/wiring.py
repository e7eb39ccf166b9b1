"""Settings become parts: the log, the engine of the application's database, the outbox tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from loguru import logger
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from outbox import logs, schema, settings
from outbox.errors import ConfigurationError, install_command
from outbox.settings import Settings
from outbox.store import own_errors
from outbox.store.sqlite.place import absolute, named_by
from outbox.store.store import Store, dialect_of

POSTGRESQL: Final = "postgresql+psycopg"

_NO_URL = (
    "OUTBOX_DATABASE_URL is no SQLAlchemy URL of a database; e.g. sqlite:////var/lib/app/app.db, or "
    f"{POSTGRESQL}://user:password@host/app"
)


def load_settings(**overrides: object) -> Settings:
    """Settings, with logs set up by them and a warning for variables that look like one and are none."""
    loaded = settings.load(**overrides)
    logs.set_up(loaded)
    for line in settings.unknown_variables():
        logger.warning(line)
    return loaded


def engine_of(loaded: Settings, *, create: bool = False, prepared: bool = True, connections: int = 15) -> Engine:
    """An engine of the application's database, for so many at a time. Raises `ConfigurationError`.

    The database must exist unless `create`: a misspelt path must not become an empty one. Without `prepared` it is the
    bare engine, which changes nothing by being opened.
    """
    try:
        url = _url_of(loaded)
        of_server = url.get_backend_name() == "postgresql"  # which closes all connections when it is restarted
        engine = create_engine(url, pool_size=5, max_overflow=connections - 5, pool_pre_ping=of_server)
    except (ArgumentError, ValueError):  # a host, or an option that is none
        raise ConfigurationError(_NO_URL) from None
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"the driver {error.name} is not installed: {install_command('postgres')}") from None
    dialect = dialect_of(engine)
    own_errors.keep(engine, dialect)
    dialect.guard(engine, create=create)
    if prepared:
        dialect.prepare(engine)
    return engine


def backend_of(loaded: Settings) -> str:
    """The kind of database that is set; SQLite if none is."""
    return "sqlite" if loaded.database_url is None else _url_of(loaded).get_backend_name()


def _url_of(loaded: Settings) -> URL:
    if loaded.database_url is None:
        raise ConfigurationError("no database: set OUTBOX_DATABASE_URL, e.g. sqlite:////var/lib/app/app.db")
    try:
        url = make_url(loaded.database_url)
    except ArgumentError:
        raise ConfigurationError(_NO_URL) from None
    if url.get_backend_name() == "postgresql":
        return url.set(drivername=POSTGRESQL)
    if url.get_backend_name() != "sqlite":
        raise ConfigurationError(
            f"OUTBOX_DATABASE_URL: {url.get_backend_name()} is not supported, only sqlite:///… and {POSTGRESQL}://… are"
        )
    if named_by(url) is None:
        raise ConfigurationError(
            "OUTBOX_DATABASE_URL must name a file: other processes cannot see a database in memory"
        )
    return absolute(url.set(drivername="sqlite"))


@contextmanager
def open_store(loaded: Settings) -> Iterator[Store]:
    """The outbox tables, at the revision this version needs."""
    engine = engine_of(loaded)
    opened = Store(engine)
    try:
        opened.pin()  # first: a migration that comes between is noticed by one or the other
        schema.require_head(engine)
        yield opened
    finally:
        opened.close()
        engine.dispose()

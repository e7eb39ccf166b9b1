"""Settings become a database engine and a destination: the only place where the parts meet."""

from __future__ import annotations

import gc
import getpass
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from loguru import logger
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from outbox import logs, schema, settings
from outbox.destinations import destination_of as destination_of
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError
from outbox.settings import Settings
from outbox.store.sqlite import engine as sqlite
from outbox.store.store import Store


def load_settings(**overrides: object) -> Settings:
    """Settings, with logs set up by them and a warning for variables that look like one and are none."""
    loaded = settings.load(**overrides)
    logs.set_up(loaded)
    for line in settings.unknown_variables():
        logger.warning(line)
    return loaded


def engine_of(loaded: Settings, *, create: bool = False, connections: int = 15) -> Engine:
    """The prepared engine of the application's database, for so many at a time. Raises `ConfigurationError`.

    The file must exist unless `create`: a misspelt path must not become an empty database.
    """
    if loaded.database_url is None:
        raise ConfigurationError("no database: set OUTBOX_DATABASE_URL, e.g. sqlite:////var/lib/app/app.db")
    try:
        url = make_url(loaded.database_url)
    except ArgumentError:
        raise ConfigurationError(
            "OUTBOX_DATABASE_URL is no SQLAlchemy URL; e.g. sqlite:////var/lib/app/app.db"
        ) from None
    if url.get_backend_name() != "sqlite":
        raise ConfigurationError(
            f"OUTBOX_DATABASE_URL: {url.get_backend_name()} is not supported yet, only sqlite:///… is"
        )
    if not url.database or url.database == ":memory:":
        raise ConfigurationError(
            "OUTBOX_DATABASE_URL must name a file: other processes cannot see a database in memory"
        )
    engine = create_engine(url.set(drivername="sqlite"), pool_size=5, max_overflow=connections - 5)
    if not create and not url.database.startswith("file:") and not _exists(url.database):
        raise ConfigurationError(
            f"database {Path(url.database).absolute()} does not exist; check OUTBOX_DATABASE_URL, or have the "
            "application or 'outbox-relay migrate' make it"
        )
    sqlite.prepare(engine)
    return engine


def _exists(path: str) -> bool:
    return Path(path).is_file()


def registry_of(loaded: Settings) -> EntityRegistry | None:
    """The application's registry of entities, if it names one. Raises `ConfigurationError`."""
    if loaded.entities is None:
        return None
    module, _, name = loaded.entities.partition(":")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does; a console script has the directory of its own instead
    try:
        found = attrgetter(name)(import_module(module))
    except Exception as error:
        raise ConfigurationError(
            f"OUTBOX_ENTITIES={loaded.entities}: {type(error).__name__}: {error}; it is module:name, as one would "
            "import it in the working directory"
        ) from error
    finally:
        sys.path.pop(0)
    if not isinstance(found, EntityRegistry):
        raise ConfigurationError(
            f"OUTBOX_ENTITIES={loaded.entities} is of type {type(found).__name__}, not EntityRegistry"
        )
    return found


def addresses(loaded: Settings) -> str:
    """Where documents go, for people: without the credentials that a URL may hold."""
    if loaded.destination == "embedded":
        return str(loaded.embedded_path)
    shown = []
    for url in loaded.elasticsearch_url:
        parts = urlsplit(url)
        shown.append(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")
    return ", ".join(shown)


def on_signals(*stop: Callable[[], None]) -> None:
    """Have the first SIGTERM or Ctrl-C call each of `stop`; a second one ends the process at once."""

    def first(_number: int, _frame: Any) -> None:
        for call in stop:
            call()
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda second, _frame: os._exit(128 + second))

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, first)


@contextmanager
def imports_kept() -> Iterator[None]:
    """For long work: what was imported so far is no garbage, and is not looked through for any again and again.

    By itself the collector spends a seventh of a busy relay's time in the objects of SQLAlchemy and of the client.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def who() -> str:
    """The user at the terminal, by name where there is one: containers often have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid {os.getuid()}"


def log_removal(what: str, **selection: object) -> None:
    """One line about rows that an operator removed for good: who, what, and by which selection."""
    chosen = [
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in sorted(selection.items())
        if value
    ]
    logger.warning(logs.safe(f"{what} removed for good by {who()}; selection: {' '.join(chosen) or 'all'}"))


def name_unregistered(store: Store, registry: EntityRegistry, why: str) -> None:
    """On standard error, each index that is none of an entity: so what is done to all of these is not done to it."""
    for name in sorted(store.targets()):
        if not registry.of_index(name):
            click.echo(f"index {name} has no registered entity and {why}", err=True)


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


database_option = click.option("--database-url", metavar="URL", help="Instead of OUTBOX_DATABASE_URL.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for other programs.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")

"""triggers install|remove|status: have the database itself note changes of entities."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import click
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from outbox import logs, schema
from outbox.cli.entities import required_registry
from outbox.cli.options import database_option, json_option
from outbox.cli.wiring import engine_of, load_settings
from outbox.errors import DatabaseUnavailable
from outbox.settings import Settings
from outbox.store.store import database_name, dialect_of
from outbox.triggers import installer as database_triggers

NEEDED_FOR = "triggers are made of the registry"


@click.group()
def triggers() -> None:
    """Triggers that note every change of an entity.

    Also those by plain SQL, cascades and other programs.
    """


@triggers.command()
@database_option
def install(database_url: str | None) -> None:
    """Create the triggers of all registered entities.

    Of those that OUTBOX_ENTITIES names; what no longer fits is replaced. All in one transaction; safe to repeat.
    Changes made before are not noted. Sessions that are captured leave these entities to the triggers from their next
    transaction on.

    \b
    Examples:
      outbox-relay triggers install
    """
    loaded = load_settings(database_url=database_url)
    registry = required_registry(loaded, NEEDED_FOR)
    with _connection(loaded) as connection:
        changed = database_triggers.install(connection, registry)
        number = len(database_triggers.status(connection, registry))
    created = sum(each.state == "missing" for each in changed)
    replaced = len(changed) - created
    click.echo(f"{_of(number)} as the registry says: {created:,} created, {replaced:,} replaced or removed")


@triggers.command()
@database_option
def remove(database_url: str | None) -> None:
    """Remove all triggers that outbox-relay made. From then on only captured sessions note changes.

    \b
    Examples:
      outbox-relay triggers remove
    """
    with _connection(load_settings(database_url=database_url)) as connection:
        removed = database_triggers.remove(connection)
    click.echo(f"{_of(len(removed))} removed")


@triggers.command()
@json_option
@database_option
def status(as_json: bool, database_url: str | None) -> None:
    """Compare the triggers in the database with the registry.

    Exits 1 if one is missing, stale or foreign.

    \b
    Examples:
      outbox-relay triggers status
      outbox-relay triggers status --json | jq '.[] | select(.state != "ok")'
    """
    loaded = load_settings(database_url=database_url)
    registry = required_registry(loaded, NEEDED_FOR)
    with _connection(loaded) as connection:
        found = database_triggers.status(connection, registry)
    wrong = [each for each in found if each.state != "ok"]
    if as_json:
        click.echo(json.dumps([each._asdict() for each in found]))
    else:
        for each in wrong:
            click.echo(logs.safe(f"{each.state:<8} {each.name} on {each.table}: {each.detail}"))
        states = Counter(each.state for each in found)
        click.echo(
            f"{_of(len(found))}: {', '.join(f'{number:,} {state}' for state, number in states.items()) or 'none'}"
        )
        if any(each.state != "foreign" for each in wrong):
            click.echo("→ outbox-relay triggers install")
    if wrong:
        sys.exit(1)


def _of(number: int) -> str:
    return f"{number:,} trigger{'' if number == 1 else 's'}"


@contextmanager
def _connection(loaded: Settings) -> Iterator[Connection]:
    """One transaction on a database that has the outbox tables."""
    engine = engine_of(loaded)
    try:
        schema.require_head(engine)
        with engine.begin() as connection:
            dialect_of(connection).lock(connection)  # before the look at what is there
            yield connection
    except DBAPIError as error:
        raise DatabaseUnavailable(f"database {database_name(engine)}: {error.orig}") from error
    finally:
        engine.dispose()


commands = [triggers]

"""migrate and run."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import click
from loguru import logger

from outbox import __version__, logs, schema
from outbox.cli.serve import beside, insecure_option, prepare
from outbox.cli.wiring import (
    addresses,
    database_option,
    destination_of,
    engine_of,
    imports_kept,
    load_settings,
    on_signals,
    registry_of,
)
from outbox.destinations.base import Destination
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError
from outbox.maintenance.scheduler import Maintenance
from outbox.reindex.reindexer import Reindexer
from outbox.relay import Relay, Totals
from outbox.settings import Settings
from outbox.store.models import now_ms
from outbox.store.store import Store
from outbox.verify import Verification


@click.command()
@click.option("--sql", is_flag=True, help="Print the SQL that creates the tables, and change nothing.")
@database_option
def migrate(sql: bool, database_url: str | None) -> None:
    """Create the outbox tables, or bring them up to date. Safe to repeat.

    \b
    Examples:
      outbox-relay migrate
      outbox-relay migrate --database-url sqlite:////srv/app/app.db
      outbox-relay migrate --sql > outbox.sql  # for whoever runs it by hand
    """
    if sql:
        click.echo(schema.upgrade_sql())
        return
    engine = engine_of(load_settings(database_url=database_url), create=True)
    before, after = schema.upgrade(engine)
    engine.dispose()
    if before == after:
        click.echo(f"{engine.url.database}: already at revision {after}")
    else:
        click.echo(f"{engine.url.database}: outbox tables are at revision {after} now")


@click.command()
@click.option("--drain", is_flag=True, help="Stop when nothing is pending or claimed; exit 1 if rows died.")
@click.option("--concurrency", type=click.IntRange(1, 50), help="Instead of OUTBOX_CONCURRENCY.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Instead of OUTBOX_LOG_FORMAT.")
@click.option("--admin", is_flag=True, help="With dashboard, API, health and metrics in the same process: see serve.")
@insecure_option
@database_option
def run(
    drain: bool,
    concurrency: int | None,
    log_format: str | None,
    admin: bool,
    insecure: bool,
    database_url: str | None,
) -> None:
    """Deliver outbox rows, until stopped (SIGTERM, Ctrl-C).

    Or, with --drain, until none is left. Several relays may work on one database. The first signal finishes or
    releases what is in flight and exits 0, a second one exits at once; nothing is lost either way.

    \b
    Examples:
      outbox-relay run
      outbox-relay run --log-format json --concurrency 8
      outbox-relay run --admin
      outbox-relay run --drain  # for a script: deliver what waits, then end
    """
    loaded = load_settings(database_url=database_url, concurrency=concurrency, log_format=log_format)
    destination, registry = destination_of(loaded), registry_of(loaded)
    if loaded.verify_schedule is not None and registry is None:
        raise ConfigurationError("OUTBOX_VERIFY_SCHEDULE needs to know the entities: set OUTBOX_ENTITIES")
    engine = engine_of(loaded)
    store = Store(engine)
    store.pin()  # first: a migration that comes between is noticed by one or the other
    schema.require_head(engine)
    control = store.control()
    if drain and control.paused_at is not None:
        why = logs.safe(control.pause_reason or "?")
        raise ConfigurationError(f"the outbox is paused ({why}): run 'outbox-relay resume' first")
    prepared = prepare(loaded, insecure=insecure) if admin else None
    relay_id = store.register_relay(socket.gethostname(), os.getpid(), __version__, now_ms())
    presence = store.presence.hold("relay", relay_id)
    relay = Relay(store, destination, loaded, relay_id=relay_id, registry=registry)
    verification = None if registry is None else partial(_sample, loaded, destination, registry)
    reindexer = None
    if registry is not None and loaded.resume_reindex and not drain:
        reindexer = partial(_reindexer, loaded, destination, registry)
    maintenance = Maintenance(engine, relay_id, loaded, relay.breakers, verification, reindexer)
    on_signals(relay.stop, maintenance.request_stop)
    maintenance.start()
    at_a_time = "1 request" if loaded.concurrency == 1 else f"{loaded.concurrency} requests"
    logger.info(
        f"outbox-relay {__version__}: relay {relay_id} delivers {logs.rows(store.unfinished())} of "
        f"{engine.url.database} to {addresses(loaded)}, {at_a_time} at a time"
    )
    if control.paused_at is not None:
        paused = logs.safe(f"paused by {control.paused_by} ({control.pause_reason})")
        logger.warning(f"{paused}; 'outbox-relay resume' lets it go on")
    try:
        with imports_kept(), beside(prepared, loaded, destination, registry) if prepared else nullcontext():
            totals = _with_progress(relay, store) if drain and sys.stderr.isatty() else relay.run(drain=drain)
    finally:
        maintenance.stop()
        store.deregister_relays([relay_id])
        presence.end()
        store.close()
        destination.close()
    logger.info(f"relay {relay_id} ends: {totals.done:,} done, {totals.dead:,} dead")
    if drain and totals.dead:
        click.echo(f"{logs.rows(totals.dead, 'is', 'are')} dead: see 'outbox-relay dead list'", err=True)
        sys.exit(1)


def _sample(loaded: Settings, destination: Destination, registry: EntityRegistry, store: Store) -> Verification:
    return Verification(store, destination, registry, sample=loaded.verify_sample / 100)


def _reindexer(
    loaded: Settings,
    destination: Destination,
    registry: EntityRegistry,
    store: Store,
    interrupt: Callable[[], None],
) -> Reindexer:
    """One request at a time: nobody has asked this relay to hurry."""
    return Reindexer(
        store,
        destination,
        registry,
        requests=1,
        interrupt=interrupt,
        lease_s=loaded.lease,
        request_timeout_s=loaded.request_timeout,
    )


def _with_progress(relay: Relay, store: Store) -> Totals:
    """Drain with a progress bar instead of a line an operation."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    logs.without_operations()
    with Progress(
        TextColumn("delivering"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("rows", total=store.unfinished())

        def show(totals: Totals) -> None:
            settled = totals.done + totals.dead
            bar.update(task, completed=settled, total=settled + store.unfinished())

        return relay.run(drain=True, progress=show)


commands = [migrate, run]

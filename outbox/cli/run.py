"""migrate and run."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from urllib.parse import urlsplit

import click
from loguru import logger

from outbox import __version__, logs, schema, settings
from outbox.check import newer_indexes
from outbox.cli.entities import registry_of
from outbox.cli.interpreter import tuned
from outbox.cli.options import database_option
from outbox.cli.serve import beside, insecure_option, prepare, root_path_option
from outbox.cli.signals import on_stop_signals
from outbox.cli.wiring import backend_of, engine_of, load_settings, open_store
from outbox.destinations import address_of, destination_of
from outbox.destinations.base import Destination
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError, DestinationError, OutboxError
from outbox.maintenance.notices import Notices
from outbox.maintenance.notifier import Notifier
from outbox.maintenance.scheduler import Maintenance, enter
from outbox.maintenance.webhook import Webhook
from outbox.mappings import DriftWatch
from outbox.reindex.reindexer import Reindexer
from outbox.relay import Relay, Totals
from outbox.settings import Settings, variable
from outbox.store import pauses, versions
from outbox.store.dialect import Held
from outbox.store.store import Store, database_name, dialect_of
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
      outbox-relay migrate --sql > outbox.sql  # for a DBA to run
    """
    if sql:
        click.echo(schema.upgrade_sql(backend_of(settings.load(database_url=database_url))))
        return
    engine = engine_of(load_settings(database_url=database_url), create=True)
    name, existed = logs.safe(database_name(engine)), dialect_of(engine).exists(engine)
    before, after = schema.upgrade(engine)
    engine.dispose()
    if not existed:
        click.echo(f"{name}: this database file is new")
    if before == after:
        click.echo(f"{name}: already at revision {after}")
    else:
        click.echo(f"{name}: outbox tables are at revision {after} now")


@click.command()
@click.option("--drain", is_flag=True, help="Stop when nothing is pending or claimed; exit 1 if rows died.")
@click.option("--concurrency", type=click.IntRange(1, 50), help="Instead of OUTBOX_CONCURRENCY.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Instead of OUTBOX_LOG_FORMAT.")
@click.option("--admin", is_flag=True, help="With dashboard, API, health and metrics in the same process: see serve.")
@root_path_option
@insecure_option
@database_option
def run(
    drain: bool,
    concurrency: int | None,
    log_format: str | None,
    admin: bool,
    root_path: str | None,
    insecure: bool,
    database_url: str | None,
) -> None:
    """Deliver outbox rows, until stopped (SIGTERM, SIGHUP, Ctrl-C).

    Or, with --drain, until none is left. Several relays may work on one database. The first signal finishes or
    releases what is in flight and exits 0, a second one exits at once; nothing is lost either way.

    \b
    Examples:
      outbox-relay run
      outbox-relay run --log-format json --concurrency 8
      outbox-relay run --admin
      outbox-relay run --drain  # for a script: deliver what waits, then end
    """
    loaded = load_settings(
        database_url=database_url, concurrency=concurrency, log_format=log_format, admin_root_path=root_path
    )
    destination, registry = destination_of(loaded), registry_of(loaded)
    if drain and loaded.destination != "embedded":
        _refuse_unknown_hosts(loaded)
    if loaded.verify_schedule is not None and registry is None:
        raise ConfigurationError("OUTBOX_VERIFY_SCHEDULE needs to know the entities: set OUTBOX_ENTITIES")
    with closing(destination), open_store(loaded) as store:
        if drain:
            _refuse_paused(store)
        versions.require_timeline(store)
        _refuse_older(store, destination)
        admin_server = prepare(loaded, insecure=insecure) if admin else None
        with _registered(store) as (relay_id, presence):
            relay = Relay(store, destination, loaded, relay_id=relay_id, registry=registry)
            maintenance = _maintenance(store, relay, relay_id, presence, loaded, destination, registry, drain=drain)
            on_stop_signals(relay.stop, maintenance.request_stop)
            with _running(maintenance):
                _log_start(store, relay_id, loaded)
                beside_it = (
                    beside(admin_server, loaded, destination, registry, relay) if admin_server else nullcontext()
                )
                with tuned(), beside_it:
                    totals = _with_progress(relay, store) if drain and sys.stderr.isatty() else relay.run(drain=drain)
    dead = totals.dead + maintenance.dead
    logger.info("relay {relay} ends: {done:,} done, {dead:,} dead", relay=relay_id, done=totals.done, dead=dead)
    if maintenance.replaced:
        raise OutboxError(
            f"database {database_name(store.connection.engine)} was replaced or removed while the relay ran: start the "
            "relay again; after a restore from a backup run 'outbox-relay epoch advance' first, since an older file "
            "issues ids again"
        )
    if drain and dead:
        click.echo(f"{logs.rows(dead, 'is', 'are')} dead: see 'outbox-relay dead list'", err=True)
        sys.exit(1)


def _refuse_paused(store: Store) -> None:
    """A drain of rows that are paused would never end."""
    for each in pauses.current(store.run):
        if each.is_of_all or pauses.waiting(store, each):
            raise ConfigurationError(f"{each.what} is paused ({logs.safe(each.reason)}): run '{each.remedy}' first")


def _refuse_unknown_hosts(loaded: Settings) -> None:
    """A drain to a misspelt host would never end. What is away for now, name servers too, is waited for."""
    hosts = sorted({urlsplit(url).hostname or "" for url in loaded.cluster_url})
    for host in hosts:
        try:
            socket.getaddrinfo(host, None)
        except UnicodeError:  # of no form that a name can have
            continue
        except socket.gaierror as error:
            if error.errno == socket.EAI_NONAME:
                continue
        return
    raise ConfigurationError(
        f"no host is known as {' or '.join(hosts)}: correct {variable(f'{loaded.destination}_url')}, or the names that "
        "this machine knows"
    )


def _refuse_older(store: Store, destination: Destination) -> None:
    """A database that was restored gives ids once more: the index would refuse these rows, or take one for another. A
    destination that is away cannot be asked; it refuses them one by one."""
    try:
        newer = newer_indexes(store, destination)
    except DestinationError:
        return
    if newer:
        raise ConfigurationError(
            f"database {database_name(store.connection.engine)} is older than index {', '.join(newer)}: it was "
            "restored from a backup or replaced, and gives ids once more that were delivered; run "
            "'outbox-relay epoch advance', then start the relay again"
        )


@contextmanager
def _registered(store: Store) -> Iterator[tuple[int, Held]]:
    """This process in the list of relays, and shown to the others as long as it is there: the id of its relay."""
    relay_id = enter(store)
    presence = store.presence.hold("relay", relay_id)
    try:
        yield relay_id, presence
    finally:
        presence.end()  # before: killed in between, it would leave a file that nobody knows of
        store.deregister_relays([relay_id])


@contextmanager
def _running(maintenance: Maintenance) -> Iterator[None]:
    try:
        maintenance.start()
        yield
    finally:
        maintenance.stop()


def _log_start(store: Store, relay_id: int, loaded: Settings) -> None:
    logger.info(
        "outbox-relay {version}: relay {relay} delivers {rows} of {database} to {destination}, {requests} at a time",
        version=__version__,
        relay=relay_id,
        rows=logs.Rows(store.unfinished()),
        database=logs.safe(database_name(store.connection.engine)),
        destination=logs.safe(address_of(loaded)),
        requests="1 request" if loaded.concurrency == 1 else f"{loaded.concurrency} requests",
    )


def _maintenance(
    store: Store,
    relay: Relay,
    relay_id: int,
    presence: Held,
    loaded: Settings,
    destination: Destination,
    registry: EntityRegistry | None,
    *,
    drain: bool,
) -> Maintenance:
    """What the relay does beside delivering: it verifies and resumes reindexes where it knows the entities."""
    made = partial(
        Maintenance,
        store.connection.engine,
        relay_id,
        loaded,
        relay.breakers,
        stop_relay=relay.stop,
        lock_times=store.lock_times,
        notices=_notices(store, relay, relay_id, loaded, destination, registry),
        presence=presence,
    )
    if registry is None:
        return made()

    def verification(store: Store) -> Verification:
        return Verification(store, destination, registry, sample=loaded.verify_sample / 100)

    def reindexer(store: Store, interrupt: Callable[[], None]) -> Reindexer:
        return Reindexer(
            store,
            destination,
            registry,
            requests=1,  # no operator waits for it, and rows of others do
            interrupt=interrupt,
            request_bytes=loaded.batch_bytes,
            lease_s=loaded.lease,
            request_timeout_s=loaded.request_timeout,
        )

    resumes = loaded.resume_reindex and not drain
    return made(verification=verification, reindexer=reindexer if resumes else None)


def _notices(
    store: Store,
    relay: Relay,
    relay_id: int,
    loaded: Settings,
    destination: Destination,
    registry: EntityRegistry | None,
) -> Notices | None:
    """What tells operators, if they have said where."""
    if loaded.notify_url is None:
        return None
    secret = None if loaded.notify_secret is None else loaded.notify_secret.get_secret_value()
    source = {
        "relay": relay_id,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "version": __version__,
        "database": database_name(store.connection.engine),
    }
    return Notices(
        Notifier(Webhook(loaded.notify_url.get_secret_value(), secret), source),
        relay_id,
        relay.breakers,
        relay.deaths,
        None if registry is None else DriftWatch(destination, registry).look,
        silent_ms=loaded.silent_ms,
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

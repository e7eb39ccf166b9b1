"""tenant drop: remove everything of one tenant."""

from __future__ import annotations

import sys

import click

from outbox import logs, tenants
from outbox.cli.audit import log_removal, removal
from outbox.cli.entities import registry_of
from outbox.cli.options import database_option, yes_option
from outbox.cli.wiring import load_settings, open_store
from outbox.destinations import destination_of


@click.group()
def tenant() -> None:
    """What belongs to one tenant."""


@tenant.command()
@click.argument("tenant_id", metavar="TENANT")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@yes_option
@database_option
def drop(tenant_id: str, dry_run: bool, yes: bool, database_url: str | None) -> None:
    """Remove a tenant: rows, documents, indexes of its own.

    First have the application delete the tenant's rows in its own tables, and stop writing for the tenant.
    OUTBOX_ENTITIES tells which indexes belong to one tenant only. Documents in shared indexes are removed by delete
    rows, which a relay delivers. Those rows, statistics and records of past reindexes keep the tenant's name for as
    long as they are kept. Rows that a relay has in its hands stay: it exits 1 then, and has to be run again. Exits 1
    also if there is nothing of the tenant.

    \b
    Examples:
      outbox-relay tenant drop acme --dry-run
      outbox-relay tenant drop acme --yes
    """
    loaded = load_settings(database_url=database_url)
    registry = registry_of(loaded)
    destination = destination_of(loaded)
    try:
        with open_store(loaded) as store:
            held = tenants.holdings(store, destination, registry, tenant_id)
            click.echo(f"{logs.rows(held.rows)} of the outbox")
            for name in held.own_indexes:
                click.echo(f"index {name}, which is its alone")
            for name, ids in held.documents.items():
                click.echo(f"{len(ids):,} {'document' if len(ids) == 1 else 'documents'} in index {name}")
            if dry_run:
                return
            if not yes:
                click.confirm(f"Remove all this of tenant {tenant_id} for good?", abort=True)
            with removal(store, "tenant drop", "dropped", "", {"tenant": tenant_id}) as note:
                dropped = tenants.drop(store, destination, held, tenant_id, report=note.add)
            for name in dropped.indexes:
                log_removal(f"index {name}", tenant=tenant_id)
            click.echo(f"{logs.rows(dropped.rows, 'is', 'are')} removed")
            if dropped.deletes:
                click.echo(f"{logs.rows(dropped.deletes, 'waits', 'wait', kind='delete')} for a relay")
    finally:
        destination.close()
    if dropped.left:
        left = logs.rows(dropped.left, "was", "were")
        click.echo(
            f"{left} not removed, in the hands of a relay: run the command again once 'outbox-relay status' shows none "
            "in flight",
            err=True,
        )
        sys.exit(1)


commands = [tenant]

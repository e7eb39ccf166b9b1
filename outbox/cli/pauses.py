"""pause and resume: everything, an index, a tenant, or a tenant in an index."""

from __future__ import annotations

import click

from outbox import logs, tenants
from outbox.cli.audit import operator_name
from outbox.cli.entities import registry_of
from outbox.cli.options import database_option
from outbox.cli.selection import index_option, tenant_option
from outbox.cli.wiring import load_settings, open_store
from outbox.entities.registry import EntityRegistry
from outbox.entities.spelling import tenant_texts
from outbox.errors import ConfigurationError
from outbox.settings import Settings
from outbox.store import audit, pauses
from outbox.store.models import now_ms
from outbox.store.pauses import Pause


@click.command()
@click.option("--reason", required=True, help="Why; shown by status.")
@index_option
@tenant_option
@database_option
def pause(reason: str, index: str | None, tenant: str | None, database_url: str | None) -> None:
    """Keep all relays from claiming rows. Applications go on writing; nothing is lost.

    With --index or --tenant rows of others are delivered as before.

    \b
    Examples:
      outbox-relay pause --reason "reindexing by hand until 14:00"
      outbox-relay pause --index contacts --reason "new mappings"
      outbox-relay pause --index contacts --tenant acme --reason "import"
    """
    if not reason.strip():
        raise click.UsageError("say why: the next operator wants to know")
    if "" in (index, tenant):
        raise click.UsageError("the name is empty; leave the option out for all")
    loaded = load_settings(database_url=database_url)
    with open_store(loaded) as store:
        if index is not None:
            pauses.require_index(store, index)
        spelled: tuple[str, ...] = ()
        if tenant is not None:
            registry = _registry_if_any(loaded)
            tenants.require(store, registry, tenant)
            spelled = tenant_texts(tenant, registry or ())
        paused = Pause(index, tenant, now_ms(), operator_name(), reason)
        told = audit.described({"index": index, "tenant": tenant, "reason": reason})
        with audit.noted(store, paused.by, "pause", told):
            pauses.pause(store, paused.reason, paused.by, paused.since, index=index, tenants=spelled)
    what = "paused" if paused.is_of_all else f"{paused.what} is paused"
    click.echo(logs.safe(f"{what}; '{paused.remedy}' lets the relays go on"))


@click.command()
@index_option
@tenant_option
@database_option
def resume(index: str | None, tenant: str | None, database_url: str | None) -> None:
    """Let relays claim rows again; with the same options as pause.

    What was paused by others stays paused, and is named.

    \b
    Examples:
      outbox-relay resume
      outbox-relay resume --index contacts --tenant acme
    """
    loaded = load_settings(database_url=database_url)
    with open_store(loaded) as store:
        spelled = () if tenant is None else tenant_texts(tenant, _registry_if_any(loaded) or ())
        with audit.noted(store, operator_name(), "resume", audit.described({"index": index, "tenant": tenant})):
            resumed = pauses.resume(store, index=index, tenants=spelled)
        still = pauses.current(store.run)
    click.echo("resumed" if resumed else "was not paused")
    for each in still:
        click.echo(logs.safe(f"{each.what} is still paused by {each.by}: {each.reason}  → {each.remedy}"))


def _registry_if_any(loaded: Settings) -> EntityRegistry | None:
    """What knows how rows spell a tenant. None as well where the application cannot be imported: a pause may be needed
    for just that."""
    try:
        return registry_of(loaded)
    except ConfigurationError as error:
        click.echo(f"{logs.safe(str(error))}; so the tenant is taken as it is written here", err=True)
        return None


commands = [pause, resume]

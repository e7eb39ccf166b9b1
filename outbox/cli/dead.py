"""dead list|show|retry|discard: rows that were given up."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import click

from outbox.cli.look import show
from outbox.cli.wiring import database_option, json_option, load_settings, open_store, yes_option
from outbox.models import now_ms


@click.group()
def dead() -> None:
    """List, retry or discard rows that were given up."""


def _selection(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--error-type", metavar="TYPE", help="Only rows that died of this type of error."),
        click.option("--tenant", metavar="TENANT", help="Only rows of this tenant."),
        click.option("--index", metavar="INDEX", help="Only rows of this index."),
        click.argument("ids", type=int, nargs=-1, metavar="[ID]..."),
    ):
        command = option(command)
    return command


@dead.command(name="list")
@_selection
@click.option("--limit", default=50, show_default=True, help="At most so many rows.")
@json_option
@database_option
def list_(limit: int, as_json: bool, database_url: str | None, **selection: Any) -> None:
    """Show dead rows, oldest first."""
    with open_store(load_settings(database_url=database_url)) as store:
        rows = store.dead(limit=limit, **selection)
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        click.echo(f"{row['id']:>8}  {row['action']} {row['index_name']}/{row['document_id']}")
        click.echo(f"          {row['error_type']}: {row['error']}")
    click.echo(f"{len(rows)} dead rows" if rows else "no dead rows")


@dead.command()
@_selection
@click.option("--all", "everything", is_flag=True, help="All dead rows.")
@database_option
def retry(everything: bool, database_url: str | None, **selection: Any) -> None:
    """Put dead rows back to pending, at their old place in the order."""
    with open_store(load_settings(database_url=database_url)) as store:
        chosen = _chosen(store.dead(**selection), everything, selection)
        result = store.retry_dead(chosen, now_ms())
    click.echo(f"{result.pending} rows are pending again, {result.superseded} were superseded by later rows")
    for row, later in result.overtaken.items():
        click.echo(f"row {row} stays dead: row {later} of the same document was delivered meanwhile", err=True)
    if result.overtaken:
        click.echo("write these documents anew, then 'outbox-relay dead discard'", err=True)
        sys.exit(1)


@dead.command()
@_selection
@click.option("--all", "everything", is_flag=True, help="All dead rows.")
@yes_option
@database_option
def discard(everything: bool, yes: bool, database_url: str | None, **selection: Any) -> None:
    """Remove dead rows for good."""
    with open_store(load_settings(database_url=database_url)) as store:
        chosen = _chosen(store.dead(**selection), everything, selection)
        if chosen and not yes:
            click.confirm(f"Remove {len(chosen)} dead rows for good?", abort=True)
        removed = store.discard_dead(chosen)
    click.echo(f"{removed} dead rows are removed")


def _chosen(rows: list[dict[str, Any]], everything: bool, selection: dict[str, Any]) -> list[int]:
    if not everything and not any(selection.values()):
        raise click.UsageError("say which: ids, --index, --tenant, --error-type or --all")
    return [row["id"] for row in rows]


dead.add_command(show)
commands = [dead]

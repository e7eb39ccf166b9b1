"""dead list|show|retry|discard: rows that were given up."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from outbox import logs
from outbox.cli.audit import operator_name, removal
from outbox.cli.look import show
from outbox.cli.options import NUMBER, database_option, json_option, yes_option
from outbox.cli.selection import found, name_others, selection_options
from outbox.cli.wiring import load_settings, open_store
from outbox.settings import Settings
from outbox.store import audit, operators
from outbox.store.models import State, now_ms
from outbox.store.store import Store

MOST_OF_AN_ERROR = 300


@click.group()
def dead() -> None:
    """List, retry or discard rows that were given up."""


def _selection(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which rows, and numbers without an option."""

    @wraps(command)
    def joined(numbers: tuple[int, ...], ids: tuple[int, ...], **given: Any) -> None:
        command(ids=(*numbers, *ids), **given)

    of_field = click.option("--error-field", metavar="FIELD", help="Only rows whose error names this field.")
    of_type = click.option("--error-type", metavar="TYPE", help="Only rows that died of this type of error.")
    options = selection_options(of_type(of_field(joined)))
    return click.argument("numbers", type=NUMBER, nargs=-1, metavar="[ID]...")(options)


@dead.command(name="list")
@_selection
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many rows.")
@json_option
@database_option
def list_(limit: int, as_json: bool, database_url: str | None, **selection: Any) -> None:
    """Show dead rows, oldest first.

    \b
    Examples:
      outbox-relay dead list
      outbox-relay dead list --index contacts --limit 500
      outbox-relay dead list --error-type unexplained_version --json
    """
    loaded = load_settings(database_url=database_url)
    with open_store(loaded) as store:
        rows = list(found(store, loaded, operators.dead, limit=limit + 1, **selection))
    more, rows = len(rows) > limit, rows[:limit]
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        click.echo("no dead rows")
        return
    _print_table(rows)
    shown = logs.rows(len(rows), kind="dead")
    click.echo(f"the first {shown}; --limit shows more" if more else shown)


@dead.command()
@_selection
@click.option("--all", "everything", is_flag=True, help="All dead rows.")
@database_option
def retry(everything: bool, database_url: str | None, **selection: Any) -> None:
    """Put dead rows back to pending, at their old place in the order.

    Fix the cause first. A row is not sent again if a later row of its document was delivered: it is done as superseded,
    or, if the later one held a part of the document only, stays dead as overtaken. Exits 1 in that case, and if a row
    that was named is not dead.

    \b
    Examples:
      outbox-relay dead retry 42 43
      outbox-relay dead retry --index contacts
      outbox-relay dead retry --all
    """
    loaded = load_settings(database_url=database_url)
    with open_store(loaded) as store:
        chosen = _chosen(store, loaded, everything, selection)
        with audit.noted(store, operator_name(), "dead retry", audit.described(selection)) as note:
            result = operators.retry_dead(store, chosen, now_ms(), report=note.add)
            note.affected = len(note.ids)
    superseded = f"{result.superseded:,} {'was' if result.superseded == 1 else 'were'}"
    click.echo(f"{logs.rows(result.pending, 'is', 'are')} pending again, {superseded} superseded by later rows")
    for row, later in result.overtaken.items():
        click.echo(f"row {row} stays dead: row {later} of the same document was delivered meanwhile", err=True)
    if result.overtaken:
        click.echo("write these documents anew, then 'outbox-relay dead discard'", err=True)
    if name_others(selection["ids"], {*note.ids, *result.overtaken}, "dead") or result.overtaken:
        sys.exit(1)


@dead.command()
@_selection
@click.option("--all", "everything", is_flag=True, help="All dead rows.")
@yes_option
@database_option
def discard(everything: bool, yes: bool, database_url: str | None, **selection: Any) -> None:
    """Remove dead rows for good. The index then misses those changes.

    \b
    Examples:
      outbox-relay dead discard 42
      outbox-relay dead discard --tenant t1 --older-than 90d --yes
    """
    loaded = load_settings(database_url=database_url)
    with open_store(loaded) as store:
        chosen = _chosen(store, loaded, everything, selection)
        if chosen and not yes:
            click.confirm(f"Remove {logs.rows(len(chosen), kind='dead')} for good?", abort=True)
        with removal(store, "dead discard", "discarded", State.DEAD, selection) as note:
            operators.discard_dead(store, chosen, note.add)
    click.echo(f"{logs.rows(len(note.ids), 'is', 'are', kind='dead')} removed")
    if name_others(selection["ids"], note.ids, "dead"):
        sys.exit(1)


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("document", ratio=2, overflow="fold")
    table.add_column("error", ratio=3, overflow="fold")
    for row in rows:
        error = f"{row['error_type']}: {row['error']}"
        if len(error) > MOST_OF_AN_ERROR:
            error = f"{error[:MOST_OF_AN_ERROR]}…"  # 'dead show' has all of it
        document = f"{row['action']} {row['index_name']}/{row['document_id']}"
        table.add_row(str(row["id"]), Text(logs.safe(document)), Text(logs.safe(error)))
    Console().print(table)


def _chosen(store: Store, loaded: Settings, everything: bool, selection: dict[str, Any]) -> list[int]:
    if not everything and not any(selection.values()):
        raise click.UsageError(
            "say which: ids, --id, --document, --index, --tenant, --older-than, --error-type, --error-field or --all"
        )
    return [row["id"] for row in found(store, loaded, operators.dead, **selection)]


dead.add_command(show)
commands = [dead]

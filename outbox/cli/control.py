"""purge and epoch: what holds for all relays."""

from __future__ import annotations

import sys
from typing import Any

import click

from outbox import logs
from outbox.cli.audit import operator_name, removal
from outbox.cli.options import database_option, yes_option
from outbox.cli.selection import found, name_others, selection_options
from outbox.cli.wiring import load_settings, open_store
from outbox.destinations import destination_of
from outbox.destinations.base import Destination, remembered
from outbox.documents import check_index_name
from outbox.errors import InvalidName
from outbox.store import audit, by_index, conflicts, operators
from outbox.store.models import EPOCH_STEP, State, now_ms
from outbox.store.operators import Move
from outbox.store.store import Store

MOST_MET = 1_000
"""Documents whose versions are asked for by name, at most."""


@click.command()
@selection_options
@yes_option
@database_option
def purge(yes: bool, database_url: str | None, **selection: Any) -> None:
    """Remove pending rows for good. The index then misses those changes.

    All of them, or those that fit all options. Exits 1 if a row that was named is not pending.

    \b
    Examples:
      outbox-relay purge
      outbox-relay purge --index contacts --document contact-123
      outbox-relay purge --tenant acme --older-than 36h --yes
    """
    loaded = load_settings(database_url=database_url)
    with open_store(loaded) as store:
        chosen = found(store, loaded, operators.pending, **selection)  # what is written from now on stays
        if chosen and not yes:
            of = f" of index {selection['index']}" if selection["index"] else ""
            click.confirm(logs.safe(f"Remove {logs.rows(len(chosen), kind='pending')}{of} for good?"), abort=True)
        with removal(store, "purge", "purged", State.PENDING, selection) as note:
            operators.purge(store, chosen, note.add)
    click.echo(f"{logs.rows(len(note.ids), 'is', 'are')} removed" if chosen else "nothing is pending")
    if name_others(selection["ids"], note.ids, "pending"):
        sys.exit(1)


@click.group()
def epoch() -> None:
    """The upper part of every version; advance it after a restore."""


@epoch.command(name="show")
@database_option
def show_epoch(database_url: str | None) -> None:
    """Show the epoch.

    \b
    Examples:
      outbox-relay epoch show
    """
    with open_store(load_settings(database_url=database_url)) as store:
        click.echo(store.control().epoch)


@epoch.command()
@yes_option
@database_option
def advance(yes: bool, database_url: str | None) -> None:
    """Make all rows from now on newer than anything in the indexes.

    Needed after the database was restored from a backup. Reads every version in the indexes first. Rows whose index a
    reindex has replaced since the backup go to the one that readers get; reindexes that the backup was taken in end.

    \b
    Examples:
      outbox-relay epoch advance
      outbox-relay epoch advance --yes
    """
    loaded = load_settings(database_url=database_url)
    with open_store(loaded) as store:
        destination = destination_of(loaded)
        try:
            destination.health()  # fails if it is away, even when there is no index to ask for
            found, moves = _indexes(store, destination)
            for move in moves:
                destination.ensure_index(move.name)  # somebody else may have made it: it has to remember deletes, too
            met = [
                version
                for name, ids in conflicts.unexplained_documents(store, MOST_MET).items()
                for version in remembered(destination, name, ids)  # also of what is deleted, which no listing has
            ]
            highest = max([*met, *map(destination.highest_version, found)], default=0)
        finally:
            destination.close()
        if not yes:
            click.confirm(f"The epoch is {store.control().epoch}. Advance it?", abort=True)
        with audit.noted(store, operator_name(), "epoch advance", f"above {highest // EPOCH_STEP}"):
            advanced = operators.advance_epoch(store, highest // EPOCH_STEP, now_ms(), moves)
        click.echo(f"the epoch is {advanced} now")
    for move in moves:
        click.echo(f"rows of index {move.name} go to {move.new} now, as its readers do, no longer to {move.old}")


def _indexes(store: Store, destination: Destination) -> tuple[set[str], list[Move]]:
    """The physical indexes that rows go to and that readers get: after a restore these may be others.

    Also where rows have to go because readers get exactly one, and it is another.
    """
    targets, dual_writes = store.routes()
    found: set[str] = set()
    moves: list[Move] = []
    for name in by_index.names(store):
        try:
            check_index_name(name)
        except InvalidName:
            continue  # written past the repository; no such index can exist
        facts = destination.inspect_index(name, targets.get(name, name))
        found |= {*facts.readers, *([targets[name]] if facts.exists and name in targets else [])}
        found |= {each for each in dual_writes.get(name, ()) if destination.inspect_index(each, each).exists}
        if name in targets and len(facts.readers) == 1 and facts.readers != (targets[name],):
            moves.append(Move(name, targets[name], facts.readers[0]))
    return found, moves


commands = [purge, epoch]

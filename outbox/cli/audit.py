"""Who acts: for the log, and for the audit, which this shows."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from loguru import logger

from outbox import logs
from outbox.cli.options import database_option, json_option
from outbox.cli.signals import unwound_on_sigterm
from outbox.cli.wiring import load_settings, open_store
from outbox.store import audit
from outbox.store.audit import Note
from outbox.store.shown import moment
from outbox.store.store import Store

MOST_OF_A_SELECTION = 300


def operator_name() -> str:
    """The user at the terminal, by name where there is one: containers often have none."""
    try:
        return getpass.getuser().encode(errors="backslashreplace").decode()
    except (KeyError, OSError, ImportError):
        return f"uid {os.getuid()}"


@contextmanager
def removal(store: Store, action: str, what: str, kind: str, selection: Mapping[str, object]) -> Iterator[Note]:
    """Rows that are removed for good: noted, and logged with their number, also where that is interrupted.

    `kind` as for `logs.rows`.
    """
    with unwound_on_sigterm(), audit.noted(store, operator_name(), action, audit.described(selection)) as note:
        note.affected = 0
        try:
            yield note
        finally:
            if note.ids:
                log_removal(f"{what}: {logs.rows(len(note.ids), kind=kind)}", **selection)


def log_removal(what: str, **selection: object) -> None:
    """One line about rows that an operator removed for good: who, what, and by which selection."""
    logger.warning(
        "{what} removed for good by {by}; selection: {selection}",
        what=logs.safe(what),
        by=logs.safe(operator_name()),
        selection=logs.safe(audit.described(selection)),
    )


@click.command(name="audit")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="How many, at most.")
@click.option("--by", metavar="NAME", help="Only what this operator did.")
@json_option
@database_option
def command(limit: int, by: str | None, as_json: bool, database_url: str | None) -> None:
    """Show what operators did, newest first.

    By command, API and dashboard. Long selections are cut; --json has all.

    \b
    Examples:
      outbox-relay audit
      outbox-relay audit --limit 1000000 --json > audit.json
    """
    with open_store(load_settings(database_url=database_url)) as store:
        rows = audit.newest(store, limit, by=by)
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        click.echo(logs.safe(_line(row)))
    if not rows:
        click.echo("nothing was done so far")


def _line(row: dict[str, Any]) -> str:
    at = moment(row["began_at"])
    affected = "" if row["affected"] is None else f": {row['affected']:,}"
    about = row["about"]
    if len(about) > MOST_OF_A_SELECTION:
        about = f"{about[:MOST_OF_A_SELECTION]}…"
    end = f"  failed: {row['error']}" if row["error"] else "" if row["ended_at"] else "  has not ended"
    return f"{at:%Y-%m-%d %H:%M:%S}  {row['acted_by']}  {row['action']}{affected}  {about}{end}"


commands = [command]

"""check: is everything as it should be?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from outbox import check as doctor
from outbox import logs
from outbox.check import Finding
from outbox.cli.entities import registry_of
from outbox.cli.options import database_option, json_option
from outbox.cli.wiring import engine_of, load_settings
from outbox.destinations import address_of, destination_of
from outbox.errors import ConfigurationError
from outbox.maintenance.growth import Limits
from outbox.settings import Settings

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@json_option
@database_option
def check(as_json: bool, database_url: str | None) -> None:
    """Look at database, destination and indexes; change nothing.

    Says what to do about whatever is not as it should be. Exits 1 if something is broken, 0 if there are only
    warnings, 2 if no database is configured.

    \b
    Examples:
      outbox-relay check
      outbox-relay check --json
    """
    loaded = load_settings(database_url=database_url)
    if loaded.database_url is None:
        engine_of(loaded)  # raises: there is nothing to look at
    findings = _findings(loaded)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            level = click.style(f"{finding.level:<4}", _COLOURS[finding.level])
            click.echo(f"{level}  {finding.name}: {logs.safe(finding.found)}")
            if finding.remedy:
                click.echo(f"      → {logs.safe(finding.remedy)}")
    if any(finding.level == "fail" for finding in findings):
        sys.exit(1)


def _findings(loaded: Settings) -> list[Finding]:
    findings: list[Finding] = []
    engine, registry = None, None
    try:
        engine = engine_of(loaded, prepared=False)  # a prepared one switches the file to WAL before it is looked at
    except ConfigurationError as error:
        what, _, remedy = str(error).partition("; ")
        remedy = remedy or "set OUTBOX_DATABASE_URL to the application's file"
        findings.append(Finding("database", "fail", what, remedy))
    else:
        findings += doctor.database(engine, silent_ms=loaded.silent_ms, limits=Limits.of(loaded))
        try:
            registry = registry_of(loaded)
        except ConfigurationError as error:
            findings.append(Finding("entities", "fail", str(error), "set OUTBOX_ENTITIES as it is set for the relay"))
        else:
            findings += [*doctor.engines(registry), *doctor.triggers(engine, registry)]
    try:
        to = destination_of(loaded)
    except ConfigurationError as error:
        what, _, remedy = str(error).partition(": ")
        findings.append(Finding("destination", "fail", what, remedy))
    else:
        answers = doctor.destination(to, at=address_of(loaded))
        findings += answers
        if engine and all(finding.level != "fail" for finding in answers if finding.name == "destination"):
            findings += doctor.indexes(engine, to, loaded.gc_deletes, registry)
            findings += doctor.mappings(engine, to, registry)
        to.close()
    if engine:
        engine.dispose()
    return findings


commands = [check]

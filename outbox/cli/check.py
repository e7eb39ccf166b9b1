"""check: is everything as it should be?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from outbox import check as doctor
from outbox.cli.wiring import database_option, destination_of, engine_of, json_option, load_settings
from outbox.errors import ConfigurationError


@click.command()
@json_option
@database_option
def check(as_json: bool, database_url: str | None) -> None:
    """Look at the database, the destination and each index; exit 1 if something is broken."""
    loaded = load_settings(database_url=database_url)
    engine = engine_of(loaded)
    findings = list(doctor.database(engine))
    if all(finding.level != "fail" for finding in findings):
        try:
            to = destination_of(loaded)
        except ConfigurationError as error:
            findings.append(doctor.Finding("destination", "fail", *str(error).split(": ", 1)))
        else:
            findings += doctor.destination(engine, to)
            to.close()
    engine.dispose()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        for finding in findings:
            click.echo(f"{click.style(f'{finding.level:<4}', colours[finding.level])}  {finding.name}: {finding.found}")
            if finding.remedy:
                click.echo(f"      → {finding.remedy}")
    if any(finding.level == "fail" for finding in findings):
        sys.exit(1)


commands = [check]

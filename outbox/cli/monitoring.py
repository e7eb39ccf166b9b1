"""monitoring: what Prometheus and Grafana are given to know what to do with /metrics."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

FILES = ("outbox-relay.rules.yml", "outbox-relay.dashboard.json")


@click.group()
def monitoring() -> None:
    """Alert rules for Prometheus and a dashboard for Grafana."""


@monitoring.command()
@click.argument("directory", default=".", type=click.Path(file_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite files of that name.")
def export(directory: Path, force: bool) -> None:
    """Write alert rules and dashboard to DIRECTORY (default: here).

    The rules go to rule_files of Prometheus, the dashboard is imported in Grafana. Both use what /metrics of the
    admin server says.

    \b
    Examples:
      outbox-relay monitoring export
      outbox-relay monitoring export /etc/prometheus/outbox --force
    """
    there = [name for name in FILES if (directory / name).exists()]
    if there and not force:
        raise click.UsageError(f"{directory / there[0]} exists; name another directory, or overwrite it with --force")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (directory / name).write_text(files("outbox").joinpath("admin", "monitoring", name).read_text())
            click.echo(str(directory / name))
    except OSError as error:
        raise click.UsageError(f"{directory} cannot be written to: {error.strerror or error}") from error


commands = [monitoring]

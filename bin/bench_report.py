"""How the benches say what they have measured: a table for people, JSON for machines, and on which machine it was."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from bench_load import console
from rich.table import Table

import outbox

F = TypeVar("F", bound=Callable[..., Any])
Row = Mapping[str, Any]

as_json: Callable[[F], F] = click.option("--json", "as_json", is_flag=True, help="For machines, to standard output.")


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "version": outbox.__version__,
    }


def report(title: str, rows: Sequence[Row], *, as_json: bool, **found: float) -> None:
    """All that was measured, one row after another, and what it comes to (`found`)."""
    if as_json:
        click.echo(json.dumps({"title": title, "machine": machine(), "rows": [*rows], **found}))
        return
    table = Table(title=title, width=80)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*map(shown, row.values()))
    console.print(table)
    for name, value in found.items():
        console.print(f"{name.replace('_', ' ')}: {shown(value)}")
    on = machine()
    console.print(f"[dim]{on['cores']} cores, {on['cpu']}; Python {on['python']}, SQLite {on['sqlite']}[/]")


def shown(value: Any) -> str:
    """As many digits as say something."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def median_of(rows: Sequence[Row], name: str) -> float:
    """Of one column."""
    return float(statistics.median([row[name] for row in rows]))


def medians_of(rows: Sequence[Row], *names: str) -> dict[str, float]:
    """Of several columns, as `report` takes them."""
    return {f"median_{name.replace(' ', '_')}": median_of(rows, name) for name in names}

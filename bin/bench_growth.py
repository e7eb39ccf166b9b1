"""`growth`: whether a relay gets slower beside what has piled up."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
import time

import click
from bench_database import databases, made, number_of, on_postgres, url_of
from bench_load import COMMAND, console
from bench_report import as_json, medians_of, report
from instant import instant
from sqlalchemy import Engine

from outbox.store.models import now_ms


@click.command()
@click.option("--rows", default=50_000, show_default=True, help="How many are drained each time.")
@click.option("--finished", default=10_000_000, show_default=True, help="Rows that were finished before.")
@click.option("--waiting", default=1_000_000, show_default=True, help="Rows that wait at first.")
@click.option("--rounds", default=5, show_default=True)
@on_postgres
@as_json
def growth(rows: int, finished: int, waiting: int, rounds: int, postgres: bool, as_json: bool) -> None:
    """Rows a second beside millions of finished and waiting rows, and in a new file; at a server that takes all."""
    found = []
    with databases(postgres=postgres) as new, instant() as url:
        with console.status("making the large database…"):
            large = made(new(), finished=finished, waiting=max(waiting, rounds * rows))
        for round_ in range(1, rounds + 1):
            with console.status(f"round {round_} of {rounds}…"):
                small = made(new(), finished=0, waiting=rows)
                alone, beside = drained(small, url, rows), drained(large, url, rows)
            found.append({"round": round_, "new, rows/s": alone, "grown, rows/s": beside, "ratio": beside / alone})
    title = f"{rows:,} rows, beside {finished:,} finished and {waiting:,} waiting ones"
    report(title, found, as_json=as_json, **medians_of(found, "ratio"))


def drained(engine: Engine, url: str, rows: int) -> float:
    """Rows a second from the first claim of a new relay until it has finished so many."""
    environment = os.environ | {"OUTBOX_DATABASE_URL": url_of(engine), "OUTBOX_ELASTICSEARCH_URL": url}
    with tempfile.TemporaryFile("w") as log, engine.connect() as connection:
        number = functools.partial(number_of, connection)
        relays = number("SELECT coalesce(max(id), 0) FROM outbox_relays")
        process = subprocess.Popen([COMMAND, "run"], env=environment, stderr=log)
        while number("SELECT coalesce(max(id), 0) FROM outbox_relays") == relays:
            time.sleep(0.005)
        began = now_ms()
        while number("SELECT count(*) FROM outbox_events WHERE state = 'done' AND finished_at >= :at", at=began) < rows:
            time.sleep(0.05)
        ended = now_ms()
        process.terminate()
        if process.wait(60):
            raise click.ClickException(f"the relay exited with {process.returncode}")
    return rows / ((ended - began) / 1000)

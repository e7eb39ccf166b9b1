"""What a relay takes while little happens: `idle` while nothing does, `latency` beside an application at work."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from bench_load import COMMAND, INDEX, console, documents, fresh_index, peak_memory
from node import node
from rich.table import Table
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from outbox import OutboxRepository, schema, sqlite

SETTLED_AFTER_S = 5
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def relay_of(directory: Path, url: str) -> Iterator[tuple[Engine, int]]:
    """A relay process of its own database, which has settled: the engine, and the process."""
    engine = create_engine(f"sqlite:///{directory / 'app.db'}")
    sqlite.prepare(engine)
    schema.upgrade(engine)
    fresh_index(url)
    environment = os.environ | {
        "OUTBOX_DATABASE_URL": f"sqlite:///{directory / 'app.db'}",
        "OUTBOX_ELASTICSEARCH_URL": url,
    }
    with (directory / "relay.log").open("w") as log:
        process = subprocess.Popen([COMMAND, "run"], env=environment, stderr=log)
    try:
        time.sleep(SETTLED_AFTER_S)
        yield engine, process.pid
    finally:
        process.terminate()
        if process.wait(60):
            raise click.ClickException(f"the relay exited with {process.returncode}")
        engine.dispose()


@click.command()
@click.option("--seconds", default=30, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def idle(seconds: int, rounds: int) -> None:
    """CPU and memory of a relay that has nothing to do."""
    shares = []
    with tempfile.TemporaryDirectory() as directory, node(console) as url, relay_of(Path(directory), url) as (_, pid):
        for _ in range(rounds):
            before, began = cpu_seconds(pid), time.monotonic()
            time.sleep(seconds)
            shares.append((cpu_seconds(pid) - before) / (time.monotonic() - began))
        memory = peak_memory(pid) / 1024
    console.print(
        f"CPU {statistics.median(shares):.2%} of a core ({min(shares):.2%}-{max(shares):.2%}), {memory:.0f} MB"
    )


@click.command()
@click.option("--rate", default=100, show_default=True, help="Rows a second, each in a transaction of its own.")
@click.option("--seconds", default=20, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def latency(rate: int, seconds: int, rounds: int) -> None:
    """From a row's commit to the record of its delivery, and the CPU of the relay meanwhile."""
    contents = documents(1_000)
    table = Table("round", "rows", "p50 ms", "p99 ms", "CPU", "ms a row", width=80)
    with tempfile.TemporaryDirectory() as directory, node(console) as url, relay_of(Path(directory), url) as it:
        engine, pid = it
        for round_ in range(1, rounds + 1):
            before, first = cpu_seconds(pid), time.monotonic()
            with engine.connect() as connection:
                last: int = connection.execute(text("SELECT coalesce(max(id), 0) FROM outbox_events")).scalar_one()
            for at in range(rate * seconds):
                time.sleep(max(0.0, first + at / rate - time.monotonic()))
                with Session(engine) as session, session.begin():
                    OutboxRepository(session).index(INDEX, *contents[at % len(contents)])
            time.sleep(1)
            share = (cpu_seconds(pid) - before) / (time.monotonic() - first)
            with engine.connect() as connection:
                took = connection.execute(
                    text(
                        "SELECT finished_at - created_at FROM outbox_events WHERE id > :last AND state = 'done'"
                        " ORDER BY finished_at - created_at"
                    ),
                    {"last": last},
                )
                each = list(took.scalars())
            p50, p99 = each[len(each) // 2], each[len(each) * 99 // 100]
            alone = 1000 * (cpu_seconds(pid) - before) / len(each)
            table.add_row(str(round_), f"{len(each):,}", str(p50), str(p99), f"{share:.1%}", f"{alone:.2f}")
    console.print(table)

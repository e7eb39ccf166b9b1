"""What a relay takes while little happens: `idle` while nothing does, `latency` beside an application at work."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from bench_database import databases, on_postgres, url_of
from bench_load import COMMAND, INDEX, console, documents, fresh_index, peak_memory
from bench_report import as_json, medians_of, report
from node import node
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from outbox import OutboxRepository

SETTLED_AFTER_S = 5
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def relay_of(engine: Engine, url: str) -> Iterator[tuple[Engine, int]]:
    """A relay process of that database, which has settled: the engine, and the process."""
    fresh_index(url)
    environment = os.environ | {"OUTBOX_DATABASE_URL": url_of(engine), "OUTBOX_ELASTICSEARCH_URL": url}
    with tempfile.TemporaryFile("w") as log:
        process = subprocess.Popen([COMMAND, "run"], env=environment, stderr=log)
    try:
        time.sleep(SETTLED_AFTER_S)
        yield engine, process.pid
    finally:
        process.terminate()
        if process.wait(60):
            raise click.ClickException(f"the relay exited with {process.returncode}")


@click.command()
@click.option("--seconds", default=30, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@on_postgres
@as_json
def idle(seconds: int, rounds: int, postgres: bool, as_json: bool) -> None:
    """CPU and memory of a relay that has nothing to do."""
    rows = []
    with databases(postgres=postgres) as new, node(console) as url, relay_of(new(), url) as (_, pid):
        for round_ in range(1, rounds + 1):
            before, began = cpu_seconds(pid), time.monotonic()
            time.sleep(seconds)
            share = (cpu_seconds(pid) - before) / (time.monotonic() - began)
            rows.append({"round": round_, "CPU %": 100 * share, "MB": peak_memory(pid) / 1024})
    report("a relay that has nothing to do", rows, as_json=as_json, **medians_of(rows, "CPU %"))


@click.command()
@click.option("--rate", default=100, show_default=True, help="Rows a second, each in a transaction of its own.")
@click.option("--seconds", default=20, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@on_postgres
@as_json
def latency(rate: int, seconds: int, rounds: int, postgres: bool, as_json: bool) -> None:
    """From a row's commit to the record of its delivery, and the CPU of the relay meanwhile."""
    with databases(postgres=postgres) as new, node(console) as url, relay_of(new(), url) as it:
        rows = [{"round": round_, **trickle(*it, rate, seconds)} for round_ in range(1, rounds + 1)]
    medians = medians_of(rows, "p50 ms", "p99 ms", "CPU %")
    report(f"{rate} rows a second, one by one", rows, as_json=as_json, **medians)


def trickle(engine: Engine, pid: int, rate: int, seconds: int) -> dict[str, float]:
    """What rows that come alone take: percentiles of the time to their record, and the CPU of the relay."""
    contents = documents(1_000)
    with engine.connect() as connection:
        last: int = connection.execute(text("SELECT coalesce(max(id), 0) FROM outbox_events")).scalar_one()
    before, first = cpu_seconds(pid), time.monotonic()
    for at in range(rate * seconds):
        time.sleep(max(0.0, first + at / rate - time.monotonic()))
        with Session(engine) as session, session.begin():
            OutboxRepository(session).index(INDEX, *contents[at % len(contents)])
    time.sleep(1)  # the last ones
    spent, lasted = cpu_seconds(pid) - before, time.monotonic() - first
    with engine.connect() as connection:
        each = connection.execute(
            text("SELECT finished_at - created_at FROM outbox_events WHERE id > :last AND state = 'done'"),
            {"last": last},
        )
        return of_lone_rows(each.scalars(), spent, lasted)


def of_lone_rows(took: Iterable[float], spent: float, lasted: float) -> dict[str, float]:
    """What the milliseconds of each row, and the seconds of CPU in so many of the clock, come to."""
    ms = sorted(took)
    return {
        "rows": len(ms),
        "p50 ms": ms[len(ms) // 2],
        "p99 ms": ms[len(ms) * 99 // 100],
        "CPU %": 100 * spent / lasted,
        "CPU ms a row": 1000 * spent / len(ms),
    }

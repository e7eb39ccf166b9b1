"""`drain`: how fast a relay empties a full outbox, and what that takes."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bench_contacts
import click
from bench_database import databases, on_postgres, url_of
from bench_live import cpu_seconds
from bench_load import COMMAND, INDEX, console, documents, each_raw, fresh_index, peak_memory, prepared, raw
from bench_report import as_json, medians_of, report
from instant import instant
from node import node
from sqlalchemy import Engine, insert, text
from sqlalchemy.orm import Session

from outbox import OutboxRepository
from outbox.store.models import now_ms


def relay(
    url: str,
    rows: list[tuple[str, dict[str, Any]]],
    concurrency: int | None,
    engine: Engine,
    *,
    refresh: bool,
    product: str,
) -> dict[str, float]:
    """One relay process that drains the rows: from its first claim to its last record, by the table's own clock.

    `refresh`: the documents are in a table of the application, and the rows only name them.
    """
    fresh_index(url, product=product)
    with Session(engine) as session, session.begin():
        if refresh:
            bench_contacts.Base.metadata.create_all(session.connection())
            session.execute(insert(bench_contacts.Contact), [{"id": id_, **document} for id_, document in rows])
            repo = OutboxRepository(session, bench_contacts.registry)
            for id_, _ in rows:
                repo.refresh("contacts", id_)
        else:
            OutboxRepository(session).index_many(INDEX, rows)
    environment = os.environ | {
        "OUTBOX_DATABASE_URL": url_of(engine),
        "OUTBOX_DESTINATION": product,
        f"OUTBOX_{product.upper()}_URL": url,
    }
    if refresh:
        environment |= {"OUTBOX_ENTITIES": "bench_contacts:registry", "PYTHONPATH": str(Path(__file__).parent)}
    arguments = ["--concurrency", str(concurrency)] if concurrency else []
    with tempfile.TemporaryFile("w") as log:
        process = subprocess.Popen([COMMAND, "run", "--drain", *arguments], env=environment, stderr=log)
        with engine.execution_options(outbox_begin="DEFERRED").connect() as connection:
            while not connection.execute(text("SELECT count(*) FROM outbox_relays")).scalar_one():
                connection.rollback()
                time.sleep(0.001)
            start, before = now_ms(), cpu_seconds(process.pid)  # it takes as long to start, however many rows there are
        memory = 0
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            memory = peak_memory(process.pid) or memory
            time.sleep(0.02)
        _, status, usage = ended
    with engine.connect() as connection:
        done, end = connection.execute(
            text("SELECT count(*), max(finished_at) FROM outbox_events WHERE state = 'done'")
        ).one()
    engine.dispose()
    if status or done != len(rows):
        raise click.ClickException(f"the relay delivered {done} of {len(rows)} rows and exited with {status}")
    return {
        "seconds": (end - start) / 1000,
        "cpu": (usage.ru_utime + usage.ru_stime - before) / len(rows) * 1e6,
        "memory": memory / 1024,
    }


@click.command()
@click.option("--rows", default=50_000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--concurrency", type=int, help="Instead of OUTBOX_CONCURRENCY.")
@click.option("--refresh", is_flag=True, help="Rows that name entities: the relay loads each document.")
@click.option("--product", type=click.Choice(["elasticsearch", "opensearch"]), default="elasticsearch")
@click.option("--apart", is_flag=True, help="A core for the node, and the others for the relay or the raw client.")
@click.option("--instant", "at_once", is_flag=True, help="A server that answers at once: only the relay is measured.")
@on_postgres
@as_json
def drain(
    rows: int,
    rounds: int,
    concurrency: int | None,
    refresh: bool,
    product: str,
    apart: bool,
    at_once: bool,
    postgres: bool,
    as_json: bool,
) -> None:
    """Rows a second: the relay draining a full outbox, and raw _bulk with the same documents."""
    contents = documents(rows)
    bodies = prepared(contents)
    taken: list[tuple[dict[int, float], dict[str, float]]] = []
    server = instant() if at_once else node(console, product, own_core=apart)
    with databases(postgres=postgres) as new, server as url, on_other_cores(apart):
        fresh_index(url, product=product)
        raw(url, bodies[:10], 2, product)  # the node warms up
        for round_ in range(1, rounds + 1):
            with console.status(f"round {round_} of {rounds}…"):
                by_connections = each_raw(url, bodies, product)
                taken.append(
                    (by_connections, relay(url, contents, concurrency, new(), refresh=refresh, product=product))
                )
    found = compared(taken, rows)
    size = sum(map(len, bodies)) / rows
    report(f"{rows:,} rows of {size:,.0f} bytes", found, as_json=as_json, **medians_of(found, "ratio", "CPU µs a row"))


def compared(taken: list[tuple[dict[int, float], dict[str, float]]], rows: int) -> list[dict[str, float]]:
    """Each round, with raw over as many connections as are fastest in the median of all.

    The fastest of each round would be the luckiest of three, beside one of the relay.
    """
    fastest = min(taken[0][0], key=lambda connections: statistics.median(each[connections] for each, _ in taken))
    return [
        {
            "round": round_,
            "raw rows/s": rows / by_connections[fastest],
            "connections": fastest,
            "relay rows/s": rows / figures["seconds"],
            "ratio": by_connections[fastest] / figures["seconds"],
            "CPU µs a row": figures["cpu"],
            "MB": figures["memory"],
        }
        for round_, (by_connections, figures) in enumerate(taken, 1)
    ]


@contextmanager
def on_other_cores(apart: bool) -> Iterator[None]:
    """Meanwhile this process, and those that it starts, leave the last core alone."""
    cores = os.sched_getaffinity(0)
    if apart:
        os.sched_setaffinity(0, cores - {max(cores)})
    yield
    os.sched_setaffinity(0, cores)

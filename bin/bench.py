"""`drain`: the relay against raw `_bulk`, alternately in one run. `write`: what a row costs the writer. `reindex`: how
fast an index is rebuilt, and what live rows notice of it. `idle`, `latency`: what a relay takes while little happens,
and how long a row takes that comes alone. `figures`: what it takes to look at millions of rows."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import bench_contacts
import bench_figures
import bench_live
import bench_reindex
import bench_write
import click
from bench_load import COMMAND, INDEX, best_raw, console, documents, fresh_index, peak_memory, prepared, raw
from node import node
from rich.table import Table
from sqlalchemy import create_engine, insert, text
from sqlalchemy.orm import Session

from outbox import OutboxRepository, schema, sqlite
from outbox.store.models import now_ms


def relay(
    url: str,
    rows: list[tuple[str, dict[str, Any]]],
    concurrency: int | None,
    directory: Path,
    *,
    refresh: bool,
    product: str,
) -> dict[str, float]:
    """One relay process that drains the rows: from its first claim to its last record, by the table's own clock.

    `refresh`: the documents are in a table of the application, and the rows only name them.
    """
    fresh_index(url, product=product)
    path = Path(tempfile.mkdtemp(dir=directory)) / "app.db"
    engine = create_engine(f"sqlite:///{path}")
    sqlite.prepare(engine)
    schema.upgrade(engine)
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
        "OUTBOX_DATABASE_URL": f"sqlite:///{path}",
        "OUTBOX_DESTINATION": product,
        f"OUTBOX_{product.upper()}_URL": url,
    }
    if refresh:
        environment |= {"OUTBOX_ENTITIES": "bench_contacts:registry", "PYTHONPATH": str(Path(__file__).parent)}
    arguments = ["--concurrency", str(concurrency)] if concurrency else []
    with (path.parent / "relay.log").open("w") as log:
        process = subprocess.Popen([COMMAND, "run", "--drain", *arguments], env=environment, stderr=log)
        with engine.execution_options(outbox_begin="DEFERRED").connect() as connection:
            while not connection.execute(text("SELECT count(*) FROM outbox_relays")).scalar_one():
                connection.rollback()
                time.sleep(0.001)
            start = now_ms()
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
        "cpu": (usage.ru_utime + usage.ru_stime) / len(rows) * 10_000,
        "memory": memory / 1024,
    }


@click.group()
def main() -> None:
    """Measure on this machine. Figures are ratios of what was measured alternately in one run."""


@main.command()
@click.option("--rows", default=50_000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--concurrency", default="", help="Values of OUTBOX_CONCURRENCY to compare, e.g. 1,2,4.")
@click.option("--refresh", is_flag=True, help="Rows that name entities: the relay loads each document.")
@click.option("--product", type=click.Choice(["elasticsearch", "opensearch"]), default="elasticsearch")
def drain(rows: int, rounds: int, concurrency: str, refresh: bool, product: str) -> None:
    """Rows a second: the relay draining a full outbox, and raw _bulk with the same documents."""
    levels: list[int | None] = [int(level) for level in concurrency.split(",")] if concurrency else [None]
    contents = documents(rows)
    bodies = prepared(contents)
    table = Table(title=f"{rows:,} rows of {sum(map(len, bodies)) / rows:,.0f} bytes", width=80)
    for column in ("round", "raw rows/s (conn.)", "conc.", "relay rows/s", "ratio", "CPU s/10k", "MB"):
        table.add_column(column, justify="right")
    ratios: dict[int | None, list[float]] = {level: [] for level in levels}
    with tempfile.TemporaryDirectory() as directory, node(console, product) as url:
        fresh_index(url, product=product)
        raw(url, bodies[:10], 2, product)  # the node warms up
        for round_ in range(1, rounds + 1):
            with console.status(f"round {round_} of {rounds}…"):
                best, connections = best_raw(url, bodies, product)
                for level in levels:
                    figures = relay(url, contents, level, Path(directory), refresh=refresh, product=product)
                    ratios[level].append(best / figures["seconds"])
                    table.add_row(
                        str(round_),
                        f"{rows / best:,.0f} ({connections})",
                        str(level or "default"),
                        f"{rows / figures['seconds']:,.0f}",
                        f"{ratios[level][-1]:.2f}",
                        f"{figures['cpu']:.2f}",
                        f"{figures['memory']:.0f}",
                    )
    console.print(table)
    for level, values in ratios.items():
        console.print(f"concurrency {level or 'default'}: median ratio relay/raw {statistics.median(values):.2f}")


@main.command()
@click.option("--rows", default=5_000_000, show_default=True, help="Finished rows.")
@click.option("--keep", type=click.Path(path_type=Path), help="File to make them in, or to use again.")
def figures(rows: int, keep: Path | None) -> None:
    """How long what operators look at takes when millions of rows are finished and not yet pruned."""
    with tempfile.TemporaryDirectory() as directory:
        path = keep or Path(directory) / "app.db"
        if not path.exists():
            began = time.perf_counter()
            bench_figures.fill(path, rows)
            console.print(
                f"{rows:,} rows made in {time.perf_counter() - began:.0f} s, {path.stat().st_size / 1e6:,.0f} MB"
            )
        table = Table("", "first, ms", "further, ms")
        for what, first, further in bench_figures.measure(path):
            table.add_row(what, f"{first:,.1f}", f"{further:,.1f}")
        console.print(table)


main.add_command(bench_live.idle)
main.add_command(bench_live.latency)
main.add_command(bench_reindex.reindex)
main.add_command(bench_write.write)

if __name__ == "__main__":
    main()

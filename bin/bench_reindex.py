"""How fast an index is rebuilt, and what live rows notice of it."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import bench_contacts
import click
from bench_load import BATCH, COMMAND, console, documents, fresh_index, peak_memory, prepared, raw
from bench_report import as_json, median_of, medians_of, report
from elasticsearch import Elasticsearch
from node import node
from sqlalchemy import Engine, create_engine, insert, text
from sqlalchemy.orm import Session, sessionmaker

from outbox import OutboxRepository, schema, sqlite
from outbox.store.models import now_ms

RAW = "bench-raw"
AS_A_NEW_INDEX = {"index.refresh_interval": "-1", "index.number_of_replicas": 0}
AT_A_TIME = 4  # requests of a reindex, by default


@click.command()
@click.option("--rows", default=200_000, show_default=True)
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Of raw _bulk and of a reindex, in turn."
)
@click.option("--rate", default=100, show_default=True, help="Live changes a second, during one reindex more.")
@click.option("--before", default=15, show_default=True, help="Seconds of live changes alone, to compare with.")
@as_json
def reindex(rows: int, rounds: int, rate: int, before: int, as_json: bool) -> None:
    """Documents a second of whole reindexes, and raw _bulk with the same documents; then what live rows notice."""
    contents = documents(rows)
    with tempfile.TemporaryDirectory() as directory, node(console) as url:
        fresh_index(url)
        path = Path(directory) / "app.db"
        engine = filled(path, contents)
        bodies, ids = prepared(contents, RAW), [id_ for id_, _ in contents]
        del contents
        environment = os.environ | {
            "OUTBOX_DATABASE_URL": f"sqlite:///{path}",
            "OUTBOX_ELASTICSEARCH_URL": url,
            "OUTBOX_ENTITIES": "bench_contacts:registry",
            "OUTBOX_LOG_OPERATIONS": "false",
            "PYTHONPATH": str(Path(__file__).parent),
        }
        with (Path(directory) / "log").open("w") as log:
            found = compare(url, engine, environment, log, bodies, rows, rounds)
            del bodies
            live = beside_live_rows(engine, environment, log, ids, rate, before)
        engine.dispose()
    of_its_own = live.pop("rows/s") / median_of(found, "reindex, rows/s")
    title = f"{rows:,} documents; live: {rate} changes a second beside one reindex more"
    report(title, found, as_json=as_json, **medians_of(found, "ratio"), **live, of_its_own_rate=of_its_own)


def filled(path: Path, contents: list[tuple[str, dict[str, object]]]) -> Engine:
    """A database with these contacts."""
    engine = create_engine(f"sqlite:///{path}")
    sqlite.prepare(engine)
    schema.upgrade(engine)
    with Session(engine) as session, session.begin():
        bench_contacts.Base.metadata.create_all(session.connection())
        for at in range(0, len(contents), BATCH):
            some = [{"id": id_, **document} for id_, document in contents[at : at + BATCH]]
            session.execute(insert(bench_contacts.Contact), some)
    return engine


def compare(
    url: str, engine: Engine, environment: dict[str, str], log: IO[str], bodies: list[bytes], rows: int, rounds: int
) -> list[dict[str, float]]:
    """Raw `_bulk` and a reindex, in turn."""
    found: list[dict[str, float]] = []
    for round_ in range(1, rounds + 1):
        with console.status(f"round {round_} of {rounds}…"):
            fresh_index(url, RAW, **AS_A_NEW_INDEX)
            seconds = raw(url, bodies, AT_A_TIME)
            job = rebuild(engine, environment, log)
        found.append(
            {
                "round": round_,
                "raw, rows/s": rows / seconds,
                "reindex, rows/s": rows / job["seconds"],
                "ratio": seconds / job["seconds"],
                "MB": job["memory"],
            }
        )
    Elasticsearch(url).options(ignore_status=404).indices.delete(index=f"{RAW}-000001")
    return found


def beside_live_rows(
    engine: Engine, environment: dict[str, str], log: IO[str], ids: Sequence[str], rate: int, before: int
) -> dict[str, float]:
    """One reindex more, while rows change: its rows a second, and how long these take, without it and during it."""
    relay = subprocess.Popen([COMMAND, "run"], env=environment, stderr=log)
    with changing(engine, ids, rate):
        with console.status("live changes alone…"):
            time.sleep(before)
        began = now_ms()
        with console.status("live changes during a reindex…"):
            job = rebuild(engine, environment, log)
        ended = now_ms()
    time.sleep(1)
    relay.terminate()
    relay.wait()
    with engine.connect() as connection:
        took = [
            (created, finished - created)
            for created, finished in connection.execute(
                text("SELECT created_at, finished_at FROM outbox_events WHERE state = 'done' ORDER BY id")
            )
        ]
    alone = statistics.quantiles([ms for at, ms in took if began - 1_000 * before + 3_000 < at < began], n=100)
    during = statistics.quantiles([ms for at, ms in took if began < at < ended], n=100)
    return {
        "rows/s": len(ids) / job["seconds"],
        "live_p50_ms_alone": alone[49],
        "live_p50_ms_during": during[49],
        "live_p99_ms_alone": alone[98],
        "live_p99_ms_during": during[98],
        "live_p99_ratio": during[98] / alone[98],
    }


@contextmanager
def changing(engine: Engine, ids: Sequence[str], rate: int) -> Iterator[None]:
    """So many changes a second, until the context ends."""
    stopped = threading.Event()

    def change() -> None:
        sessions, chance = sessionmaker(engine), random.Random(7)
        while not stopped.wait(1 / rate):
            with sessions.begin() as session:
                id_ = chance.choice(ids)
                session.get_one(bench_contacts.Contact, id_).score += 1
                OutboxRepository(session, bench_contacts.registry).refresh("contacts", id_)

    writer = threading.Thread(target=change)
    writer.start()
    try:
        yield
    finally:
        stopped.set()
        writer.join()


def rebuild(engine: Engine, environment: dict[str, str], log: IO[str]) -> dict[str, float]:
    """One reindex: seconds from its first step to its end, by the table's own clock, and the most memory in MB."""
    memory = 0
    process = subprocess.Popen([COMMAND, "reindex", "--entity", "contacts"], env=environment, stderr=log, stdout=log)
    while process.poll() is None:
        memory = peak_memory(process.pid) or memory
        time.sleep(0.02)
    if process.returncode:
        raise click.ClickException(f"the reindex ended with {process.returncode}")
    with engine.connect() as connection:
        began, ended = connection.execute(
            text("SELECT created_at, finished_at FROM outbox_reindex_jobs ORDER BY id DESC LIMIT 1")
        ).one()
    return {"seconds": (ended - began) / 1000, "memory": memory / 1024}

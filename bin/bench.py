"""`drain`: the relay against raw `_bulk`, alternately in one run. `write`: what a row costs the writer. `reindex`: how
fast an index is rebuilt, and what live rows notice of it. `figures`: what it takes to look at millions of rows."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import bench_contacts
import bench_figures
import click
import orjson
from elasticsearch import Elasticsearch
from node import node
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, ForeignKey, create_engine, func, insert, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from outbox import EntityRegistry, OutboxRepository, schema, sqlite
from outbox.store.models import EPOCH_STEP, now_ms
from outbox.triggers import installer as triggers

BATCH = 1_000
INDEX, RAW = "bench", "bench-raw"
AS_A_NEW_INDEX = {"index.refresh_interval": "-1", "index.number_of_replicas": 0}
AT_A_TIME = 4  # requests of a reindex, by default
COMMAND = Path(sys.executable).with_name("outbox-relay")
console = Console()

SYLLABLES = [consonant + vowel for consonant in "bcdfghklmnprstv" for vowel in "aeiou"]


def documents(number: int, seed: int = 7) -> list[tuple[str, dict[str, Any]]]:
    """Contacts of about 0.9 KB with varied text."""
    chance = random.Random(seed)
    words = ["".join(chance.choices(SYLLABLES, k=chance.randint(2, 4))) for _ in range(2_000)]
    made = []
    for n in range(number):
        first, last, company = (word.title() for word in chance.sample(words, 3))
        made.append(
            (
                f"contact-{n}",
                {
                    "first_name": first,
                    "last_name": last,
                    "email": f"{first}.{last}@{company}.example".lower(),
                    "company": f"{company} Ltd",
                    "city": chance.choice(words).title(),
                    "tags": chance.sample(words, 3),
                    "score": chance.randint(0, 1_000),
                    "created_at": f"2026-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}T10:00:00Z",
                    "notes": " ".join(chance.choices(words, k=90)),
                },
            )
        )
    return made


def fresh_index(url: str, name: str = INDEX, **settings: Any) -> None:
    """The same empty index for both sides."""
    client = Elasticsearch(url)
    client.options(ignore_status=404).indices.delete(index=f"{name}-000001")
    client.indices.create(index=f"{name}-000001", aliases={name: {}}, settings={"index.gc_deletes": "24h", **settings})
    client.close()


def prepared(contents: list[tuple[str, dict[str, Any]]], name: str = INDEX) -> list[bytes]:
    """The bodies of `_bulk` requests with these documents."""
    return [
        b"".join(
            b'{"index":{"_index":"%s-000001","_id":"%s","version":%d,"version_type":"external"}}\n%s\n'
            % (name.encode(), document_id.encode(), EPOCH_STEP + start + at, orjson.dumps(document))
            for at, (document_id, document) in enumerate(contents[start : start + BATCH])
        )
        for start in range(0, len(contents), BATCH)
    ]


def raw(url: str, bodies: list[bytes], connections: int) -> float:
    """Seconds that prepared `_bulk` requests take over so many connections."""
    client = Elasticsearch(url, connections_per_node=connections, max_retries=0, request_timeout=60)
    waiting = list(reversed(bodies))

    def send() -> None:
        while True:
            try:
                body = waiting.pop()
            except IndexError:
                return
            client.bulk(operations=body, filter_path="errors")

    threads = [threading.Thread(target=send) for _ in range(connections)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - start
    client.close()
    return took


def best_raw(url: str, bodies: list[bytes]) -> tuple[float, int]:
    """The least seconds, each time into an empty index, and over how many connections."""
    taken = []
    for connections in (1, 2, 4):
        fresh_index(url)
        taken.append((raw(url, bodies, connections), connections))
    return min(taken)


def relay(
    url: str, rows: list[tuple[str, dict[str, Any]]], concurrency: int | None, directory: Path, *, refresh: bool
) -> dict[str, float]:
    """One relay process that drains the rows: from its first claim to its last record, by the table's own clock.

    `refresh`: the documents stand in a table of the application, and the rows only name them.
    """
    fresh_index(url)
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
    environment = os.environ | {"OUTBOX_DATABASE_URL": f"sqlite:///{path}", "OUTBOX_ELASTICSEARCH_URL": url}
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


def peak_memory(pid: int) -> int:
    """Kilobytes. Not `ru_maxrss`: after a fork that starts with the size of the parent."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


@click.group()
def main() -> None:
    """Measure on this machine. Figures are ratios of what was measured alternately in one run."""


@main.command()
@click.option("--rows", default=50_000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--concurrency", default="", help="Values of OUTBOX_CONCURRENCY to compare, e.g. 1,2,4.")
@click.option("--refresh", is_flag=True, help="Rows that stand for entities: the relay loads each document.")
def drain(rows: int, rounds: int, concurrency: str, refresh: bool) -> None:
    """Rows a second: the relay draining a full outbox, and raw _bulk with the same documents."""
    levels: list[int | None] = [int(level) for level in concurrency.split(",")] if concurrency else [None]
    contents = documents(rows)
    bodies = prepared(contents)
    table = Table(title=f"{rows:,} rows of {sum(map(len, bodies)) / rows:,.0f} bytes", width=80)
    for column in ("round", "raw rows/s (conn.)", "conc.", "relay rows/s", "ratio", "CPU s/10k", "MB"):
        table.add_column(column, justify="right")
    ratios: dict[int | None, list[float]] = {level: [] for level in levels}
    with tempfile.TemporaryDirectory() as directory, node(console) as url:
        fresh_index(url)
        raw(url, bodies[:10], 2)  # the node warms up
        for round_ in range(1, rounds + 1):
            with console.status(f"round {round_} of {rounds}…"):
                best, connections = best_raw(url, bodies)
                for level in levels:
                    figures = relay(url, contents, level, Path(directory), refresh=refresh)
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
@click.option("--rows", default=200_000, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Of raw _bulk and of a reindex, in turn.")
@click.option("--rate", default=100, show_default=True, help="Live changes a second, during one reindex more.")
@click.option("--before", default=15, show_default=True, help="Seconds of live changes alone, to compare with.")
def reindex(rows: int, rounds: int, rate: int, before: int) -> None:
    """Documents a second of whole reindexes, and raw _bulk with the same documents; then what live rows notice."""
    contents = documents(rows)
    with tempfile.TemporaryDirectory() as directory, node(console) as url:
        fresh_index(url)
        path = Path(directory) / "app.db"
        engine = create_engine(f"sqlite:///{path}")
        sqlite.prepare(engine)
        schema.upgrade(engine)
        with Session(engine) as session, session.begin():
            bench_contacts.Base.metadata.create_all(session.connection())
            for at in range(0, rows, BATCH):
                some = [{"id": id_, **document} for id_, document in contents[at : at + BATCH]]
                session.execute(insert(bench_contacts.Contact), some)
        bodies, ids = prepared(contents, RAW), [id_ for id_, _ in contents]
        del contents
        environment = os.environ | {
            "OUTBOX_DATABASE_URL": f"sqlite:///{path}",
            "OUTBOX_ELASTICSEARCH_URL": url,
            "OUTBOX_ENTITIES": "bench_contacts:registry",
            "OUTBOX_LOG_OPERATIONS": "false",
            "PYTHONPATH": str(Path(__file__).parent),
        }
        log = (Path(directory) / "log").open("w")
        ratios = []
        for round_ in range(1, rounds + 1):
            with console.status(f"round {round_} of {rounds}…"):
                fresh_index(url, RAW, **AS_A_NEW_INDEX)
                seconds = raw(url, bodies, AT_A_TIME)
                job = rebuild(engine, environment, log)
            ratios.append(seconds / job["seconds"])
            console.print(
                f"raw _bulk {rows / seconds:,.0f} documents a second ({AT_A_TIME} connections), reindex "
                f"{rows / job['seconds']:,.0f}: ratio {ratios[-1]:.2f}"
            )
        if ratios:
            console.print(f"median ratio reindex/raw {statistics.median(ratios):.2f}")
        Elasticsearch(url).options(ignore_status=404).indices.delete(index=f"{RAW}-000001")
        relay = subprocess.Popen([COMMAND, "run"], env=environment, stderr=log)
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
        with console.status("live changes alone…"):
            time.sleep(before)
        began = now_ms()
        with console.status("live changes during a reindex…"):
            job = rebuild(engine, environment, log)
        ended = now_ms()
        stopped.set()
        writer.join()
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
        engine.dispose()
    console.print(
        f"{rate} changes a second beside it: reindex {rows / job['seconds']:,.0f} documents a second, "
        f"{job['memory']:.0f} MB"
    )
    p99s = []
    for what, latencies in (
        ("alone", [ms for at, ms in took if began - 1_000 * before + 3_000 < at < began]),
        ("during a reindex", [ms for at, ms in took if began < at < ended]),
    ):
        cuts = statistics.quantiles(latencies, n=100)
        p99s.append(cuts[98])
        console.print(f"live rows {what}: p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms of {len(latencies):,}")
    console.print(f"p99 during a reindex is {p99s[1] / p99s[0]:.1f} times that alone")


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


class Base(DeclarativeBase):
    pass


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    notes: Mapped[str]
    tenant_id: Mapped[str] = mapped_column(default="t1")
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"), index=True)


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


MORE = """
WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < :number)
INSERT INTO contacts (name, notes, tenant_id, account_id) SELECT 'Ada', 'notes', 't1', 1 FROM n
"""


@main.command()
@click.option("--blocks", default=40, show_default=True, help="How long: 50 single and one large transaction each.")
def write(blocks: int) -> None:
    """What an outbox row costs a transaction: against the same transactions without it."""
    named = documents(300)
    contents = [document for _, document in named]
    varied = itertools.cycle(named)
    with tempfile.TemporaryDirectory() as directory:
        engine, beside = (create_engine(f"sqlite:///{directory}/{name}.db") for name in ("app", "triggers"))
        for each in (engine, beside):
            sqlite.prepare(each)
            schema.upgrade(each)
            Base.metadata.create_all(each)
        plain, captured = sessionmaker(engine), sessionmaker(engine)
        triggered, aside = sessionmaker(beside), sessionmaker(beside)
        registry = EntityRegistry()
        registry.add(
            Contact,
            index="contacts",
            fields=["name", "notes"],
            tenant="tenant_id",
            depends_on={Account: "account_id"},
        )
        registry.capture(captured)
        registry.capture(aside)
        with beside.begin() as connection:
            triggers.install(connection, registry)

        def took(sessions: sessionmaker[Session], work: Callable[[Session], None]) -> float:
            start = time.perf_counter()
            with sessions.begin() as session:
                work(session)
            return time.perf_counter() - start

        def compared(rows: int, number: int, without: Callable[[], float], with_: Callable[[], float]) -> float:
            """Microseconds a row: the median transaction with outbox rows less the one without, run in turn."""
            pairs = [(without(), with_()) for _ in range(number)]
            medians = [statistics.median(times) for times in zip(*pairs, strict=True)]
            return (medians[1] - medians[0]) / rows * 1e6

        def add(rows: int) -> Callable[[Session], None]:
            return lambda session: session.add_all(
                Contact(name="Ada", notes=document["notes"]) for document in contents[:rows]
            )

        def cost(rows: int, transactions: int, write: Callable[[OutboxRepository], None]) -> float:
            def work(session: Session) -> None:
                add(rows)(session)
                write(OutboxRepository(session))

            return compared(rows, transactions, lambda: took(plain, add(rows)), lambda: took(plain, work))

        def capture_cost(rows: int, transactions: int, work: Callable[[Session], None]) -> float:
            return compared(rows, transactions, lambda: took(plain, work), lambda: took(captured, work))

        def change(rows: int) -> Callable[[Session], None]:
            def work(session: Session) -> None:
                name = next(varied)[0]
                for contact in session.scalars(select(Contact).limit(rows)):
                    contact.name = name

            return work

        def update_in_bulk(session: Session) -> None:
            session.execute(update(Contact).where(Contact.id <= 300).values(name=next(varied)[0]))

        def rename_account(session: Session) -> None:
            session.get_one(Account, 1).name = next(varied)[0]

        def one(repo: OutboxRepository) -> None:
            repo.index("contacts", *next(varied), tenant_id="t1")

        def many(repo: OutboxRepository) -> None:
            repo.index_many("contacts", named, tenant_id="t1")

        def loop(repo: OutboxRepository) -> None:
            for document_id, document in named:
                repo.index("contacts", document_id, document, tenant_id="t1")

        console.print(f"one row in a one-row transaction: {cost(1, 50 * blocks, one):6.1f} µs a row")
        console.print(f"index_many, 300 a transaction:    {cost(300, blocks, many):6.1f} µs a row")
        console.print(f"index() in a loop of 300:         {cost(300, blocks, loop):6.1f} µs a row")
        console.print(f"capture, one new object:          {capture_cost(1, 50 * blocks, add(1)):6.1f} µs")
        console.print(f"capture, one changed object:      {capture_cost(1, 50 * blocks, change(1)):6.1f} µs")
        console.print(f"capture, 300 new objects:         {capture_cost(300, blocks, add(300)):6.1f} µs a row")
        console.print(f"capture, 300 changed objects:     {capture_cost(300, blocks, change(300)):6.1f} µs a row")
        console.print(f"capture, update() of 300:         {capture_cost(300, blocks, update_in_bulk):6.1f} µs a row")
        with plain.begin() as session:
            session.add(Account(id=1, name="Acme"))
            session.execute(update(Contact).where(Contact.id <= 10_000).values(account_id=1))
            number = session.execute(select(func.count()).where(Contact.account_id == 1)).scalar_one()
        console.print(f"capture, {number:,} dependents:      {capture_cost(number, 10, rename_account):6.1f} µs a row")

        def trigger_cost(
            rows: int, transactions: int, work: Callable[[Session], None], sessions: sessionmaker[Session]
        ) -> float:
            return compared(rows, transactions, lambda: took(plain, work), lambda: took(sessions, work))

        with triggered.begin() as session:  # the same rows on both sides
            session.add(Account(id=1, name="Acme"))
            session.flush()
            add(300)(session)
            session.execute(text(MORE), {"number": number})
        for _ in range(100):  # until its write-ahead log has grown to its full size, as that of the other file has
            took(triggered, add(300))
        for name, sessions in (("triggers", triggered), ("triggers, captured", aside)):
            console.print(f"{name + ', one new object:':<34}{trigger_cost(1, 50 * blocks, add(1), sessions):6.1f} µs")
            for what, rows, times, work in (
                ("300 new objects", 300, blocks, add(300)),
                ("300 changed objects", 300, blocks, change(300)),
                ("update() of 300", 300, blocks, update_in_bulk),
                (f"{number:,} dependents", number, 10, rename_account),
            ):
                console.print(
                    f"{name + ', ' + what + ':':<40}{trigger_cost(rows, times, work, sessions):6.1f} µs a row"
                )
        engine.dispose()
        beside.dispose()


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


if __name__ == "__main__":
    main()

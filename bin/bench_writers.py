"""`writers`: what an outbox, and a relay that keeps up beside it, leave of what many writers do on one PostgreSQL.

`python bench_writers.py URL WRITERS SECONDS with|without` is some of them: it prints how many transactions they did.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import click
from bench_database import databases, number_of, url_of
from bench_live import cpu_seconds, relay_of
from bench_load import INDEX, console, documents
from bench_report import as_json, medians_of, report
from bench_write import Base, Contact
from instant import instant
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from outbox import OutboxRepository

PROCESSES = 4
DOCUMENTS = documents(300)


@click.command()
@click.option("--writers", default=32, show_default=True, help=f"In {PROCESSES} processes.")
@click.option("--seconds", default=15, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@as_json
def writers(writers: int, seconds: int, rounds: int, as_json: bool) -> None:
    """Transactions a second of applications that insert one object each: without outbox, and with a row for each and
    a relay that delivers them meanwhile to a server that answers at once."""
    found = []
    with databases(postgres=True) as new, instant() as url:
        for round_ in range(1, rounds + 1):
            with console.status(f"round {round_} of {rounds}…"):
                engine = new()
                Base.metadata.create_all(engine)
                alone, _ = done(engine, writers, seconds, "without")
                with relay_of(engine, url) as (_, pid):
                    before = cpu_seconds(pid)
                    beside, waiting = done(engine, writers, seconds, "with")
                    spent = cpu_seconds(pid) - before
            found.append(
                {
                    "round": round_,
                    "alone, tx/s": alone / seconds,
                    "beside, tx/s": beside / seconds,
                    "ratio": beside / alone,
                    "waiting half-way": waiting[0],
                    "at the end": waiting[1],
                    "relay CPU %": 100 * spent / seconds,
                    "µs a row, all": len(os.sched_getaffinity(0)) * seconds * (1 / beside - 1 / alone) * 1e6,
                }
            )
    report(f"{writers} writers", found, as_json=as_json, **medians_of(found, "ratio", "µs a row, all"))


def done(engine: Engine, number: int, seconds: int, what: str) -> tuple[int, tuple[int, int]]:
    """How many transactions there were, and how many rows waited half-way and at the end."""
    arguments = [sys.executable, __file__, url_of(engine), str(number // PROCESSES), str(seconds), what]
    processes = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdin and process.stdout
        process.stdout.readline()  # it is ready
    for process in processes:
        process.stdin.close()  # type: ignore[union-attr]
    time.sleep(seconds / 2)
    half_way = waiting(engine)
    transactions = sum(int(process.stdout.read()) for process in processes)  # type: ignore[union-attr]
    at_the_end = waiting(engine)
    if any(codes := [process.wait() for process in processes]):
        raise click.ClickException(f"writers exited with {codes}")
    return transactions, (half_way, at_the_end)


def waiting(engine: Engine) -> int:
    with engine.connect() as connection:
        return number_of(connection, "SELECT count(*) FROM outbox_events WHERE finished_at IS NULL")


def write(engine: Engine, until: float, *, with_outbox: bool, counted: list[int]) -> None:
    """One writer, which adds the number of its transactions to what was counted."""
    number = 0
    while time.monotonic() < until:
        _, document = DOCUMENTS[number % len(DOCUMENTS)]
        with Session(engine) as session, session.begin():
            session.add(Contact(name="Ada", notes=document["notes"]))
            if with_outbox:
                OutboxRepository(session).index(INDEX, f"{os.getpid()}-{threading.get_ident()}-{number}", document)
        number += 1
    counted.append(number)


def some(url: str, number: int, seconds: float, what: str) -> None:
    """As many threads, from the moment on at which standard input ends."""
    engine, counted = create_engine(url, pool_size=number), list[int]()
    print("ready", flush=True)
    sys.stdin.read()
    given = {"until": time.monotonic() + seconds, "with_outbox": what == "with", "counted": counted}
    threads = [threading.Thread(target=write, args=(engine,), kwargs=given) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(counted))


if __name__ == "__main__":
    some(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])

"""`scale`: what more relays add on one PostgreSQL, and what each waits for the others.

`python bench_scale.py FILE ARGUMENT …` is `outbox-relay`, which writes how long its claims took to that file.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from bench_database import databases, made, number_of, url_of
from bench_live import SETTLED_AFTER_S, cpu_seconds
from bench_load import console
from bench_report import as_json, report
from instant import instant
from sqlalchemy import Engine

from outbox.cli import main
from outbox.store import claims, pauses
from outbox.store.models import now_ms
from outbox.store.store import Store

RELAYS = (1, 2, 4, 8)


@click.command()
@click.option("--rows", default=400_000, show_default=True, help="How many are drained each time.")
@click.option("--finished", default=0, show_default=True, help="Rows that were finished before.")
@click.option("--rounds", default=3, show_default=True)
@as_json
def scale(rows: int, finished: int, rounds: int, as_json: bool) -> None:
    """Rows a second by 1, 2, 4 and 8 relays on one PostgreSQL, each with a server that answers at once."""
    found = []
    with databases(postgres=True) as new, ExitStack() as stack:
        servers = [stack.enter_context(instant()) for _ in range(max(RELAYS))]
        for round_ in range(1, rounds + 1):
            for number in RELAYS:
                with console.status(f"round {round_} of {rounds}, {number} relays…"):
                    engine = made(new(), finished=finished, waiting=rows)
                    found.append({"round": round_, "relays": number, **drained(engine, servers[:number], rows)})
    report(f"{rows:,} rows, beside {finished:,} finished ones", found, as_json=as_json)


def drained(engine: Engine, servers: Sequence[str], rows: int) -> dict[str, float]:
    """By one relay for each server, which all run and wait when the outbox is resumed: from then to the last record."""
    environment = os.environ | {"OUTBOX_DATABASE_URL": url_of(engine)}
    store = Store(engine)
    pauses.pause(store, "until all run", "bench", now_ms())
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile("w") as log, engine.connect() as connection:
        files = [Path(directory) / f"{at}.json" for at in range(len(servers))]
        relays = [
            subprocess.Popen(
                [sys.executable, __file__, str(file), "run"],
                env=environment | {"OUTBOX_ELASTICSEARCH_URL": server},
                stderr=log,
            )
            for file, server in zip(files, servers, strict=True)
        ]
        number = functools.partial(number_of, connection)
        while number("SELECT count(*) FROM outbox_relays") < len(relays):
            time.sleep(0.1)
        time.sleep(SETTLED_AFTER_S)
        before = sum(cpu_seconds(relay.pid) for relay in relays)
        pauses.resume(store)
        began = now_ms()
        store.close()
        while number("SELECT count(*) FROM outbox_events WHERE finished_at IS NULL") and not any(
            relay.poll() for relay in relays
        ):
            time.sleep(0.2)
        spent = sum(cpu_seconds(relay.pid) for relay in relays) - before
        for relay in relays:
            relay.terminate()
        if any(codes := [relay.wait(60) for relay in relays]):
            raise click.ClickException(f"relays exited with {codes}")
        noted = [json.loads(file.read_text()) for file in files]
        applied = "outcome = 'applied' AND deliveries = 1 AND document_id NOT LIKE 'old-%'"
        if (done := number(f"SELECT count(*) FROM outbox_events WHERE {applied}")) != rows:
            raise click.ClickException(f"{done} of {rows} rows were delivered once")
        ended = number("SELECT max(finished_at) FROM outbox_events")
    took = sorted(ms for each in noted for ms in each["claims"])
    return {
        "rows/s": rows / (ended - began) * 1000,
        "claim p50 ms": took[len(took) // 2],
        "claim p99 ms": took[len(took) * 99 // 100],
        "lock waited ms": sum(each["waited"] for each in noted) / len(noted),
        "lock held µs a row": sum(each["held"] for each in noted) / rows * 1000,
        "relay CPU µs a row": spent / rows * 1e6,
    }


def timed(file: Path) -> None:
    """Have this process note how long each claim takes that finds rows, and what it has waited for the lock."""
    noted: dict[str, Any] = {"claims": [], "waited": 0.0, "held": 0.0}
    claim: Callable[..., Any] = claims.claim

    @functools.wraps(claim)
    def noting(store: Any, request: Any) -> Any:
        began = time.perf_counter()
        found = claim(store, request)
        if found:
            noted["claims"].append((time.perf_counter() - began) * 1000)
        noted.update(waited=store.lock_times.waited_ms, held=store.lock_times.held_ms)
        return found

    claims.claim = noting
    atexit.register(lambda: file.write_text(json.dumps(noted)))


if __name__ == "__main__":
    timed(Path(sys.argv[1]))
    main(sys.argv[2:])

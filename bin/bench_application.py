"""An application in Python that writes the entities of bench_contacts.py to PostgreSQL, for `peers --postgres`.

    python bench_application.py write KIND RATE     the rows of its input, each in a transaction; says when it committed
    python bench_application.py cost KIND NUMBER    what a transaction takes without and with the outbox or the triggers

KIND: `capture`, sessions that note their changes for outbox-relay; `triggers`, plain ones, with triggers in the tables.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any

from bench_contacts import Contact, registry
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

Row = tuple[str, dict[str, Any]]


def sessions(kind: str, *, plain: bool = False) -> sessionmaker[Session]:
    """Plain: without whatever that kind costs."""
    no_triggers = {"options": "-c session_replication_role=replica"} if plain and kind == "triggers" else {}
    made = sessionmaker(create_engine(os.environ["OUTBOX_DATABASE_URL"], connect_args=no_triggers))
    if kind == "capture" and not plain:
        registry.capture(made)
    return made


def add(made: sessionmaker[Session], id_: str, document: dict[str, Any]) -> None:
    with made.begin() as session:
        session.add(Contact(id=id_, **document))


def write(kind: str, rate: int, rows: list[Row]) -> None:
    made = sessions(kind)
    print("ready", flush=True)
    first = time.monotonic()
    for at, (id_, document) in enumerate(rows):
        time.sleep(max(0.0, first + at / rate - time.monotonic()))
        add(made, id_, document)
        print(id_, time.time_ns() // 1000, flush=True)


def cost(kind: str, number: int, rows: list[Row]) -> dict[str, list[float]]:
    """Medians in microseconds: of the clock, and of the CPU of this process."""
    both = {"without": sessions(kind, plain=True), "with": sessions(kind)}
    took: dict[str, list[tuple[int, int]]] = {name: [] for name in both}
    for at in range(-number, number):  # the first half warms up
        for name in sorted(both, reverse=bool(at % 2)):
            began, spent = time.perf_counter_ns(), time.thread_time_ns()
            add(both[name], f"{name}{at}", rows[at % len(rows)][1])
            if at >= 0:
                took[name].append((time.perf_counter_ns() - began, time.thread_time_ns() - spent))
    return {name: [statistics.median(each) / 1000 for each in zip(*times, strict=True)] for name, times in took.items()}


if __name__ == "__main__":
    what, kind, number = sys.argv[1:]
    given = [json.loads(line) for line in sys.stdin]
    if what == "write":
        write(kind, int(number), given)
    else:
        print(json.dumps(cost(kind, int(number), given)))

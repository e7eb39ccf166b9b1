"""`peers --postgres`: outbox-relay, Hibernate Search and pgsync on one PostgreSQL and one node, in turn, in one run."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import bench_visible
import demo_database
from bench_database import databases
from bench_live import cpu_seconds
from bench_load import INDEX, console, documents, prepared, raw
from bench_peers_programs import (
    HibernateSearch,
    NotToBeHad,
    OutboxRelay,
    PgSync,
    Program,
    built_hibernate_search,
    installed_pgsync,
)
from bench_processes import memory_mb, redis, server_cpu_seconds, server_of
from bench_report import median_of, report
from elasticsearch import Elasticsearch
from node import node
from sqlalchemy import Engine

NEEDED = ("java", "mvn", "redis-server")
IDLE_S = 10
TRANSACTIONS = 500

TEXT = {"type": "text"}
KEYWORD = {"type": "keyword", "doc_values": False}
MAPPING = {
    "dynamic": False,
    "properties": {
        **dict.fromkeys(("first_name", "last_name", "company", "city", "notes"), TEXT),
        **dict.fromkeys(("email", "tags", "created_at"), KEYWORD),
        "score": {"type": "integer", "doc_values": False},
        "_entity_type": {"type": "keyword", "index": False},  # Hibernate Search adds it to each document
    },
}
"""What Hibernate Search makes of its annotations; the others get the same."""

EVENTS = "hibernate.search.coordination.event_processor"
HIBERNATE_SEARCH_TUNED = {f"{EVENTS}.polling_interval": "5", f"{EVENTS}.batch_size": "200"}
PGSYNC_TUNED = {"POLL_TIMEOUT": "0.002", "REDIS_POLL_INTERVAL": "0.002", "ELASTICSEARCH_STREAMING_BULK": "true"}

Made = Callable[[Engine], Program]


def compare(rate: int, seconds: int, rows: int, rounds: int, *, as_json: bool) -> None:
    """Measure each program in each round, and report the medians; all that was measured with `as_json`."""
    missing = [each for each in NEEDED if shutil.which(each) is None]
    if demo_database.installed() is None:
        missing.append("PostgreSQL")
    if missing:
        console.print(f"skipped: there is no {' and no '.join(missing)} here")
        return
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        new = stack.enter_context(databases("wal_level=logical", postgres=True))
        url = stack.enter_context(node(console))
        try:
            programs = made(stack, directory, url)
        except NotToBeHad as error:
            console.print(f"skipped: {error}")
            return
        new_index(url)
        raw(url, prepared(documents(10_000)), 2)  # the node warms up
        order = list(programs)
        for round_ in range(1, rounds + 1):
            for name in order:
                with console.status(f"round {round_} of {rounds}, {name}…"):
                    program, engine = programs[name], new()
                    figures = measured(program(engine), engine, url, rate, seconds, rows)
                    if not name.endswith("tuned"):  # its settings have no part in what writers pay
                        figures |= cost(program(engine))
                    engine.dispose()
                found.append({"round": round_, "who": name, **figures})
            order = [*order[1:], order[0]]
    title = f"on one PostgreSQL, medians of {rounds} rounds: {rows:,} rows that wait, {rate} a second one by one"
    report(title, found if as_json else side_by_side(found), as_json=as_json)


def made(stack: ExitStack, directory: Path, url: str) -> Mapping[str, Made]:
    """What sets each program up for a new database."""
    with console.status("building an application with Hibernate Search…"):
        classpath = built_hibernate_search(directory)
    with console.status("installing pgsync…"):
        python = installed_pgsync(directory)
    its_redis = stack.enter_context(redis(directory))
    version = version_of(url)

    def hibernate_search(settings: Mapping[str, str]) -> Made:
        return lambda engine: HibernateSearch(engine, url, classpath, version, settings)

    def pgsync(settings: Mapping[str, str]) -> Made:
        return lambda engine: PgSync(engine, url, python, directory, its_redis, settings)

    return {
        "outbox-relay": lambda engine: OutboxRelay(engine, url),
        "Hibernate Search": hibernate_search({}),
        "Hibernate Search, tuned": hibernate_search(HIBERNATE_SEARCH_TUNED),
        "pgsync": pgsync({}),
        "pgsync, tuned": pgsync(PGSYNC_TUNED),
    }


def version_of(url: str) -> str:
    """Of the node, as Hibernate Search takes it."""
    client = Elasticsearch(url)
    found = client.nodes.info(node_id="_local", filter_path="nodes.*.version")
    client.close()
    return ".".join(str(next(iter(found["nodes"].values()))["version"]).split(".")[:2])


def new_index(url: str) -> None:
    """The same for all, with the aliases by which each of them knows it."""
    client = Elasticsearch(url)
    client.indices.delete(index=f"{INDEX}-000001", ignore_unavailable=True)
    client.indices.create(
        index=f"{INDEX}-000001",
        mappings=MAPPING,
        settings={"index.gc_deletes": "24h"},
        aliases={INDEX: {}, f"{INDEX}-read": {}, f"{INDEX}-write": {"is_write_index": True}},
    )
    client.close()


def measured(program: Program, engine: Engine, url: str, rate: int, seconds: int, rows: int) -> dict[str, float]:
    """A full outbox, then nothing to do, then rows that come alone."""
    new_index(url)
    program.fill(documents(rows))
    began = time.monotonic()
    with program.running() as pids:
        figures = bench_visible.all_of(url, rows, began)
        bench_visible.settled(url, engine)
        used = Used(pids, engine)
        time.sleep(IDLE_S)
        figures |= {
            "idle CPU %": used.program(),
            "idle CPU of PostgreSQL %": used.server(),
            "MB": sum(map(memory_mb, pids)),
        }
        contents = [(f"live-{id_}", document) for id_, document in documents(rate * seconds)]
        with program.writer(contents, rate) as said:
            next(said)  # it is ready
            used = Used(pids, engine)
            figures |= bench_visible.one_by_one(url, said, len(contents))
            figures |= {"CPU %": used.program(), "CPU of PostgreSQL %": used.server()}
    return figures


class Used:
    """What processes have used since."""

    def __init__(self, pids: Sequence[int], engine: Engine) -> None:
        self._pids, self._server, self._began = pids, server_of(engine), time.monotonic()
        self._program, self._postgres = self._now()

    def _now(self) -> tuple[float, float]:
        return sum(map(cpu_seconds, self._pids)), server_cpu_seconds(self._server)

    def program(self) -> float:
        """Percent of a core, of the program."""
        return 100 * (self._now()[0] - self._program) / (time.monotonic() - self._began)

    def server(self) -> float:
        """The same of PostgreSQL, with what it does for the writer."""
        return 100 * (self._now()[1] - self._postgres) / (time.monotonic() - self._began)


def cost(program: Program) -> dict[str, float]:
    """Of a transaction, while nothing else of it runs."""
    took = program.cost(documents(TRANSACTIONS), TRANSACTIONS)
    (wall, cpu), (more_wall, more_cpu) = took["without"], took["with"]
    return {
        "µs without": wall,
        "µs with": more_wall,
        "µs more": more_wall - wall,
        "CPU µs without": cpu,
        "CPU µs more": more_cpu - cpu,
    }


def side_by_side(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each figure, a column for each program."""
    of = {who: [each for each in found if each["who"] == who] for who in dict.fromkeys(each["who"] for each in found)}
    names = [name for name in max(found, key=len) if name not in ("round", "who")]
    return [
        {"": name, **{who: median_of(each, name) if name in each[0] else "" for who, each in of.items()}}
        for name in names
    ]

"""When documents can be read in Elasticsearch, looked at from outside and so in the same way for every program.

A look is one `_mget` of the ids that were committed and not yet found. It is answered from the node's newest state
without a refresh. Between two looks are `PAUSE_S`, so a document is found up to a look and a pause late.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterable
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import click
from bench_live import of_lone_rows
from bench_load import INDEX
from sqlalchemy import Engine, text

PAUSE_S = 0.002
AT_ONCE = 500
GIVEN_UP_AFTER_S = 600
QUIET_S = 5
JSON = {"content-type": "application/json"}
LONG_QUERIES = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
    " AND query_start < clock_timestamp() - interval '200 ms'"
)


class Node:
    """One connection to it."""

    def __init__(self, url: str) -> None:
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=60)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        self._connection.request(method, path, None if body is None else json.dumps(body), JSON)
        return json.loads(self._connection.getresponse().read())

    def present(self, ids: Iterable[str]) -> list[str]:
        """Which of these documents are there."""
        path = f"/{INDEX}/_mget?_source=false&filter_path=docs._id,docs.found"
        answer = self.ask("POST", path, {"ids": [*ids]})
        return [each["_id"] for each in answer["docs"] if each.get("found")]

    def written(self) -> int:
        """How many documents were taken so far, those twice that came twice."""
        answer = self.ask("GET", f"/{INDEX}/_stats/indexing")
        return int(answer["_all"]["primaries"]["indexing"]["index_total"])

    def count(self) -> int:
        """How many different ones there are."""
        self.ask("POST", f"/{INDEX}/_refresh")
        return int(self.ask("GET", f"/{INDEX}/_count")["count"])


def one_by_one(url: str, commits: Iterable[str], rows: int) -> dict[str, float]:
    """From commit to document of so many rows. Commits: lines of a writer, an id and the microseconds of the clock."""
    node, waiting, lines = Node(url), dict[str, int](), queue.SimpleQueue[str]()

    def read() -> None:
        for line in commits:
            lines.put(line)

    reader = threading.Thread(target=read)
    reader.start()
    took: list[float] = []
    looks, began, spent = 0, time.monotonic(), time.process_time()
    while len(took) < rows:
        while not lines.empty():
            id_, at = lines.get().split()
            waiting[id_] = int(at)
        if waiting:
            found, now = node.present([*waiting][:AT_ONCE]), time.time()
            took += [1000 * now - waiting.pop(id_) / 1000 for id_ in found]
            looks += 1
        if time.monotonic() > began + GIVEN_UP_AFTER_S:
            raise click.ClickException(f"{len(took)} of {rows} documents came within {GIVEN_UP_AFTER_S} s")
        time.sleep(PAUSE_S)
    reader.join()
    lasted, spent = time.monotonic() - began, time.process_time() - spent
    figures = of_lone_rows(took, 0, lasted)
    return {
        "p50 ms": figures["p50 ms"],
        "p99 ms": figures["p99 ms"],
        "looks/s": looks / lasted,
        "CPU % of looks": 100 * spent / lasted,
    }


def all_of(url: str, rows: int, began: float) -> dict[str, float]:
    """How long it takes until so many documents are there: from the first one on, and from `began` on."""
    node, deadline = Node(url), time.monotonic() + GIVEN_UP_AFTER_S
    first: tuple[float, int] | None = None
    while True:
        number, now = node.written(), time.monotonic()
        if number and first is None:
            first = now, number
        if first and number >= rows and node.count() >= rows:
            break
        if now > deadline:
            raise click.ClickException(f"{number} of {rows} documents came within {GIVEN_UP_AFTER_S} s")
        time.sleep(0.01)
    return {
        "drained rows/s": (rows - first[1]) / (now - first[0]) if now > first[0] else 0.0,
        "drained rows/s, start-up too": rows / (now - began),
    }


def settled(url: str, engine: Engine) -> None:
    """Wait until for a while nothing was written and no query took long: pgsync goes through all rows once more."""
    node = Node(url)
    last, since = node.written(), time.monotonic()
    with engine.connect() as connection:
        while time.monotonic() < since + QUIET_S:
            time.sleep(0.1)
            busy = connection.execute(LONG_QUERIES).scalar_one()
            connection.rollback()
            if (number := node.written()) != last or busy:
                last, since = number, time.monotonic()

"""`peers`: what others do with the same rows on the same node, in one run. BullMQ, Redis and the JavaScript client."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import bench_peers_postgres
import click
from bench_database import databases, on_postgres
from bench_drain import relay
from bench_live import SETTLED_AFTER_S, cpu_seconds, of_lone_rows, relay_of, trickle
from bench_load import INDEX, console, documents, fresh_index
from bench_processes import redis
from bench_report import as_json, median_of, report
from elasticsearch import Elasticsearch
from node import node

HERE = Path(__file__).parent
NEEDED = ("node", "npm", "redis-server")


@click.command()
@click.option("--rate", default=100, show_default=True, help="Rows a second, one by one.")
@click.option("--seconds", default=20, show_default=True)
@click.option("--rows", default=20_000, show_default=True, help="How many to drain.")
@click.option("--rounds", default=5, show_default=True)
@on_postgres
@as_json
def peers(rate: int, seconds: int, rows: int, rounds: int, postgres: bool, as_json: bool) -> None:
    """The relay beside a BullMQ worker of concurrency 10 with Redis: rows one by one, and a full queue.

    With --postgres beside Hibernate Search and pgsync, all of them on one PostgreSQL: a full outbox, rows one by one,
    what each takes when idle, and what a transaction of the application pays for it.
    """
    if postgres:
        bench_peers_postgres.compare(rate, seconds, rows, rounds, as_json=as_json)
        return
    if missing := [each for each in NEEDED if shutil.which(each) is None]:
        console.print(f"skipped: there is no {' and no '.join(missing)} here")
        return
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory, node(console) as url, redis(Path(directory)) as (port, redis_pid):
        scripts = installed(Path(directory))
        for round_ in range(1, rounds + 1):
            with console.status(f"round {round_} of {rounds}…"):
                theirs = one_by_one(scripts, url, port, redis_pid, rate, seconds)
                theirs["drained rows/s"] = drained(scripts, url, port, rows)
                with databases(postgres=False) as new:
                    with relay_of(new(), url) as (engine, pid):
                        ours: dict[str, Any] = trickle(engine, pid, rate, seconds)
                    full = relay(url, documents(rows), None, new(), refresh=False, product="elasticsearch")
                ours["drained rows/s"] = rows / full["seconds"]
            found += [{"round": round_, "who": "BullMQ", **theirs}, {"round": round_, "who": "outbox-relay", **ours}]
    ratios = {}
    for name in ("p50 ms", "p99 ms", "CPU %"):
        ours_, theirs_ = (
            median_of([each for each in found if each["who"] == who], name) for who in ("outbox-relay", "BullMQ")
        )
        ratios[f"{name.replace(' ', '_')}_ours_by_theirs"] = ours_ / theirs_
    report(f"{rate} rows a second, one by one", found, as_json=as_json, **ratios)


def installed(directory: Path) -> Path:
    """The scripts, with what they need beside them."""
    scripts = directory / "peers"
    shutil.copytree(HERE / "peers", scripts)
    with console.status("installing BullMQ…"):
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--silent"],
            cwd=scripts,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return scripts


@contextlib.contextmanager
def worker(scripts: Path, url: str, port: int, took: IO[str]) -> Iterator[int]:
    """A worker process, which says at its end what its jobs took."""
    process = subprocess.Popen(
        ["node", "worker.mjs", str(port), url, f"{INDEX}-000001"], cwd=scripts, stdout=subprocess.DEVNULL, stderr=took
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def write(scripts: Path, port: int, rate: int, rows: list[tuple[str, dict[str, Any]]]) -> None:
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    subprocess.run(["node", "writer.mjs", str(port), str(rate)], cwd=scripts, input=lines, text=True, check=True)


def one_by_one(scripts: Path, url: str, port: int, redis_pid: int, rate: int, seconds: int) -> dict[str, Any]:
    """What jobs take that come alone: as `bench_live.trickle` has it, with the CPU of Redis."""
    fresh_index(url)
    with tempfile.TemporaryFile("w+") as said:
        with worker(scripts, url, port, said) as pid:
            time.sleep(SETTLED_AFTER_S)
            before, first = cpu_seconds(pid) + cpu_seconds(redis_pid), time.monotonic()
            write(scripts, port, rate, documents(rate * seconds))
            time.sleep(1)
            spent, lasted = cpu_seconds(pid) + cpu_seconds(redis_pid) - before, time.monotonic() - first
        said.seek(0)
        return of_lone_rows((each for _, each in json.load(said)), spent, lasted)


def drained(scripts: Path, url: str, port: int, rows: int) -> float:
    """Rows a second of a queue that is full when the worker starts."""
    fresh_index(url)
    write(scripts, port, 0, documents(rows))
    with tempfile.TemporaryFile("w+") as said:
        with worker(scripts, url, port, said):
            while True:
                time.sleep(0.5)
                if count(url) >= rows:
                    break
            time.sleep(1)
        said.seek(0)
        ends = [at for at, _ in json.load(said)]
    return (len(ends) - 1) / ((max(ends) - min(ends)) / 1000)


def count(url: str) -> int:
    """The documents that are there."""
    client = Elasticsearch(url)
    client.indices.refresh(index=INDEX)
    found: int = client.count(index=INDEX)["count"]
    client.close()
    return found

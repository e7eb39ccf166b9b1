"""Reindex over and over, under a writer that does not wait, while reindexers and relays are killed at random points."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import sessionmaker

from outbox.store import jobs
from outbox.store.models import now_ms
from tests.reindex.world import World
from tests.support import FACTOR, LIMIT_S
from tests.support.models import Base, Contact
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.support.relays import until

pytestmark = pytest.mark.slow

ROUNDS = 20 * FACTOR
SECONDS = 5.0 * LIMIT_S * FACTOR  # 30 to 60 s on a machine that does nothing else
ROWS = 1_200
TENANTS = ("t1", "t2", "t3")

registry = World.registered(tenancy="prefixed")
"""What the processes find by OUTBOX_ENTITIES."""


def command(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """What a process of the test does: one command of the command line."""
    from outbox.cli import main

    os.environ.update(environment)
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    main(arguments)


class Processes:
    """Commands in processes that start quickly: all modules are loaded once."""

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        self._environment, self.log = environment, directory / "commands.log"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])

    def start(self, *arguments: str) -> BaseProcess:
        process = self._context.Process(target=command, args=(list(arguments), self._environment, self.log))
        process.start()
        return process

    @staticmethod
    def kill(process: BaseProcess) -> None:
        with suppress(ProcessLookupError):
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join(LIMIT_S)


class Writer(threading.Thread):
    """Creates, changes, deletes, archives and moves contacts as fast as it can."""

    def __init__(self, outbox: Outbox, seed: int) -> None:
        super().__init__(daemon=True)
        self._sessions = World.registered(tenancy="prefixed").capture(sessionmaker(outbox.engine))
        self._random = random.Random(seed)
        self.writes, self.stopped = 0, threading.Event()

    def run(self) -> None:
        while not self.stopped.is_set():
            with suppress(OperationalError), self._sessions.begin() as session:  # locked for long: again
                for _ in range(self._random.randint(1, 3)):
                    number = self._random.randint(1, 2 * ROWS)
                    found = session.get(Contact, number)
                    chance = self._random.random()
                    if found is None:
                        session.add(Contact(id=number, name=f"new {self.writes}", tenant=self._random.choice(TENANTS)))
                    elif chance < 0.3:
                        session.delete(found)
                    elif chance < 0.5:
                        found.tenant = self._random.choice(TENANTS)
                    elif chance < 0.6:
                        found.archived = not found.archived
                    else:
                        found.name = f"changed {self.writes}"
                    session.flush()
                self.writes += 1


class Watcher(threading.Thread):
    """At every moment the name leads to exactly one index, and a search finds what is always there."""

    def __init__(self, place: Place) -> None:
        super().__init__(daemon=True)
        self._destination = place.destination
        self.seen: set[tuple[str, ...]] = set()
        self.wrong: list[Any] = []
        self.searches, self.stopped = 0, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.05):
            try:
                readers = self._destination.inspect_index("contacts", "contacts-000001").readers
                found = [hit.source["name"] for hit in self._destination.search("contacts", "lighthouse")]
            except Exception as error:
                self.wrong.append(error)
                continue
            self.seen.add(readers)
            self.searches += 1
            if len(readers) != 1 or found != ["lighthouse"]:
                self.wrong.append((readers, found))


@pytest.fixture
def processes(outbox: Outbox, place: Place, tmp_path: Path) -> Iterator[Processes]:
    environment = place.environment | {
        "OUTBOX_DATABASE_URL": outbox.url,
        "OUTBOX_ENTITIES": f"{__name__}:registry",
        "OUTBOX_REQUEST_TIMEOUT": "20",
        "OUTBOX_REAP_INTERVAL": "0.2",
        "OUTBOX_LOG_OPERATIONS": "false",
        "OUTBOX_BREAKER_FIRST_PAUSE": "0.1",
    }
    yield Processes(environment, tmp_path)
    for process in multiprocessing.active_children():
        Processes.kill(process)


def test_index_equals_database_after_reindexes_and_relays_were_killed_at_random_points(
    outbox: Outbox, place: Place, processes: Processes, tmp_path: Path
) -> None:
    seed = int(os.environ.get("REINDEX_SEED", now_ms()))
    print(f"REINDEX_SEED={seed}", file=sys.stderr)
    chance = random.Random(seed)
    Base.metadata.create_all(outbox.engine)
    world = World(outbox, place)
    with world.sessions.begin() as session:
        session.add_all(Contact(id=n, name=f"contact {n}", tenant=chance.choice(TENANTS)) for n in range(1, ROWS + 1))
        session.add(Contact(id=1_000_000, name="lighthouse"))
    relay = processes.start("run")
    until(lambda: not outbox.counts()["pending"] and not outbox.counts()["claimed"], "the first documents")
    place.destination.refresh("contacts")
    writer, watcher = Writer(outbox, seed), Watcher(place)
    writer.start()
    watcher.start()

    rounds, killed, relays_killed, began = 0, 0, 0, time.monotonic()
    while (
        rounds < ROUNDS or min(killed, relays_killed, len(jobs.every(world.store))) < 2
    ):  # chance may spare all relays
        assert time.monotonic() - began < SECONDS, f"{rounds} rounds: {processes.log.read_text()[-3_000:]}"
        reindexer = processes.start("reindex", "--entity", "contacts")
        rounds += 1
        doomed = time.monotonic() + (chance.uniform(0.02, 1.5) if chance.random() < 0.8 else SECONDS)
        relay_doomed = time.monotonic() + (chance.uniform(0.02, 1.5) if chance.random() < 0.5 else SECONDS)
        while reindexer.is_alive():
            if time.monotonic() > doomed:
                Processes.kill(reindexer)
                killed += 1
                break
            if time.monotonic() > relay_doomed:
                relay_doomed += SECONDS
                Processes.kill(relay)
                relay = processes.start("run")
                relays_killed += 1
            time.sleep(0.02)
        else:
            log = processes.log.read_text()[-3_000:]
            assert reindexer.exitcode == 0 or "running already" in log or "another process has taken over" in log, (
                log
            )  # a relay's
    until(lambda: not jobs.open_jobs(world.store), "what was killed last is gone on with by the relay")
    writer.stopped.set()
    writer.join()
    last = processes.start("reindex", "--entity", "contacts")
    last.join(LIMIT_S)
    assert last.exitcode == 0, processes.log.read_text()[-3_000:]
    until(lambda: not outbox.counts()["pending"] and not outbox.counts()["claimed"], "the last documents")
    watcher.stopped.set()
    watcher.join()
    rebuilt = jobs.every(world.store)
    print(
        f"{rounds} rounds, {killed} reindexers and {relays_killed} relays killed, {len(rebuilt)} jobs, "
        f"{writer.writes} writes, {watcher.searches} searches, {len(watcher.seen)} indexes",
        file=sys.stderr,
    )
    os.kill(relay.pid or 0, signal.SIGTERM)
    relay.join(LIMIT_S)

    assert not watcher.wrong, watcher.wrong[:3]
    assert {job.state for job in rebuilt} == {"done"}
    assert place.documents("contacts") == world.expected()
    assert place.indexes() == [world.store.targets()["contacts"]] == [rebuilt[-1].new_index]
    assert outbox.counts()["dead"] == 0
    assert len(watcher.seen) > 1
    assert not list(tmp_path.glob("app.db-reindex-*"))
    world.store.close()

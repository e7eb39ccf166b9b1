"""Random histories of transactions that are open side by side and end in any order, between the steps of relays.

Whatever the order in which ids were given and that of the commits: the index is what was committed. On PostgreSQL,
where the two differ. `TEST_KILL_SEED` repeats a history that failed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from outbox import OutboxRepository
from outbox.destinations.base import Destination, Operation, Outcome
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.errors import DatabaseUnavailable
from outbox.reindex.reindexer import Reindexer
from outbox.reindex.selection import Selection
from outbox.reindex.work import Progress
from outbox.relay import requests
from outbox.relay.relay import Relay
from outbox.relay.requests import Answer
from outbox.store import upkeep
from outbox.store.models import now_ms
from tests.support import FACTOR
from tests.support.memory_cluster import MemoryCluster
from tests.support.node import destination_to
from tests.support.outbox import Outbox
from tests.support.postgres import Postgres
from tests.support.proxy import FaultProxy, Reply, Request, bulk
from tests.support.writers import Base, Company, Contact, registry

pytestmark = pytest.mark.slow

HISTORIES = 12
STEPS = 70
LEASE_MS = 60_000
MOST_OPEN = 3
IDS = ("0", "1", "2")
LEDGERS = ("l1",)
NOTES = ("n1", "n2")


@dataclass
class Open:
    """A transaction, and what it says of documents that are no entities: if it is committed, that holds."""

    session: Session
    fields: list[tuple[str, str]] = field(default_factory=list)  # of a ledger
    notes: list[tuple[str, int]] = field(default_factory=list)  # the row of each


class File(EmbeddedDestination):
    """`meanwhile` is called before the next request is carried out, once."""

    meanwhile: Callable[[], object] | None = None

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()
        return super().apply(operations)

    def documents(self, index: str, ids: Sequence[str]) -> dict[str, Any]:
        return {name: each.source for name, each in self.read(index, ids).items() if each.source is not None}


@dataclass
class Search:
    """A destination. `interrupt`: have something done before the next request is carried out, once: a cluster has told
    what documents are there by then, into which the request merges."""

    destination: Destination
    documents: Callable[[str, Sequence[str]], dict[str, Any]]
    interrupt: Callable[[Callable[[], object]], object]
    rebuilds: bool = True


class History:
    """Transactions and two relays; time is a number."""

    def __init__(self, outbox: Outbox, search: Search, chance: random.Random) -> None:
        self.outbox, self.search, self.chance = outbox, search, chance
        self.sessions = sessionmaker(outbox.engine)
        registry.capture(self.sessions)
        self.store, self.rebuilder = outbox.store(), outbox.store()
        self.now, self.number = now_ms(), 0
        self.open: list[Open] = []
        self.relays = [outbox.relay(search.destination, n, registry, batch_rows=3) for n in (1, 2)]
        self.requests: list[tuple[Relay, requests.Request]] = []
        self.answers: list[tuple[Relay, Answer]] = []
        self.late: list[requests.Request] = []
        self.rebuild: Iterator[Progress] | None = None
        self.fields = set[tuple[str, str]]()
        self.commits: list[tuple[str, int]] = []  # of notes, in their order: the document and the row
        self.parts: dict[Callable[[], None], int] = {
            self.begin: 6, self.write: 14, self.commit: 7, self.roll_back: 2, self.claim: 8, self.send: 7,
            self.settle: 7, self.relay_dies: 1, self.late_request_arrives: 1, self.time_passes: 1,
            self.rebuilds: 2 * search.rebuilds,
        }  # fmt: skip

    def step(self) -> str:
        """Something happens. Returns what."""
        (part,) = self.chance.choices([*self.parts], [*self.parts.values()])
        part()
        return part.__name__

    # -- what an application does -------------------------------------------------------------------------------

    def begin(self) -> None:
        if len(self.open) < MOST_OPEN:
            self.open.append(Open(self.sessions()))

    def write(self) -> None:
        """Who has to wait for another transaction gives up, as after a timeout."""
        if not self.open:
            return
        one = self.chance.choice(self.open)
        self.number += 1
        try:
            self.chance.choice([self._change, self._come_or_go, self._add_to_ledger, self._add_to_ledger, self._note])(
                one
            )
            one.session.flush()
        except (OperationalError, DatabaseUnavailable):
            one.session.rollback()
            self.open.remove(one)

    def _change(self, one: Open) -> None:
        of: Any = self.chance.choice([Contact, Contact, Company])
        if found := one.session.scalars(select(of).where(of.id == self.chance.randrange(2))).first():
            found.name = str(self.number)

    def _come_or_go(self, one: Open) -> None:
        id_ = self.chance.randrange(3)
        if found := one.session.get(Contact, id_):
            one.session.delete(found)
        elif one.session.get(Company, 0):
            one.session.add(Contact(id=id_, name=str(self.number), company_id=self.chance.randrange(2)))

    def _add_to_ledger(self, one: Open) -> None:
        ledger, name = self.chance.choice(LEDGERS), f"f{self.number}"
        OutboxRepository(one.session).update("ledgers", ledger, {name: True}, upsert={name: True})
        one.fields.append((ledger, name))

    def _note(self, one: Open) -> None:
        name = self.chance.choice(NOTES)
        row = OutboxRepository(one.session).index("notes", name, {"number": self.number})
        one.notes.append((name, row or 0))

    def commit(self) -> None:
        if self.open:
            one = self.open.pop(self.chance.randrange(len(self.open)))
            one.session.commit()
            self.fields.update(one.fields)
            self.commits += one.notes

    def roll_back(self) -> None:
        if self.open:
            self.open.pop(self.chance.randrange(len(self.open))).session.rollback()

    # -- what relays do -----------------------------------------------------------------------------------------

    def claim(self) -> None:
        relay = self.chance.choice(self.relays)
        if request := relay._next_request(self.now):
            self.requests.append((relay, request))

    def send(self) -> None:
        if self.requests:
            relay, request = self.requests.pop(self.chance.randrange(len(self.requests)))
            if self.chance.random() < 0.5:
                self.search.interrupt(self.others_are_faster)
            self.answers.append((relay, relay._send(request)))

    def others_are_faster(self) -> None:
        for part in self.chance.choices([self.commit, self.claim, self.send, self.send, self.settle], k=4):
            part()

    def settle(self) -> None:
        if self.answers:
            relay, answer = self.answers.pop(self.chance.randrange(len(self.answers)))
            self.requests += [(relay, each) for each in relay._settle(answer, self.now)]

    def relay_dies(self) -> None:
        """With what it was about to send, which may still come, or to record."""
        lost = self.chance.choice(self.relays)
        self.late += [request for relay, request in self.requests if relay is lost]
        self.requests = [each for each in self.requests if each[0] is not lost]
        self.answers = [each for each in self.answers if each[0] is not lost]

    def late_request_arrives(self) -> None:
        if self.late:
            self.relays[0]._send(self.late.pop())

    def time_passes(self) -> None:
        self.now += LEASE_MS + 1
        upkeep.reap(self.store, self.now, LEASE_MS)

    def rebuilds(self) -> None:
        """A part of a rebuild, or the begin of one."""
        if self.rebuild is None:
            chosen = Selection("contacts", tuple(registry.of_index("contacts")))
            self.rebuild = Reindexer(self.rebuilder, self.search.destination, registry).run(chosen)
        if next(self.rebuild, None) is None:
            self.rebuild = None

    # -- what has to hold ---------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Whatever is open ends, and whatever waits is delivered."""
        while self.open:
            self.chance.choice([self.commit, self.roll_back])()
        while self.rebuild or self.requests or self.answers:
            self.send()
            self.settle()
            self.time_passes()
            if self.rebuild:
                self.rebuilds()
        self.time_passes()
        self.outbox.drain(self.search.destination, self.now, registry=registry)
        counts = self.outbox.counts()
        assert (counts["pending"], counts["claimed"], counts["dead"]) == (0, 0, 0)

    def check(self) -> None:
        with Session(self.outbox.engine) as session:
            contacts = {
                str(each.id): {"name": each.name, "company": {"name": each.company.name}}
                for each in session.scalars(select(Contact))
            }
        assert self.search.documents("contacts", IDS) == contacts
        fields = {name: {f for ledger, f in self.fields if ledger == name} for name in LEDGERS}
        assert {name: set(held) for name, held in self.search.documents("ledgers", LEDGERS).items()} == {
            name: found for name, found in fields.items() if found
        }
        # Of two rows neither of which was given its id and committed after the other, either may be the last.
        last = {name: self._last(name) for name in NOTES}
        held = self.search.documents("notes", NOTES)
        assert set(held) == {name for name, rows in last.items() if rows}
        for name, content in held.items():
            assert content in [self._content(row) for row in last[name]]

    def forget(self) -> None:
        """The documents, then the rows."""
        for index, ids in (("contacts", IDS), ("ledgers", LEDGERS), ("notes", NOTES)):
            for id_ in ids:
                self.outbox.delete(index, id_)
        self.outbox.drain(self.search.destination, self.now)
        self.outbox.raw("TRUNCATE contacts, companies, outbox_events, outbox_documents, outbox_reindex_jobs")

    def _last(self, name: str) -> list[int]:
        """The rows of a note after which none was both given its id and committed."""
        rows = [row for of, row in self.commits if of == name]
        return [row for at, row in enumerate(rows) if all(other < row for other in rows[at + 1 :])]

    def _content(self, row: int) -> Any:
        return json.loads(self.outbox.row(row)["document"])


@pytest.fixture
def engine(postgres: Postgres) -> Iterator[Engine]:
    with postgres.database() as url:
        made = create_engine(url)

        @event.listens_for(made, "connect")
        def give_up_soon(driver: Any, _: Any) -> None:
            driver.execute("SET lock_timeout = '30ms'")
            driver.commit()

        yield made
        made.dispose()


@pytest.fixture(params=["embedded", "cluster"])
def search(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Search]:
    if request.param == "embedded":
        with closing(File(tmp_path / "search.db")) as file:
            yield Search(file, file.documents, lambda meanwhile: setattr(file, "meanwhile", meanwhile))
        return
    cluster: MemoryCluster = request.getfixturevalue("cluster")

    def documents(index: str, ids: Sequence[str]) -> dict[str, Any]:
        held = cluster.documents[f"{index}-000001"]
        return {name: held[name] for name in ids if name in held}

    def interrupt(meanwhile: Callable[[], object]) -> None:
        def action(proxy: FaultProxy, request: Request) -> Reply:
            meanwhile()
            return proxy.forward(request)

        cluster.on(bulk, action, times=1)

    with closing(destination_to(cluster.url)) as destination:
        yield Search(destination, documents, interrupt, rebuilds=False)


def test_any_order_of_commits_ends_with_the_index_equal_to_what_was_committed(
    engine: Engine, search: Search, chance: random.Random
) -> None:
    Base.metadata.create_all(engine)
    for number in range(HISTORIES * FACTOR):
        with closing(Outbox(engine)) as outbox:
            with outbox.sessions.begin() as session:
                session.add_all(Company(id=n, name="") for n in range(2))
            history, steps = History(outbox, search, chance), list[str]()
            try:
                for _ in range(STEPS):
                    steps.append(history.step())
                history.finish()
                history.check()
            except BaseException:
                print(f"history {number}:", *steps)
                raise
            history.forget()

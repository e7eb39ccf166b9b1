"""Processes that write at the same time, and end their transactions in another order than their ids were given.

What they have committed stands in tables of their own, so that it is known whatever became of them and of the server.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Mapping
from contextlib import closing
from multiprocessing.synchronize import Event
from typing import Any, Final

import psycopg
from sqlalchemy import ForeignKey, create_engine, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from outbox import EntityRegistry, OutboxRepository
from outbox.errors import DatabaseUnavailable
from outbox.store.store import Store
from tests.support import LIMIT_S
from tests.support.killing import Application
from tests.support.outbox import Outbox
from tests.support.pages import ROOT
from tests.support.places import EmbeddedPlace
from tests.support.relays import Relays

WRITERS: Final = 8
LEDGERS: Final = 40
COMPANIES: Final = 5
CONTACTS: Final = 30
LONGEST_S: Final = 0.03  # of a transaction between its last row and its end


class Base(DeclarativeBase):
    pass


class Entry(Base):
    """One partial update that was committed, of a document of no entity."""

    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    ledger: Mapped[str]
    field: Mapped[str]


class Company(Base):
    __tablename__ = "companies"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id"))
    company: Mapped[Company] = relationship()


registry = EntityRegistry()
registry.add(Contact, index="contacts", fields=["name", "company.name"])


RELAYS: Final = {
    "OUTBOX_ENTITIES": f"{__name__}:registry",
    "PYTHONPATH": str(ROOT),
    "OUTBOX_BATCH_ROWS": "20",  # the updates of one document come in several claims
    "OUTBOX_LOG_OPERATIONS": "false",
}
"""Settings of the relays that deliver it."""


class Writers(Application):
    """So many processes at a time. `chance` draws what each of them does, `url` and `given` say how they connect."""

    def __init__(self, outbox: Outbox, chance: random.Random, url: str | None = None, **given: Any) -> None:
        super().__init__()
        self._outbox, self._chance = outbox, chance
        self._connecting = {"url": url or outbox.url, "pool_pre_ping": True} | given
        Base.metadata.create_all(outbox.engine)
        with outbox.sessions.begin() as session:
            session.add_all(Company(id=n, name="") for n in range(COMPANIES))
            session.add_all(Contact(id=n, name="", company_id=n % COMPANIES) for n in range(CONTACTS))

    def run(self) -> None:
        spawned = multiprocessing.get_context("spawn")
        stop, connecting = spawned.Event(), self._connecting
        seeds = [self._chance.random() for _ in range(WRITERS)]
        processes = [spawned.Process(target=write, args=(connecting, stop, seed)) for seed in seeds]
        for process in processes:
            process.start()
        self.stop.wait()
        stop.set()
        for process in processes:
            process.join(LIMIT_S)
        assert [process.exitcode for process in processes] == [0] * WRITERS

    def expected(self) -> tuple[dict[str, set[str]], dict[str, Any]]:
        """The fields of each ledger that is in the index, and the contacts."""
        ledgers: dict[str, set[str]] = {}
        with Session(self._outbox.engine) as session:
            for entry in session.scalars(select(Entry)):
                ledgers.setdefault(entry.ledger, set()).add(entry.field)
            contacts = {
                str(each.id): {"name": each.name, "company": {"name": each.company.name}}
                for each in session.scalars(select(Contact))
            }
            return ledgers, contacts

    def assert_delivered(self, relays: Relays, place: EmbeddedPlace) -> int:
        """All of it is in the index, and nothing else. Returns the number of rows."""
        relays.give(OUTBOX_BATCH_ROWS="1000")  # what relays that were killed have left can be a great many rows
        drained = relays.call("run", "--drain")
        assert drained.returncode == 0, drained.stderr
        with closing(Store(self._outbox.engine)) as store:  # that of the outbox may have lost its session
            counts = store.counts()
        assert counts == {"pending": 0, "claimed": 0, "done": counts["done"], "dead": 0}
        ledgers, contacts = self.expected()
        assert {each: set(found["seen"]) for each, found in place.documents("ledgers").items()} == ledgers
        held = place.documents("contacts")
        assert held == {each: contacts[each] for each in held}
        print(f"{counts['done']} rows")
        return counts["done"]


def write(connecting: Mapping[str, Any], stop: Event, seed: float) -> None:
    """What one of the processes does until it is told to stop. Where the server fails it, it goes on."""
    chance, engine = random.Random(seed), create_engine(**connecting)
    sessions = registry.capture(sessionmaker(engine))
    while not stop.wait(chance.uniform(0, LONGEST_S)):
        try:
            with sessions.begin() as session:
                _change(session, chance)
                time.sleep(chance.uniform(0, LONGEST_S))
                if chance.random() < 0.1:
                    session.rollback()
        except (DBAPIError, DatabaseUnavailable) as error:
            cause = error.__cause__  # what the driver says, or what SQLAlchemy makes of that
            if not isinstance(getattr(cause, "orig", cause), psycopg.OperationalError | psycopg.InterfaceError):
                raise  # that is a mistake, and no fault of the server
            time.sleep(LONGEST_S)
    engine.dispose()


def _change(session: Session, chance: random.Random) -> None:
    outbox = OutboxRepository(session)
    for _ in range(chance.randint(1, 3)):
        ledger, field = f"l{chance.randrange(LEDGERS)}", f"f{chance.randrange(10**12)}"
        outbox.update("ledgers", ledger, {"seen": {field: 1}}, upsert={"seen": {field: 1}})
        session.add(Entry(ledger=ledger, field=field))
    name, way = str(chance.random()), chance.random()
    if way < 0.4:
        session.get_one(Contact, chance.randrange(CONTACTS)).name = name
    elif way < 0.8:
        session.get_one(Company, chance.randrange(COMPANIES)).name = name
    elif way < 0.9:
        company = chance.randrange(COMPANIES)
        session.execute(update(Contact).where(Contact.company_id == company).values(name=name))
    else:
        fields = [f"f{chance.randrange(10**12)}" for _ in range(5)]
        outbox.index_many("ledgers", [(f"of {field}", {"seen": {field: 1}}) for field in fields])
        session.add_all(Entry(ledger=f"of {field}", field=field) for field in fields)

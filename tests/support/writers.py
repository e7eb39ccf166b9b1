"""Processes that write at the same time, and end their transactions in another order than their ids were given.

What they have committed stands in tables of their own, so that it is known whatever became of them and of the server.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.synchronize import Event
from typing import Any, Final

from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from outbox import EntityRegistry, OutboxRepository
from outbox.errors import DatabaseUnavailable
from tests.support import LIMIT_S
from tests.support.killing import Application
from tests.support.outbox import Outbox

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


class Writers(Application):
    """So many processes at a time. `chance` draws what each of them does."""

    def __init__(self, outbox: Outbox, chance: random.Random) -> None:
        super().__init__()
        self._outbox, self._chance = outbox, chance
        Base.metadata.create_all(outbox.engine)
        with outbox.sessions.begin() as session:
            session.add_all(Company(id=n, name="") for n in range(COMPANIES))
            session.add_all(Contact(id=n, name="", company_id=n % COMPANIES) for n in range(CONTACTS))

    def run(self) -> None:
        spawned = multiprocessing.get_context("spawn")
        stop, url = spawned.Event(), self._outbox.url
        processes = [spawned.Process(target=write, args=(url, stop, self._chance.random())) for _ in range(WRITERS)]
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


def write(url: str, stop: Event, seed: float) -> None:
    """What one of the processes does until it is told to stop. Where the server fails it, it goes on."""
    chance, engine = random.Random(seed), create_engine(url, pool_pre_ping=True)
    sessions = registry.capture(sessionmaker(engine))
    while not stop.wait(chance.uniform(0, LONGEST_S)):
        try:
            with sessions.begin() as session:
                _change(session, chance)
                time.sleep(chance.uniform(0, LONGEST_S))
                if chance.random() < 0.1:
                    session.rollback()
        except (DBAPIError, DatabaseUnavailable):
            time.sleep(LONGEST_S)
    engine.dispose()


def _change(session: Session, chance: random.Random) -> None:
    outbox = OutboxRepository(session)
    for _ in range(chance.randint(1, 3)):
        ledger, field = f"l{chance.randrange(LEDGERS)}", f"f{chance.randrange(10**12)}"
        outbox.update("ledgers", ledger, {"seen": {field: 1}}, upsert={"seen": {field: 1}})
        session.add(Entry(ledger=ledger, field=field))
    if chance.random() < 0.5:
        session.get_one(Contact, chance.randrange(CONTACTS)).name = str(chance.random())
    else:
        session.get_one(Company, chance.randrange(COMPANIES)).name = str(chance.random())

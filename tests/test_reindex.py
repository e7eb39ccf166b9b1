"""An index is rebuilt under traffic, and holds what the database says at every step of it; on both destinations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from outbox import ConfigurationError, EntityRegistry
from outbox import reindex as rebuilding
from outbox.destinations.base import Action, Destination, Outcome, OutcomeKind
from outbox.errors import ReindexFailed
from outbox.jobs import Job, Jobs
from outbox.models import now_ms
from outbox.reindex import Progress, Reindexer, Selection, reindex
from outbox.relay import Relay
from tests.support.outbox import Outbox
from tests.support.places import Place

FIRST, SECOND = "contacts-000001", "contacts-000002"


class Base(DeclarativeBase):
    pass


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    tenant: Mapped[str] = mapped_column(default="t1")
    archived: Mapped[bool] = mapped_column(default=False)
    changed: Mapped[datetime] = mapped_column(default=datetime(2026, 1, 1))


class Company(Base):
    __tablename__ = "companies"
    code: Mapped[str] = mapped_column(primary_key=True)
    region: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class World:
    """An application with contacts and companies, a relay that the test drives, and reindexes."""

    def __init__(self, outbox: Outbox, place: Place, *, tenancy: str = "prefixed", **options: Any) -> None:
        Base.metadata.create_all(outbox.engine)
        self.outbox, self.place = outbox, place
        self.registry = self.registered(tenancy=tenancy, **options)
        self.sessions: sessionmaker[Session] = self.registry.capture(sessionmaker(outbox.engine))
        self.jobs = Jobs(outbox.engine)
        self.relay = self.another_relay()

    @staticmethod
    def registered(**options: Any) -> EntityRegistry:
        registry = EntityRegistry()
        registry.add(
            Contact,
            index="contacts",
            fields=["name"],
            tenant="tenant",
            when=lambda contact: not contact.archived,
            watch=["archived"],
            changed_at="changed",
            **options,
        )
        return registry

    def another_relay(self, destination: Destination | None = None) -> Relay:
        return self.outbox.relay(destination or self.place.destination, 2, self.registry)

    def save(self, number: int, name: str, **values: Any) -> None:
        with self.sessions.begin() as session:
            session.merge(Contact(id=number, name=name, **values))

    def delete(self, number: int) -> None:
        with self.sessions.begin() as session:
            session.delete(session.get_one(Contact, number))

    def deliver(self) -> None:
        while self.relay.run_once():
            pass

    def filled(self, rows: int = 5) -> World:
        with self.sessions.begin() as session:
            session.add_all(Contact(id=number, name=f"Ada {number}") for number in range(1, rows + 1))
        self.deliver()
        return self

    def reindexer(self, destination: Destination | None = None, registry: EntityRegistry | None = None) -> Reindexer:
        return Reindexer(self.jobs, destination or self.place.destination, registry or self.registry)

    def rebuild(self, at: dict[str, Callable[[], object]] | None = None, **given: Any) -> list[Progress]:
        """Reindex contacts to the end; `at`: what else happens when a step has begun. The relay works all the while."""
        return list(self.steps(at or {}, **given))

    def steps(self, at: dict[str, Callable[[], object]], **given: Any) -> Iterator[Progress]:
        phase = ""
        given = {"entities": ["contacts"]} | given
        for progress in reindex(self.jobs, self.place.destination, self.registry, **given):
            if progress.phase != phase:
                phase = progress.phase
                at.get(phase, lambda: None)()
            yield progress
            self.deliver()

    @property
    def job(self) -> Job:
        return self.jobs.jobs()[-1]

    def expected(self) -> dict[str, Any]:
        found = {}
        for entity in self.registry.of_index("contacts"):
            rows = self.registry.page(self.jobs.connection, entity, rebuilding.Part(), None, 10_000)
            for row in rows:
                if row.place and isinstance(row.document, bytes):
                    found[row.place.document_id] = __import__("json").loads(row.document)
        return found

    def readers(self) -> tuple[str, ...]:
        return self.place.destination.inspect_index("contacts", FIRST).readers

    def assert_in_step(self, live: str = SECOND) -> None:
        self.deliver()
        assert self.place.documents("contacts") == self.expected()
        assert self.readers() == (live,)
        assert self.jobs.targets()["contacts"] == live
        assert self.outbox.counts()["dead"] == 0


@pytest.fixture
def world(outbox: Outbox, place: Place) -> Iterator[World]:
    made = World(outbox, place)
    yield made
    made.jobs.close()


def test_rebuilt_index_holds_what_the_database_says_and_nothing_else(world: World) -> None:
    world.filled()
    world.outbox.raw("UPDATE contacts SET name = 'Grace' WHERE id = 1")  # past the outbox, as are these:
    world.outbox.raw("DELETE FROM contacts WHERE id = 2")
    world.outbox.raw("INSERT INTO contacts VALUES (9, 'Alan', 't2', false, '2026-01-01')")
    progress = world.rebuild()
    assert progress[-1].phase == "drop"
    assert (world.job.state, world.job.documents, world.job.total) == ("done", 5, 5)
    assert world.place.get("contacts", "2:t1:1") == {"name": "Grace", "tenantId": "t1"}
    world.assert_in_step()
    assert world.place.indexes() == [SECOND]
    assert world.jobs.copies() == {}
    world.save(1, "Ada")
    world.assert_in_step()
    world.rebuild()
    world.assert_in_step("contacts-000003")


def test_changes_at_every_step_arrive(world: World) -> None:
    world.filled(8)
    at: dict[str, Callable[[], object]] = {}
    for number, phase in enumerate(["create", "scan", "wait", "sweep", "check", "swap", "drop"], 1):

        def change(number: int = number) -> None:
            world.save(number, f"changed {number}")
            world.save(20 + number, "new")
            world.save(40 + number, "short-lived")
            world.delete(40 + number)

        at[phase] = change
    world.rebuild(at)
    assert world.job.state == "done"
    world.assert_in_step()

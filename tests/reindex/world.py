"""An application whose index is rebuilt under traffic, and backups of its database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from sqlalchemy.orm import Session, sessionmaker

from outbox import EntityRegistry
from outbox.cli import main
from outbox.destinations.base import Destination
from outbox.entities import loader
from outbox.reindex import Reindexer, reindex
from outbox.reindex.work import Progress
from outbox.relay.relay import Relay
from outbox.store import jobs
from outbox.store.jobs import Job
from outbox.store.store import Store
from tests.support.models import Base, Contact
from tests.support.outbox import Outbox
from tests.support.places import EmbeddedPlace, Place

Command = Callable[..., Result]
FIRST, SECOND = "contacts-000001", "contacts-000002"


class World:
    """An application with contacts and companies, a relay that the test drives, and reindexes."""

    def __init__(self, outbox: Outbox, place: Place, *, tenancy: str = "prefixed", **options: Any) -> None:
        Base.metadata.create_all(outbox.engine)
        self.outbox, self.place = outbox, place
        self.registry = self.registered(tenancy=tenancy, **options)
        self.sessions: sessionmaker[Session] = self.registry.capture(sessionmaker(outbox.engine))
        self.store = Store(outbox.engine)
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
        return Reindexer(self.store, destination or self.place.destination, registry or self.registry)

    def rebuild(self, at: dict[str, Callable[[], object]] | None = None, **given: Any) -> list[Progress]:
        """Reindex contacts to the end; `at`: what else happens when a step has begun. The relay works all the while."""
        return list(self.steps(at or {}, **given))

    def steps(self, at: dict[str, Callable[[], object]], **given: Any) -> Iterator[Progress]:
        phase = ""
        given = {"entities": ["contacts"]} | given
        for progress in reindex(self.store, self.place.destination, self.registry, **given):
            if progress.phase != phase:
                phase = progress.phase
                at.get(phase, lambda: None)()
            yield progress
            self.deliver()

    @property
    def job(self) -> Job:
        return jobs.every(self.store)[-1]

    def expected(self) -> dict[str, Any]:
        found = {}
        for entity in self.registry.of_index("contacts"):
            rows = loader.page(self.store.connection, entity, loader.Part(), None, 10_000)
            for row in rows:
                if row.place and isinstance(row.document, bytes):
                    found[row.place.document_id] = json.loads(row.document)
        return found

    def readers(self) -> tuple[str, ...]:
        return self.place.destination.inspect_index("contacts", FIRST).readers

    def assert_in_step(self, live: str = SECOND) -> None:
        self.deliver()
        assert self.place.documents("contacts") == self.expected()
        assert self.readers() == (live,)
        assert self.store.targets()["contacts"] == live
        assert self.outbox.counts()["dead"] == 0


@contextmanager
def in_a_file(outbox: Outbox, directory: Path, rows: int) -> Iterator[World]:
    """An application with so many contacts, delivered to the embedded destination."""
    place = EmbeddedPlace(directory / "search.db")
    made = World(outbox, place).filled(rows)
    yield made
    made.store.close()
    place.destination.close()


def command_of(world: World, entities: str) -> Command:
    """`outbox-relay` at the terminal of that application. `entities`: where its registry is."""
    environment = {
        "OUTBOX_DATABASE_URL": world.outbox.url,
        "OUTBOX_ENTITIES": entities,
        **world.place.environment,
    }

    def run(*arguments: str, **given: str | None) -> Result:
        return CliRunner().invoke(main, arguments, env=environment | given)

    return run


class Backup:
    """Of the application's database."""

    def __init__(self, outbox: Outbox) -> None:
        self._file = Path(str(outbox.engine.url.database))
        self._copy = self._file.with_name("backup.db")

    def take(self) -> None:
        self._copied(self._file, self._copy)

    def restore(self) -> None:
        self._copied(self._copy, self._file)

    @staticmethod
    def _copied(from_: Path, to: Path) -> None:
        with closing(sqlite3.connect(from_)) as source, closing(sqlite3.connect(to)) as target:
            source.backup(target)


PHASES = ["create", "scan", "sweep", "check", "swap", "drop"]

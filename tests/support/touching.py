"""Contacts that are saved again and again, most of the time without a change, and requests that come late."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from sqlalchemy import text

from outbox import OutboxRepository
from outbox.destinations.base import Operation
from outbox.relay import load, plan
from outbox.store import claims, due, upkeep
from outbox.store.models import now_ms
from outbox.store.store import Store
from tests.reindex.world import World
from tests.support.outbox import Outbox
from tests.support.places import Place

TARGET = "contacts-000001"
LEASE_MS = 60_000
RELAY = 3
"""That which dies."""


class Touched(World):
    """`contacts` with `skip_unchanged`, unless said otherwise. `now` is a number that tests move on."""

    def __init__(self, outbox: Outbox, place: Place, **options: Any) -> None:
        super().__init__(outbox, place, **{"tenancy": "shared", "skip_unchanged": True, **options})
        self.now = now_ms()

    def touch(self, number: int = 1) -> int:
        """A row that says nothing new."""
        with self.sessions.begin() as session:
            (row,) = OutboxRepository(session, self.registry).refresh("contacts", number)
        return row

    def wrote(self, name: str, number: int = 1) -> int:
        """A change of a contact, and its row."""
        self.save(number, name)
        return self.newest_row(number)

    def newest_row(self, number: int = 1) -> int:
        with self.outbox.engine.connect() as connection:
            newest = text("SELECT max(id) FROM outbox_events WHERE document_id = :id")
            found = connection.execute(newest, {"id": str(number)}).scalar_one()
        return int(found)

    def deliver(self) -> None:
        while self.relay.run_once(self.now):
            pass

    def relay_dies(self) -> Sequence[Operation]:
        """A relay claims what is due and is killed. Returns what it has sent, which comes late or never."""
        with closing(Store(self.outbox.engine)) as dying:  # the connection of a killed process is gone, too
            claim = claims.claim(dying, self.request())
            if claim is None:
                return ()
            contents, _ = load.contents(dying, self.registry, claim)
        folds = plan.fold(claim.events, contents, claim.targets, claim.version)
        return [fold.operation for fold in folds]

    def request(self) -> due.ClaimRequest:
        """For all that is due."""
        return due.ClaimRequest(
            relay=RELAY, now=self.now, lease_ms=LEASE_MS, longest_wait=LEASE_MS, rows=100, bytes_=10**6
        )

    def lease_ends(self) -> None:
        self.now += LEASE_MS + 1
        upkeep.reap(self.store, self.now, LEASE_MS)

    def arrives(self, operations: Sequence[Operation]) -> None:
        """A request of a dead relay comes late."""
        self.place.destination.apply(operations)

    def name_held(self, number: int = 1) -> Any:
        held = self.place.get("contacts", str(number))
        return None if held is None else held["name"]

    def ends(self, *rows: int) -> list[str | None]:
        return [self.outbox.outcome(row) for row in rows]

    def close(self) -> None:
        self.store.close()

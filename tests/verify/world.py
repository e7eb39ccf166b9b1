"""An application whose index is compared with its database."""

from __future__ import annotations

from typing import Any

from outbox import EntityRegistry, OutboxRepository
from outbox.verify import Drift, Verification
from tests.support.models import Base, Company, Contact
from tests.support.outbox import Outbox
from tests.support.places import Place


def present(contact: Any) -> bool:
    return not contact.archived


class Application:
    """Contacts in a database, their documents in a destination, and a relay that is called by hand."""

    def __init__(self, outbox: Outbox, place: Place, tenancy: str = "prefixed") -> None:
        Base.metadata.create_all(outbox.engine)
        self.outbox, self.place, self.destination = outbox, place, place.destination
        self.registry = EntityRegistry()
        self.registry.add(
            Contact, index="contacts", fields=["name", "phone"], tenant="tenant", tenancy=tenancy, when=present
        )
        self._relay = outbox.relay(self.destination, registry=self.registry)
        self._store = outbox.store()

    def save(self, *contacts: Contact | Company, tell: bool = True) -> None:
        with self.outbox.sessions.begin() as session:
            for contact in contacts:
                merged = session.merge(contact)
                if tell:
                    OutboxRepository(session, self.registry).refresh(merged)

    def remove(self, number: int) -> None:
        """A row goes, and nobody tells the outbox."""
        with self.outbox.sessions.begin() as session:
            session.delete(session.get_one(Contact, number))

    def deliver(self) -> None:
        while self._relay.run_once():
            pass

    def verification(self, **options: Any) -> Verification:
        return Verification(self._store, self.destination, self.registry, **{"patience": 0, "page": 3, **options})

    def drifts(self, **options: Any) -> list[Drift]:
        """What a verification finds, in the order of ids."""
        found = [each for each in self.verification(**options).run() if isinstance(each, Drift)]
        return sorted(found, key=lambda drift: drift.document_id)

    def said(self, **options: Any) -> list[tuple[str, str]]:
        return [(str(drift.kind), drift.document_id) for drift in self.drifts(**options)]

    def repaired(self) -> list[tuple[str, str]]:
        """What is wrong still after a repair and its delivery."""
        self.drifts(repair=True)
        self.deliver()
        assert not self.outbox.dead()
        return self.said()


def document(number: int, **changes: Any) -> dict[str, Any]:
    return {"name": f"Ada {number}", "phone": str(number), "tenantId": "t1", **changes}

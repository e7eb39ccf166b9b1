"""Two names lead to one physical index: delivery goes on, and nothing takes the documents of one for superfluous."""

from __future__ import annotations

import pytest

from outbox import EntityRegistry, check
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.errors import ReindexFailed
from outbox.reindex import Reindexer, select
from outbox.store.drift import DriftKind
from outbox.verify import Verification
from tests.support.models import Base, Company, Contact
from tests.support.outbox import Outbox


@pytest.fixture
def registry(outbox: Outbox) -> EntityRegistry:
    Base.metadata.create_all(outbox.engine)
    registry = EntityRegistry()
    registry.add(Contact, index="contacts", fields=["name"], id_prefix="contact-")
    registry.add(Company, index="companies", fields=["name"], id_prefix="company-")
    return registry


def test_neither_name_is_rebuilt_or_repaired_at_the_cost_of_the_other(
    outbox: Outbox, embedded: EmbeddedDestination, registry: EntityRegistry
) -> None:
    target = embedded.ensure_index("contacts")
    embedded.swap("companies", None, target)
    store = outbox.store()
    for name in ("contacts", "companies"):
        store.register_index(name, target)
    outbox.index("companies", "company-1|1", {"name": "Analytical Engines"})
    outbox.drain(embedded, registry=registry)
    with pytest.raises(ReindexFailed, match=r"takes the rows of companies too.*outbox-relay check"):
        for each in select(store, registry, entities=["contacts"], in_place=True):
            list(Reindexer(store, embedded, registry).run(each))
    verification = Verification(store, embedded, registry, entities=["contacts"], repair=True)
    list(verification.run())
    assert (verification.totals.found, verification.totals.repaired) == ({DriftKind.EXTRA: 1}, 0)
    outbox.drain(embedded, registry=registry)
    assert set(embedded.read(target, ["company-1|1"])) == {"company-1|1"}
    found = [each for each in check.indexes(outbox.engine, embedded, "24h", registry) if "as those of" in each.found]
    assert [(each.name, each.level) for each in found] == [("index companies", "fail"), ("index contacts", "fail")]

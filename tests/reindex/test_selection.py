"""A tenant, a date, one of several entities: the part that is asked for is rebuilt, and the rest is not touched."""

from __future__ import annotations

from typing import Any

import pytest

from outbox import ConfigurationError
from outbox.reindex.reindexer import reindex
from outbox.store import jobs
from tests.reindex.world import FIRST, World
from tests.support.models import Company
from tests.support.outbox import Outbox
from tests.support.places import Place

# -- several entities, tenants and parts ---------------------------------------------------------------------------


def test_entities_that_share_an_index_are_rebuilt_together(outbox: Outbox, place: Place) -> None:
    world = World(outbox, place, tenancy="shared")
    world.registry.add(Company, index="contacts", fields=["name"])
    world.filled(3)
    with world.sessions.begin() as session:
        session.add_all(Company(code=f"c|{n}", region=n, name="Acme") for n in range(4))
    world.rebuild()
    assert len(world.place.documents("contacts")) == 7
    world.assert_in_step()
    world.store.close()


def test_pages_end_in_the_middle_of_equal_first_columns(
    outbox: Outbox, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.reindex.steps.PAGE_ROWS", 2)
    world = World(outbox, place, tenancy="shared")
    world.registry.add(Company, index="contacts", fields=["name"])
    world.filled(5)
    with world.sessions.begin() as session:
        session.add_all(Company(code=code, region=n, name="Acme") for code in ("a", "b") for n in (10, 9, 2))
    assert world.rebuild()[-1].rows == 11
    world.assert_in_step()
    world.store.close()


def test_tenant_alone_is_rebuilt_in_place_and_others_are_not_touched(world: World) -> None:
    world.filled(2)
    world.save(3, "of t2", tenant="t2")
    world.save(4, "of t2", tenant="t2")
    world.deliver()
    world.outbox.raw("UPDATE contacts SET name = 'new'")
    world.outbox.raw("DELETE FROM contacts WHERE id IN (2, 4)")
    world.rebuild(tenant="t1")
    assert world.readers() == (FIRST,)
    assert {each: found["name"] for each, found in world.place.documents("contacts").items()} == {
        "2:t1:1": "new",
        "2:t2:3": "of t2",
        "2:t2:4": "of t2",
    }


def test_row_that_left_the_tenant_keeps_its_document(outbox: Outbox, place: Place) -> None:
    """With ids of their own the document says the old tenant; that the row has another one now does not remove it."""
    world = World(outbox, place, tenancy="shared").filled(2)
    world.outbox.raw("UPDATE contacts SET tenant = 't2' WHERE id = 2")
    world.rebuild(tenant="t1")
    assert sorted(world.place.documents("contacts")) == ["1", "2"]
    world.store.close()


def test_index_of_a_tenant_is_rebuilt_as_a_whole(outbox: Outbox, place: Place) -> None:
    world = World(outbox, place, tenancy="index")
    world.save(1, "Ada", tenant="a")
    world.save(2, "Grace", tenant="b")
    world.deliver()
    world.outbox.raw("UPDATE contacts SET name = 'new'")
    world.rebuild(tenant="a")
    targets = world.store.targets()
    assert targets == {"a_contacts": "a_contacts-000002", "b_contacts": "b_contacts-000001"}
    assert world.place.documents("a_contacts") == {"1": {"name": "new", "tenantId": "a"}}
    assert world.place.documents("b_contacts") == {"2": {"name": "Grace", "tenantId": "b"}}
    world.rebuild()
    assert world.place.documents("b_contacts") == {"2": {"name": "new", "tenantId": "b"}}
    world.store.close()


def test_rows_that_changed_since_a_date_are_written_in_place_and_what_is_gone_is_removed(world: World) -> None:
    world.filled(3)
    world.outbox.raw("UPDATE contacts SET name = 'new', changed = '2026-03-01 12:00:00' WHERE id = 1")
    world.outbox.raw("UPDATE contacts SET name = 'not seen' WHERE id = 2")
    world.outbox.raw("DELETE FROM contacts WHERE id = 3")
    world.rebuild(since="2026-03-01")
    assert {each: found["name"] for each, found in world.place.documents("contacts").items()} == {
        "2:t1:1": "new",
        "2:t1:2": "Ada 2",
    }


def test_row_from_before_the_watermark_that_is_claimed_after_it_is_newer(world: World) -> None:
    world.filled(2)
    world.save(1, "waits")
    (waiting,) = [row for row in range(1, world.store.highest_id() + 1) if world.outbox.state(row) == "pending"][:1]
    phases = []
    for progress in reindex(world.store, world.place.destination, world.registry, entities=["contacts"], in_place=True):
        phases.append(progress.phase)
        if progress.phase == "sweep":
            world.deliver()
    assert "sweep" in phases
    assert world.outbox.outcome(waiting) == "applied"
    assert world.outbox.row(waiting)["version"] > (world.job.watermark or 0)
    world.assert_in_step(FIRST)


# -- what cannot be asked for --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"entities": ["contact"]}, "registered are contacts.*; did you mean 'contacts'"),
        ({"entities": ["deals"]}, r"registry\.add\(Model, index='deals'"),
        ({"tenant": "t9"}, "there is no tenant 't9'; there are t1"),
        ({"since": "yesterday"}, "is not a date"),
        ({"tenant": "t1", "keep_old": True}, "in place"),
        ({"in_place": True, "adopt": True}, "leave out --adopt"),
        ({"keep_old": True, "adopt": True}, "cannot be kept"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(world: World, given: dict[str, Any], said: str) -> None:
    world.filled(1)
    world.outbox.index("deals", "d1", {})
    world.deliver()
    with pytest.raises(ConfigurationError, match=said):
        world.rebuild(**given)
    assert jobs.every(world.store) == []

"""The old index is kept as a way back, and removed when it is not."""

from __future__ import annotations

import pytest

from outbox.errors import DestinationError, ReindexFailed
from outbox.reindex import drop_old, roll_back
from outbox.store import jobs
from tests.reindex.faults import Refusing
from tests.reindex.world import FIRST, SECOND, World


def test_kept_old_index_misses_nothing_and_a_rollback_after_traffic_is_a_true_swap_back(world: World) -> None:
    world.filled(4)
    world.rebuild(keep_old=True)
    world.assert_in_step()
    for number in (1, 20):
        world.save(number, "after the swap")
    world.delete(2)
    world.deliver()
    with pytest.raises(ReindexFailed, match="still keeps contacts-000001"):
        world.rebuild()
    assert roll_back(world.store, world.place.destination, "contacts") == (FIRST, 0)
    world.assert_in_step(FIRST)
    world.save(3, "after the rollback")
    world.assert_in_step(FIRST)
    assert roll_back(world.store, world.place.destination, "contacts") == (SECOND, 0)  # and forth
    world.assert_in_step(SECOND)
    assert drop_old(world.store, world.place.destination, "contacts") == FIRST
    world.save(3, "after the drop")
    world.assert_in_step()
    assert world.place.indexes() == [SECOND]
    for back in (roll_back, drop_old):
        with pytest.raises(ReindexFailed, match="keeps no old one"):
            back(world.store, world.place.destination, "contacts")


def test_rollback_that_was_killed_in_the_middle_is_finished_by_the_next(world: World) -> None:
    world.filled(2)
    world.rebuild(keep_old=True)
    world.place.destination.swap("contacts", SECOND, FIRST)  # and here it was killed
    world.save(1, "meanwhile")
    world.deliver()
    roll_back(world.store, world.place.destination, "contacts")
    world.assert_in_step(FIRST)


def test_kept_index_that_readers_get_since_a_rollback_was_killed_is_not_removed(world: World) -> None:
    world.filled(2)
    world.rebuild(keep_old=True)
    world.place.destination.swap("contacts", SECOND, FIRST)  # and here it was killed
    with pytest.raises(ReindexFailed, match=r"readers of contacts get contacts-000001.*--rollback'"):
        drop_old(world.store, world.place.destination, "contacts")
    roll_back(world.store, world.place.destination, "contacts")
    assert drop_old(world.store, world.place.destination, "contacts") == SECOND
    world.assert_in_step(FIRST)


def test_kept_index_that_is_lost_is_no_way_back_and_in_the_way_of_no_rebuild(world: World) -> None:
    world.filled(2)
    world.rebuild(keep_old=True)
    world.place.destination.drop_index(FIRST)
    with pytest.raises(ReindexFailed, match=r"contacts-000001, which was kept, is lost.*--drop-old"):
        roll_back(world.store, world.place.destination, "contacts")
    world.rebuild()
    world.assert_in_step("contacts-000003")


def test_what_a_kept_old_index_refuses_is_counted_and_nobodys_fault(world: World) -> None:
    world.filled(2)
    world.registry = world.registered(tenancy="prefixed", mappings={"properties": {"name": {"type": "keyword"}}})
    world.registry.capture(world.sessions)
    world.rebuild(keep_old=True)
    relay = world.another_relay(Refusing(world.place.destination, FIRST))
    world.save(1, "refused by the old one")
    while relay.run_once():
        pass
    world.assert_in_step()
    assert jobs.kept_index(world.store, "contacts") == (FIRST, 1)


def test_old_index_that_cannot_be_removed_is_removed_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.filled(2)
    with monkeypatch.context() as patched:

        def refused(target: str) -> None:
            raise DestinationError(f"index {target} is being snapshotted")

        def refuse() -> None:
            patched.setattr(world.place.destination, "drop_index", refused)

        with pytest.raises(ReindexFailed, match=r"readers get the new index.*snapshotted"):
            world.rebuild({"swap": refuse})
    assert world.readers() == (SECOND,)
    world.rebuild()
    assert world.job.id == 1
    world.assert_in_step()
    assert world.place.indexes() == [SECOND]


def test_kept_index_that_cannot_be_removed_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.filled(2)
    world.rebuild(keep_old=True)
    destination = world.place.destination

    def away(*_: str) -> None:
        raise DestinationError("Connection refused")

    with monkeypatch.context() as patched:
        patched.setattr(destination, "inspect_index", away)
        with pytest.raises(DestinationError):
            drop_old(world.store, destination, "contacts")
    assert jobs.kept_index(world.store, "contacts") == (FIRST, 0)  # nothing is done where nothing can be
    with monkeypatch.context() as patched:
        patched.setattr(destination, "drop_index", away)
        with pytest.raises(ReindexFailed, match="contacts-000001 gets no rows any more, but is not removed"):
            drop_old(world.store, destination, "contacts")
    world.save(1, "after")
    world.assert_in_step()

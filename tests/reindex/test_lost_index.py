"""The index is gone, in each of the ways in which it can be: a reindex makes it from the database, and rows arrive."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outbox.errors import ReindexFailed
from outbox.reindex import drop_old, roll_back
from outbox.store import jobs
from outbox.store.drift import DriftKind
from outbox.verify import Verification, lost
from tests.reindex.world import FIRST, PHASES, SECOND, World
from tests.support.node import Node
from tests.support.places import ClusterPlace

THIRD = "contacts-000003"


def assert_in_step(world: World, live: str = SECOND) -> None:
    """With a relay that begins now, and does not pause for what the other one has met."""
    world.relay = world.another_relay()
    world.assert_in_step(live)


def node_of(world: World) -> Node:
    assert isinstance(world.place, ClusterPlace)
    return world.place.node


def look_again(world: World) -> None:
    """As if the seconds were over for which a relay trusts what it has found."""
    assert isinstance(world.place, ClusterPlace)
    world.place.destination._checked.clear()


def all_of_it(world: World) -> None:
    for name in world.place.indexes():
        world.place.destination.drop_index(name)


def the_alias(world: World) -> None:
    if world.place.wire is None:
        world.place.drop("contacts")  # of the file, this removes the alias alone
    else:
        remove = {"remove": {"index": FIRST, "alias": "contacts"}}
        node_of(world).request("POST", "/_aliases", {"actions": [remove]})
        look_again(world)


def that_of_a_later_number(world: World) -> None:
    """As on a new cluster: rows go where nothing is."""
    all_of_it(world)
    world.outbox.raw("UPDATE outbox_indexes SET physical_index = 'contacts-000003'")


def that_of_its_own_name(world: World) -> None:
    """It had no alias, since another program made it."""
    all_of_it(world)
    world.outbox.raw("UPDATE outbox_indexes SET physical_index = index_name")


@pytest.mark.slow
@pytest.mark.parametrize("lose", [all_of_it, the_alias, that_of_a_later_number, that_of_its_own_name])
def test_lost_index_is_made_from_the_database_and_rows_that_wait_arrive(
    world: World, lose: Callable[[World], None]
) -> None:
    world.filled()
    lose(world)
    world.save(1, "waits")
    world.delete(2)
    world.save(9, "new, and waits")
    world.deliver()
    assert (world.outbox.counts()["pending"], world.readers()) == (3, ())
    world.rebuild({"sweep": lambda: world.save(3, "meanwhile")})
    assert world.job.state == "done"
    assert_in_step(world, str(world.job.new_index))
    assert world.place.indexes() == [world.job.new_index]
    assert world.outbox.counts()["pending"] == 0


def test_readers_get_what_is_scanned_before_rows_are_delivered(world: World) -> None:
    """A partial update finds its document, and no search an index that is half full."""
    world.filled()
    all_of_it(world)
    world.outbox.raw("UPDATE contacts SET name = 'by hand' WHERE id = 1")
    update = world.outbox.update("contacts", "2:t1:1", {"name": "by hand"})  # by a program without the registry
    world.deliver()
    for progress in world.steps({}):
        if progress.phase in ("create", "scan", "sweep", "check"):
            assert world.readers() == ()
    assert_in_step(world)
    # Into what is loaded after the scan; or by itself before, as the one row with which a relay tries the index again.
    assert world.outbox.outcome(update) in ("coalesced", "applied")


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES[1:])
def test_reindex_that_loses_all_indexes_at_some_step_is_begun_anew_by_the_same_command(
    world: World, phase: str
) -> None:
    world.filled()
    steps = world.steps({})
    while next(steps).phase != phase:
        pass
    steps.close()
    all_of_it(world)
    world.save(1, "waits")
    world.rebuild()
    assert [each.state for each in jobs.every(world.store)][-1] == "done"
    assert_in_step(world, THIRD)


def test_live_index_that_is_lost_while_the_new_one_is_filled_holds_up_nothing(world: World) -> None:
    world.filled()

    def lose() -> None:
        world.place.destination.drop_index(FIRST)
        world.save(1, "waits")

    world.rebuild({"scan": lose})
    assert len(jobs.every(world.store)) == 1
    assert_in_step(world)


def test_part_of_a_lost_index_is_refused_with_the_command_that_makes_all_of_it(world: World) -> None:
    world.filled()
    all_of_it(world)
    for part in ({"in_place": True}, {"tenant": "t1"}, {"since": "2020-01-01"}):
        with pytest.raises(ReindexFailed, match="run 'outbox-relay reindex --entity contacts' with no other option"):
            world.rebuild(**part)
    assert jobs.every(world.store) == []


def test_options_for_the_old_index_do_no_harm_where_it_is_lost(world: World) -> None:
    world.filled()
    all_of_it(world)
    world.rebuild(keep_old=True)
    assert_in_step(world)
    all_of_it(world)
    world.rebuild(adopt=True)
    assert_in_step(world, THIRD)
    assert world.store.routes()[1] == {}


def test_kept_index_takes_the_place_of_a_live_one_that_is_lost(world: World) -> None:
    world.filled()
    world.rebuild(keep_old=True)
    world.place.destination.drop_index(SECOND)
    world.save(1, "waits")
    with pytest.raises(ReindexFailed, match="'--rollback' first"):
        world.rebuild()
    assert roll_back(world.store, world.place.destination, "contacts") == (FIRST, 0)
    assert_in_step(world, FIRST)
    world.rebuild()
    assert_in_step(world, THIRD)


@pytest.mark.parametrize("given_up", [True, False])
def test_kept_index_that_is_lost_with_the_live_one_is_in_nobodys_way(world: World, given_up: bool) -> None:
    world.filled()
    world.rebuild(keep_old=True)
    all_of_it(world)
    if given_up:
        assert drop_old(world.store, world.place.destination, "contacts") == FIRST
    world.rebuild()
    assert_in_step(world, THIRD)


@pytest.mark.parametrize("ends", ["cancelled", "fails"])
def test_reindex_of_a_lost_index_that_ends_early_can_be_begun_anew(
    world: World, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.filled()
    all_of_it(world)
    steps = world.steps({})
    while next(steps).phase != "sweep":
        pass
    if ends == "cancelled":
        steps.close()
        assert "is cancelled" in world.reindexer().cancel(world.job.id)
    else:
        monkeypatch.setattr("outbox.reindex.steps._differing", lambda _: ["c1"])
        with pytest.raises(ReindexFailed, match="differs from the database in 'c1'"):
            list(steps)
        monkeypatch.undo()
    world.save(1, "after")
    world.rebuild()
    assert_in_step(world, THIRD)


def test_reindex_killed_while_readers_get_the_new_index_is_resumed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.filled()
    all_of_it(world)
    world.save(1, "waits")
    swap = world.place.destination.swap
    monkeypatch.setattr(world.place.destination, "swap", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        world.rebuild()
    assert (world.store.targets()["contacts"], world.readers()) == (SECOND, ())
    monkeypatch.setattr(world.place.destination, "swap", swap)
    world.rebuild()
    assert len(jobs.every(world.store)) == 1
    assert_in_step(world)


def test_new_index_that_nobody_reads_is_removed_when_its_reindex_is_cancelled(world: World) -> None:
    world.filled()
    all_of_it(world)
    steps = world.steps({})
    while next(steps).phase != "scan":
        pass
    steps.close()
    world.reindexer().cancel(world.job.id)
    assert (world.place.indexes(), world.store.targets()["contacts"]) == ([], FIRST)
    world.rebuild()
    assert_in_step(world, str(world.job.new_index))


def test_index_whose_readers_get_another_one_is_not_taken_for_lost(world: World) -> None:
    world.filled()
    world.place.destination.create_index("others", {}, {})
    world.place.destination.swap("contacts", FIRST, "others")
    world.place.destination.drop_index(FIRST)
    with pytest.raises(ReindexFailed, match="its readers get others; run 'outbox-relay epoch advance'"):
        world.rebuild()


def test_verification_finds_every_document_missing_and_repairs_none_of_them(world: World) -> None:
    world.filled()
    all_of_it(world)
    verification = Verification(world.store, world.place.destination, world.registry, repair=True)
    list(verification.run())
    assert verification.totals.found == {DriftKind.MISSING: 5}
    assert lost(world.store, world.place.destination, ["contacts"]) == ["contacts"]
    assert world.outbox.counts()["pending"] == 0  # rows would wait until there is an index
    world.rebuild()
    verification = Verification(world.store, world.place.destination, world.registry)
    list(verification.run())
    assert verification.totals.drift == 0
    assert lost(world.store, world.place.destination, ["contacts"]) == []


@pytest.mark.parametrize("place", [pytest.param("elasticsearch", marks=pytest.mark.elasticsearch)], indirect=True)
def test_index_that_a_write_has_made_anew_without_its_mappings_is_replaced(world: World) -> None:
    """Elasticsearch makes an index for whoever writes to one that is missing; a relay looks every few seconds only."""
    world.filled()
    node_of(world).request("DELETE", f"/{FIRST}")
    world.save(1, "while nobody has looked")
    world.deliver()
    assert (world.place.indexes(), world.readers()) == ([FIRST], ())
    look_again(world)
    world.save(2, "waits")
    world.deliver()
    assert world.outbox.counts()["pending"] == 1
    world.rebuild()
    assert_in_step(world)
    assert world.place.indexes() == [SECOND]

"""A reindex whose process was killed is gone on with by a relay that runs, while rows flow; real processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.destinations.cluster.destination import ClusterDestination
from outbox.store import jobs
from outbox.store.models import now_ms
from tests.reindex.world import SECOND, World
from tests.support import LIMIT_S
from tests.support.node import Node
from tests.support.outbox import Outbox
from tests.support.places import ClusterPlace
from tests.support.proxy import FaultProxy, Request, hold_answer
from tests.support.relays import Relays, until

pytestmark = pytest.mark.elasticsearch

ROWS = 200

registry = World.registered(tenancy="prefixed")


@pytest.fixture
def world(
    outbox: Outbox, destination: ClusterDestination, node: Node, proxy: FaultProxy, relays: Relays
) -> Iterator[World]:
    made = World(outbox, ClusterPlace(destination, node, proxy)).filled(ROWS)
    relays.give(
        OUTBOX_ENTITIES=f"{__name__}:registry", PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    )
    yield made
    made.store.close()


def killed_in_its_scan(world: World, relays: Relays) -> None:
    reindex = relays.start("--entity", "contacts", "--rate", "5", command="reindex")
    until(lambda: jobs.every(world.store) and world.job.documents, "the scan is under way")
    reindex.kill()
    reindex.wait()
    assert (world.job.state, world.job.phase) == ("running", "scan")


def test_running_relay_goes_on_with_a_reindex_that_was_killed_and_rows_flow_on(world: World, relays: Relays) -> None:
    relays.start()
    killed_in_its_scan(world, relays)
    before = world.job.documents
    world.save(1, "meanwhile")
    world.delete(2)
    until(lambda: not world.job.is_open, "the relay ends it")
    assert (world.job.id, world.job.state) == (1, "done")
    assert 0 < before < world.job.documents
    until(lambda: not world.outbox.counts()["pending"], "the rows are delivered")
    world.assert_in_step()
    assert world.place.indexes() == [SECOND]
    log = relays.log(0)
    assert "reindex 1 of contacts (into contacts-000002) was left at step 'scan' by" in log
    assert "reindex 1 of contacts (into contacts-000002) is done" in log


def test_relay_that_is_told_to_end_leaves_the_reindex_to_the_next(
    world: World, relays: Relays, proxy: FaultProxy
) -> None:
    killed_in_its_scan(world, relays)

    def of_the_new_index(request: Request) -> bool:
        return request.is_bulk and SECOND.encode() in request.body

    proxy.on(of_the_new_index, hold_answer, times=1)
    first = relays.start(OUTBOX_REQUEST_TIMEOUT="50")
    proxy.wait_held()
    first.terminate()
    proxy.release()
    assert first.wait(LIMIT_S) == 0
    assert world.job.is_open
    assert [job.id for job in jobs.orphans(world.store, now_ms())] == [1]
    assert "left to the next relay" in relays.log(1)
    relays.start()
    relays.start()  # only one of them gets it
    until(lambda: not world.job.is_open, "one of the next ends it")
    world.assert_in_step()
    assert [relays.log(n).count("resumes it") for n in (2, 3)] in ([0, 1], [1, 0])


def test_reindex_that_somebody_works_on_or_gave_up_is_left_alone(world: World, relays: Relays) -> None:
    steps = world.steps({})
    while next(steps).phase != "scan":
        pass
    relays.start(OUTBOX_REAP_INTERVAL="0.1")
    until(lambda: world.outbox.relays(), "the relay runs")
    world.save(1, "seen by the relay")
    until(lambda: not world.outbox.counts()["pending"], "it has looked around")
    token = world.job.lease_token
    steps.close()
    world.save(2, "seen by the relay")
    until(lambda: not world.outbox.counts()["pending"], "it has looked around again")
    assert token is not None
    assert (world.job.state, world.job.lease_token) == ("running", None)
    assert "resumes it" not in relays.log(0)


def test_relay_that_is_not_to_resume_does_not(world: World, relays: Relays) -> None:
    killed_in_its_scan(world, relays)
    relays.start(OUTBOX_RESUME_REINDEX="false", OUTBOX_REAP_INTERVAL="0.1")
    world.save(1, "seen by the relay")
    until(lambda: not world.outbox.counts()["pending"], "it has looked around")
    assert jobs.orphans(world.store, now_ms())
    assert world.job.lease_holder is not None
    assert f"pid {relays.started[0].pid}" in world.job.lease_holder


def test_reindex_that_was_killed_before_anybody_worked_on_it_is_no_exception(world: World) -> None:
    job = jobs.begin(
        world.store,
        "contacts",
        "contacts-000001",
        SECOND,
        tenant=None,
        since=None,
        keep_old=False,
        adopt=False,
        total=ROWS,
        holder="killed right after",
        now=now_ms(),
        lease_ms=60_000,
    )
    assert not jobs.is_abandoned(world.store, job, now_ms())  # it is taken from its first moment on
    assert jobs.orphans(world.store, now_ms()) == []
    assert jobs.orphans(world.store, now_ms() + 60_001) == [job]

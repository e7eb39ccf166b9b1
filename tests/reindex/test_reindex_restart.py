"""A delete that Elasticsearch has forgotten for sure: short `gc_deletes`, and the node restarted in between; and what a
killed process has asked of it, which comes late."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from outbox.reindex.reindexer import reindex
from tests.reindex.faults import after_reading
from tests.reindex.world import FIRST, SECOND, World
from tests.support.node import Node, destination_to
from tests.support.outbox import Outbox
from tests.support.places import ClusterPlace
from tests.support.proxy import FaultProxy, Reply, Request

pytestmark = pytest.mark.elasticsearch

GC_DELETES_S = 1


@pytest.fixture
def world(outbox: Outbox, node: Node, proxy: FaultProxy) -> Iterator[World]:
    """Its indexes remember deletes for one second."""
    if node.directory is None:
        pytest.skip("a given node cannot be restarted")
    destination = destination_to(proxy.url, request_timeout=20, gc_deletes=f"{GC_DELETES_S}s")
    made = World(outbox, ClusterPlace(destination, node, proxy))
    yield made
    made.store.close()
    destination.close()


def test_document_that_is_deleted_after_it_was_read_does_not_come_back(world: World, node: Node) -> None:
    world.filled(3)

    def delete_and_forget() -> None:
        world.delete(2)
        world.deliver()
        for index in (FIRST, SECOND):
            node.request("POST", f"/{index}/_flush?force=true")  # nothing of it is replayed
        time.sleep(GC_DELETES_S)
        node.restart()

    seen = {}
    with after_reading(delete_and_forget):
        for progress in reindex(world.store, world.place.destination, world.registry, entities=["contacts"]):
            world.deliver()
            if progress.phase == "sweep" and not seen:  # as it begins
                seen = node.documents(SECOND)
    assert set(seen) == {"2:t1:1", "2:t1:2", "2:t1:3"}, "the page of the scan has brought it back"
    assert world.job.removed == 1
    world.assert_in_step()
    assert set(world.place.documents("contacts")) == {"2:t1:1", "2:t1:3"}


def test_index_that_a_killed_process_has_made_meanwhile_is_made_anew(
    world: World, proxy: FaultProxy, node: Node
) -> None:
    world.filled(3)

    def makes_it(request: Request) -> bool:
        return request.method == "PUT" and request.path.partition("?")[0] == f"/{SECOND}"

    def late(proxy: FaultProxy, request: Request) -> Reply:
        assert (
            node.request("PUT", f"/{SECOND}", {"mappings": {"properties": {"of_the_late_one": {"type": "long"}}}})[0]
            == 200
        )
        return proxy.forward(request)

    proxy.on(makes_it, late, times=1)
    world.rebuild()
    assert world.job.state == "done"
    world.assert_in_step()
    assert "of_the_late_one" not in node.request("GET", f"/{SECOND}/_mapping")[1][SECOND]["mappings"]["properties"]

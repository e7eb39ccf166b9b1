"""A delete that Elasticsearch has forgotten for sure: short `gc_deletes`, and the node restarted in between; what a
killed process has asked of it, which comes late; and a listing that it has lost its place in."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from outbox.errors import ReindexFailed
from outbox.reindex import steps
from outbox.reindex.reindexer import reindex
from tests.reindex.faults import after_reading
from tests.reindex.world import FIRST, SECOND, World
from tests.support.node import Node, destination_to
from tests.support.outbox import Outbox
from tests.support.places import ClusterPlace
from tests.support.proxy import Action, FaultProxy, Reply, Request, rewrite

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


# -- a listing that is lost ----------------------------------------------------------------------------------------


def asks_for_the_second_page(request: Request) -> bool:
    return b"search_after" in request.body or (request.method == "POST" and "/_search/scroll" in request.path)


def lose_the_place(proxy: FaultProxy, request: Request) -> Reply:
    """As a node that is restarted does, or one that has waited for too long."""
    asked, headers = json.loads(request.body), {"Content-Type": "application/json"}
    path, place = ("/_pit", {"id": asked["pit"]["id"]}) if "pit" in asked else ("/_search/scroll", asked)
    place.pop("scroll", None)
    assert proxy.forward(Request("DELETE", path, headers, json.dumps(place).encode())).status == 200
    answer = proxy.forward(request)
    assert answer.status == 404
    return answer


def lose_a_shard(proxy: FaultProxy, request: Request) -> Reply:
    def failed(answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "_shards": {"failed": 1}}

    return rewrite(failed)(proxy, request)


@pytest.mark.parametrize("lose", [lose_the_place, lose_a_shard])
@pytest.mark.parametrize("in_place", [False, True])
def test_listing_that_a_node_has_lost_is_begun_anew_in_smaller_pages(
    world: World, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, lose: Action, in_place: bool
) -> None:
    monkeypatch.setattr(steps, "LISTED_ROWS", 4)
    monkeypatch.setattr(steps, "FEWEST_LISTED", 2)
    world.filled(7)
    world.outbox.raw("DELETE FROM contacts WHERE id = 7")
    world.rebuild({"sweep": lambda: proxy.on(asks_for_the_second_page, lose, times=1)}, in_place=in_place)
    world.assert_in_step(FIRST if in_place else SECOND)
    assert world.job.state == "done"
    sizes = dict.fromkeys(json.loads(each.body)["size"] for each in proxy.requests if b'"size":' in each.body)
    assert [size for size in sizes if size in (4, 2)] == [4, 2]


def test_index_that_is_deleted_while_it_is_listed_ends_the_reindex_of_a_part(
    world: World, proxy: FaultProxy, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "LISTED_ROWS", 4)
    world.filled(7)

    def delete_it(proxy: FaultProxy, request: Request) -> Reply:
        node.delete_index(FIRST)
        return proxy.forward(request)

    with pytest.raises(ReindexFailed, match=f"index {FIRST} is lost"):
        world.rebuild({"sweep": lambda: proxy.on(asks_for_the_second_page, delete_it, times=1)}, in_place=True)

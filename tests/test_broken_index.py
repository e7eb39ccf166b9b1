"""Indexes that take nothing, made so as it happens in life; rows of their neighbours must not notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from outbox.cli import main
from outbox.destinations.cluster.destination import ClusterDestination
from outbox.store import operators
from outbox.store.models import now_ms
from tests.support.node import TESTED, Node, destination_to
from tests.support.outbox import Outbox
from tests.support.proxy import FaultProxy, Request, hold
from tests.support.relays import Relays, until

pytestmark = pytest.mark.elasticsearch

SECOND = 1_000


def writes_to(index: str) -> Callable[[Request], bool]:
    def matches(request: Request) -> bool:
        return request.is_bulk and f'"{index}"'.encode() in request.body

    return matches


def test_red_index_holds_its_rows_and_another_flows_while_it_is_tried(
    outbox: Outbox, relays: Relays, proxy: FaultProxy, node: Node
) -> None:
    nowhere = {"index.routing.allocation.require._name": "nowhere"}
    red = {"settings": nowhere, "aliases": {"contacts": {}}}
    node.request("PUT", "/contacts-000001?wait_for_active_shards=0", red)
    assert node.request("GET", "/_cluster/health/contacts-000001")[1]["status"] == "red"
    relays.start("--concurrency", "2", OUTBOX_BULK_TIMEOUT="1", OUTBOX_REQUEST_TIMEOUT="50")
    held = outbox.index_many("contacts", [(f"c{n}", {"n": n}) for n in range(20)])
    until(lambda: "index contacts takes no rows" in relays.log(), "the relay notices")
    outbox.index("deals", "first", {})

    held_up: list[Request] = []

    def trial(request: Request) -> bool:
        if writes_to("contacts-000001")(request):
            held_up.append(request)
            return True
        return False

    proxy.on(trial, hold)  # a red index keeps each of its trials as long as it likes
    until(lambda: held_up, "it is tried again")
    for n in range(50):
        row = outbox.index("deals", f"d{n}", {})
        until(lambda row=row: outbox.state(row) == "done", "the neighbour's row arrives beside the trial")
    assert len(held_up) == 1  # it is under way still, and no other keeps the second worker busy
    proxy.clear()
    assert {(outbox.state(row), outbox.row(row)["attempts"]) for row in held} <= {("pending", 0), ("claimed", 0)}
    assert "destination unreachable" not in relays.log()

    node.request("PUT", "/contacts-000001/_settings", {"index.routing.allocation.require._name": None})
    until(lambda: {outbox.state(row) for row in held} == {"done"}, "the rows arrive when the index is mended")
    assert len(node.documents("contacts")) == 20
    assert relays.log().count("index contacts takes no rows") == 1


@pytest.fixture
def full_disk(node: Node) -> Iterator[None]:
    """The node's own disk monitor finds less room than it wants, until the test asks for less."""
    watermark = "cluster.routing.allocation.disk.watermark."
    wanted = {f"{watermark}{name}": "900pb" for name in ("low", "high", "flood_stage")}
    monitor = {"cluster.routing.allocation.disk.threshold_enabled": True, "cluster.info.update.interval": "10s"}
    node.request("PUT", "/_cluster/settings", {"persistent": monitor})
    yield node.request("PUT", "/_cluster/settings", {"persistent": wanted})
    room_again(node)
    # OpenSearch lets nobody create an index meanwhile, and only the monitor, while it runs, takes that back.
    until(lambda: "global" not in node.request("GET", "/_cluster/state/blocks")[1]["blocks"], "an index can be made")
    node.request("PUT", "/_cluster/settings", {"persistent": dict.fromkeys([*wanted, *monitor])})


def room_again(node: Node) -> None:
    watermark = "cluster.routing.allocation.disk.watermark."
    little = {f"{watermark}{name}": "1b" for name in ("low", "high", "flood_stage")}
    node.request("PUT", "/_cluster/settings", {"persistent": little})


@pytest.mark.slow
def test_disk_monitor_that_blocks_and_frees_indexes_delays_rows_and_kills_none(
    outbox: Outbox, relays: Relays, node: Node, request: pytest.FixtureRequest
) -> None:
    relays.start()
    outbox.index("contacts", "c0", {})
    until(lambda: outbox.counts()["done"] == 1, "the first row arrives")
    request.getfixturevalue("full_disk")
    blocked = "/contacts-000001/_settings/index.blocks.read_only_allow_delete"
    until(lambda: node.request("GET", blocked)[1], "the monitor blocks the index")
    held = [outbox.index("contacts", "c1", {}), outbox.delete("contacts", "c0")]
    until(lambda: "index contacts takes no rows" in relays.log(), "the relay notices")
    until(lambda: outbox.row(held[0])["deliveries"] > 2, "it tries again now and then")
    assert [outbox.row(row)["attempts"] for row in held] == [0, 0]
    assert outbox.counts()["dead"] == 0

    room_again(node)
    until(lambda: {outbox.state(row) for row in held} == {"done"}, "the monitor frees the index")
    assert set(node.documents("contacts")) == {"c1"}
    assert relays.log().count("index contacts takes no rows") == 1


def test_closed_index_of_one_tenant_holds_no_other_tenant(
    outbox: Outbox, destination: ClusterDestination, node: Node, proxy: FaultProxy
) -> None:
    tenants = ["t1", "t2", "t3"]
    for tenant in tenants:
        outbox.index(f"{tenant}_contacts", "c0", {}, tenant_id=tenant)
    outbox.drain(destination)
    node.request("POST", "/t1_contacts/_close")
    relay, now = outbox.relay(destination, batch_rows=6), now_ms()
    held: list[int] = []
    proxy.requests.clear()
    for n in range(12):  # its rows are the oldest, and more than a batch
        held += [outbox.index("t1_contacts", f"c{n}-{m}", {}, tenant_id="t1") for m in range(4)]
        flowing = [outbox.index(f"{tenant}_contacts", f"c{n}", {}, tenant_id=tenant) for tenant in tenants[1:]]
        now += SECOND
        relay.run_once(now)
        relay.run_once(now)
        assert [outbox.state(row) for row in flowing] == ["done", "done"]
    assert {(outbox.state(row), outbox.row(row)["attempts"]) for row in held} == {("pending", 0)}
    assert [(each["scope"], each["index"]) for each in relay.breakers()] == [("index", "t1_contacts")]

    asked = sum(map(writes_to("t1_contacts-000001"), proxy.requests))
    assert asked <= 6  # when it was noticed, and after pauses of 1, 2, 4 and 8 s

    node.request("POST", "/t1_contacts-000001/_open")
    node.request("GET", "/_cluster/health/t1_contacts-000001?wait_for_status=yellow")
    while relay.run_once(now + 60 * SECOND):
        pass
    assert {outbox.state(row) for row in held} == {"done"}
    assert len(node.documents("t1_contacts")) == 49


def closed(node: Node) -> None:
    node.request("POST", "/contacts-000001/_close")


def write_blocked(node: Node) -> None:
    node.request("PUT", "/contacts-000001/_settings", {"index.blocks.write": True})


def at_flood_stage(node: Node) -> None:
    node.request("PUT", "/contacts-000001/_settings", {"index.blocks.read_only_allow_delete": True})


def open_again(node: Node) -> None:
    node.request("POST", "/contacts-000001/_open")
    node.request("GET", "/_cluster/health/contacts-000001?wait_for_status=yellow")


def mend(node: Node) -> None:
    open_again(node)
    for block in ("write", "read_only_allow_delete"):  # OpenSearch takes the second back where a request says only that
        status, answer = node.request("PUT", "/contacts-000001/_settings", {f"index.blocks.{block}": None})
        assert status == 200 or block == "write", answer


def test_short_trouble_of_an_index_delays_its_rows_by_the_first_pause_only(
    outbox: Outbox, destination: ClusterDestination, node: Node
) -> None:
    outbox.index("contacts", "c0", {})
    outbox.drain(destination)
    closed(node)
    relay, now = outbox.relay(destination), now_ms()
    rows = outbox.index_many("contacts", [(f"c{n}", {}) for n in range(5)])
    relay.run_once(now)
    assert relay.breakers()
    open_again(node)
    while relay.run_once(now + 2 * SECOND):
        pass
    assert {outbox.state(row) for row in rows} == {"done"}


def test_rows_that_prove_nothing_do_not_hold_up_an_index_that_is_mended(
    outbox: Outbox, destination: ClusterDestination, node: Node
) -> None:
    """The first rows to be tried are refused by the mapping, or already there: neither says that the index is back."""
    outbox.index("contacts", "c0", {"n": 1})
    outbox.drain(destination)
    there = outbox.index_many("contacts", [(f"there-{n}", {"n": n}) for n in range(5)])
    outbox.drain(destination)
    outbox.raw("UPDATE outbox_events SET state = 'pending', finished_at = NULL, available_at = 1 WHERE id > 1")
    bad = outbox.index_many("contacts", [(f"bad-{n}", {"n": "no number"}) for n in range(5)])
    good = outbox.index("contacts", "good", {"n": 1})
    closed(node)
    relay, now = outbox.relay(destination), now_ms()
    relay.run_once(now)
    open_again(node)
    while relay.run_once(now + 60 * SECOND):
        pass
    states = [{outbox.state(row) for row in rows} for rows in (there, bad, [good])]
    assert states == [{"done"}, {"dead"}, {"done"}]


def test_reason_of_a_paused_index_is_what_its_last_trial_said(
    outbox: Outbox, destination: ClusterDestination, node: Node
) -> None:
    outbox.index("contacts", "c0", {})
    outbox.drain(destination)
    closed(node)
    outbox.index_many("contacts", [(f"c{n}", {}) for n in range(5)])
    relay, now = outbox.relay(destination), now_ms()
    for seconds in (0, 40, 80):
        relay.run_once(now + seconds * SECOND)
        (paused,) = relay.breakers()
        assert paused["reason"].startswith("index_closed_exception")
    pauses = paused["next_probe"] - (now + 80 * SECOND)
    assert pauses >= 3 * SECOND  # 1, 2, 4 s, less a quarter


@pytest.mark.parametrize("broken", [closed, write_blocked, at_flood_stage])
def test_broken_index_holds_only_its_own_rows(
    outbox: Outbox, destination: ClusterDestination, node: Node, broken: Any
) -> None:
    outbox.index("contacts", "c1", {})
    outbox.drain(destination)
    broken(node)
    held = outbox.index_many("contacts", [("c2", {}), ("c3", {})])
    flowing = outbox.index_many("deals", [("d1", {}), ("d2", {})])
    relay, now = outbox.relay(destination), now_ms()
    while relay.run_once(now):
        pass
    assert [outbox.state(row) for row in flowing] == ["done", "done"]
    assert [(outbox.state(row), outbox.row(row)["attempts"]) for row in held] == [("pending", 0)] * 2
    assert [(b["scope"], b["index"]) for b in relay.breakers()] == [("index", "contacts")]
    outbox.index("contacts", "c4", {})
    more = outbox.index("deals", "d3", {})
    while relay.run_once(now + 1):
        pass
    assert outbox.state(more) == "done"
    mend(node)
    while relay.run_once(now + 60 * SECOND):
        pass
    assert set(node.documents("contacts")) == {"c1", "c2", "c3", "c4"}
    assert relay.breakers() == []


def test_missing_index_is_not_created_anew_behind_its_alias(
    outbox: Outbox, proxy: FaultProxy, node: Node, destination: ClusterDestination
) -> None:
    outbox.index("contacts", "c1", {})
    outbox.drain(destination)
    node.request("DELETE", "/contacts-000001")
    fresh = destination_to(proxy.url, request_timeout=30)  # has not looked at the index yet
    rows = [outbox.delete("contacts", "c1"), outbox.index("contacts", "c2", {})]
    flowing = outbox.index("deals", "d1", {})
    outbox.drain(fresh)
    fresh.close()
    assert [outbox.state(row) for row in [*rows, flowing]] == ["pending", "pending", "done"]
    assert node.indexes() == ["deals-000001"]


def test_index_that_the_cluster_made_anew_is_as_good_as_missing(
    outbox: Outbox, proxy: FaultProxy, node: Node, destination: ClusterDestination
) -> None:
    node.request("PUT", "/contacts", {"mappings": {"properties": {"name": {"type": "keyword"}}}})
    outbox.index("contacts", "c1", {"name": "Ada"})
    outbox.drain(destination)
    node.request("DELETE", "/contacts")
    unseen = outbox.index("contacts", "c2", {"name": "Ada"})  # before the relay looks again
    outbox.drain(destination)
    assert outbox.state(unseen) == "done"
    fresh = destination_to(proxy.url, request_timeout=30)
    row, flowing = outbox.index("contacts", "c3", {"name": "Ada"}), outbox.index("deals", "d1", {})
    relay = outbox.relay(fresh)
    while relay.run_once():
        pass
    assert (outbox.state(row), outbox.state(flowing)) == ("pending", "done")
    (breaker,) = relay.breakers()
    assert "contacts has no setting index.gc_deletes: it was deleted, and made anew" in breaker["reason"]
    fresh.close()


def test_index_that_somebody_made_in_place_of_a_lost_one_is_prepared_when_rows_are_sent_there(
    outbox: Outbox, node: Node, destination: ClusterDestination
) -> None:
    outbox.index("contacts", "c1", {})
    outbox.drain(destination)
    node.request("DELETE", "/contacts-000001")
    node.request("PUT", "/contacts-by-hand", {"aliases": {"contacts": {}}})
    row = outbox.index("contacts", "c2", {})
    told = CliRunner().invoke(
        main, ["epoch", "advance", "--yes", "--database-url", outbox.url], env=TESTED.settings(node.url)
    )
    assert "rows of index contacts go to contacts-by-hand now" in told.stdout
    outbox.drain(destination)
    assert outbox.state(row) == "done"
    assert set(node.documents("contacts")) == {"c2"}


def test_alias_on_two_indexes_is_blocked_and_said(outbox: Outbox, destination: ClusterDestination, node: Node) -> None:
    for name in ("a", "b"):
        node.request("PUT", f"/{name}", {"aliases": {"contacts": {}}})
    row = outbox.index("contacts", "c1", {})
    relay = outbox.relay(destination)
    relay.run_once()
    assert outbox.state(row) == "pending"
    assert "points to 2 indexes" in relay.breakers()[0]["reason"]


@pytest.mark.parametrize("remove", ["purge", "another relay"])
def test_broken_index_without_rows_is_no_longer_waited_for(
    outbox: Outbox, destination: ClusterDestination, node: Node, remove: str
) -> None:
    outbox.index("contacts", "c1", {})
    outbox.drain(destination)
    closed(node)
    outbox.index("contacts", "c2", {})
    relay, now = outbox.relay(destination), now_ms()
    relay.run_once(now)
    assert relay.breakers()
    relay.run_once(now + 60 * SECOND)  # the trial fails, its row waits
    assert relay.breakers()
    if remove == "purge":
        operators.purge(outbox.store(), operators.pending(outbox.store(), index="contacts"))
    else:
        mend(node)
        outbox.drain(destination, now + 600 * SECOND)
    relay.run_once(now + 600 * SECOND)
    assert relay.breakers() == []


def test_broken_index_whose_rows_wait_is_still_waited_for(
    outbox: Outbox, destination: ClusterDestination, node: Node
) -> None:
    outbox.index("contacts", "c1", {})
    outbox.drain(destination)
    closed(node)
    row = outbox.index("contacts", "c2", {})
    relay, now = outbox.relay(destination), now_ms()
    relay.run_once(now)
    for state in ("claimed", "pending"):
        outbox.raw(
            "UPDATE outbox_events SET state = :state, claim_token = 'another relay', lease_expires_at = :later,"
            " available_at = :later WHERE id = :row",
            state=state, later=now + 20 * SECOND, row=row,
        )  # fmt: skip
        relay.run_once(now + 10 * SECOND)
        assert relay.breakers()

"""Documents that make the destination hang or cut the connection, and outages that only look like them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox.destinations.cluster.destination import ClusterDestination
from outbox.relay.poison import PoisonDetector
from outbox.relay.relay import Relay
from outbox.store import claims, operators, upkeep
from outbox.store.claims import Claim
from outbox.store.models import now_ms
from tests.support.node import Node, destination_to
from tests.support.outbox import Outbox
from tests.support.proxy import PRODUCT, FaultProxy, Reply, Request, anything, bulk, hang, refuse, reply, swallow
from tests.support.relays import Relays, until

SECOND = 1_000
JUST = 100
POISON = {"text": "poisonous"}


def poisonous(request: Request) -> bool:
    return request.is_bulk and b"poisonous" in request.body


def operations(request: Request) -> int:
    return request.body.count(b'"_id"')


def answer_each(status: int, error_type: str) -> Any:
    """The same error for each operation; the node sees nothing."""

    def action(_proxy: FaultProxy, request: Request) -> Reply:
        lines = [json.loads(line) for line in request.body.splitlines()[::2]]
        error = {"status": status, "error": {"type": error_type, "reason": "provoked"}}
        items = [{"index": {"_id": line["index"]["_id"], **error}} for line in lines]
        return Reply(200, PRODUCT, json.dumps({"errors": True, "items": items}).encode())

    return action


@pytest.fixture
def impatient(proxy: FaultProxy) -> Iterator[ClusterDestination]:
    """For a test in which it makes no difference whether a request hangs or only takes too long."""
    made = destination_to(proxy.url, request_timeout=0.4)
    yield made
    made.close()


class Clock:
    """Relays that take turns while time goes on, a second a round."""

    def __init__(self, *relays: Relay) -> None:
        self.relays, self.now = relays, now_ms()

    def rounds(self, number: int) -> None:
        for _ in range(number):
            self.now += SECOND
            for relay in self.relays:
                while relay.run_once(self.now):
                    pass


@pytest.mark.elasticsearch
@pytest.mark.parametrize("fault", [refuse, swallow, hang])
def test_document_that_gets_no_answer_dies_alone_and_200_good_ones_arrive(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy, fault: Any, request: Any
) -> None:
    # Twenty requests hang, one after another; none of the others may take as long.
    made = destination_to(proxy.url, request_timeout=1.5 if fault is hang else 30)
    request.addfinalizer(made.close)
    outbox.index("contacts", "first", {"n": 0})
    outbox.drain(destination)
    documents = [(f"c{n}", POISON if n == 20 else {"n": n}) for n in range(201)]
    rows = outbox.index_many("contacts", documents)
    poison = rows.pop(20)
    proxy.on(poisonous, fault)
    clock = Clock(*(outbox.relay(made, n, lone_after=4, breaker_longest_pause=4) for n in (1, 2)))
    clock.rounds(60)
    assert {outbox.state(row) for row in rows} == {"done"}
    assert max(outbox.row(row)["deliveries"] for row in rows) <= 8
    assert outbox.state(poison) == "pending"  # others were applied before, but none since

    late: list[int] = []
    while outbox.state(poison) == "pending":
        late.append(outbox.index("contacts", f"late-{len(late)}", {}))
        clock.rounds(1)
        assert len(late) < 60
    dead = outbox.row(poison)
    assert (dead["state"], dead["attempts"], dead["error_type"]) == ("dead", 0, "poison")
    assert f"dead discard {poison}" in dead["error"]
    clock.rounds(5)
    assert {outbox.state(row) for row in late} == {"done"}


@pytest.mark.elasticsearch
def test_row_that_fails_alone_dies_only_after_two_failures_between_rows_that_were_applied(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy, node: Node
) -> None:
    poison = outbox.index("contacts", "c1", POISON)
    proxy.on(poisonous, refuse)
    relay = outbox.relay(destination, lone_after=2, breaker_longest_pause=4)
    clock = Clock(relay)

    def failures_alone() -> int:
        return sum(poisonous(request) for request in proxy.requests)

    def fails_alone_again() -> bool:
        before = failures_alone()
        clock.rounds(5)
        tries = failures_alone() - before  # its own pause is 4 s
        return outbox.state(poison) == "pending" and tries in (1, 2)

    clock.rounds(5)
    later = outbox.index("contacts", "c1", {"n": 2})  # waits: it is claimed neither before that row nor with it
    outbox.index("deals", "d1", {})
    assert fails_alone_again()
    outbox.index("deals", "d2", {})  # a row of another index proves nothing
    assert fails_alone_again()
    assert outbox.state(later) == "pending"

    outbox.index("contacts", "before", {})
    assert fails_alone_again()
    outbox.index("contacts", "between", {})
    assert fails_alone_again()  # the first one that counts
    sent = failures_alone()
    outbox.index("contacts", "after", {})
    clock.rounds(5)
    assert (outbox.state(poison), outbox.row(poison)["error_type"]) == ("dead", "poison")
    assert failures_alone() == sent  # its end is not another delivery
    assert outbox.outcome(later) == "applied"
    assert node.get("contacts", "c1") == {"n": 2}
    assert relay.totals.dead == 1


@pytest.mark.elasticsearch
@pytest.mark.parametrize("fault", [refuse, reply(503), hang])
def test_outage_of_everything_kills_nothing_however_often_it_is_tried(
    outbox: Outbox, impatient: ClusterDestination, proxy: FaultProxy, fault: Any
) -> None:
    clock = Clock(*(outbox.relay(impatient, n, lone_after=2, breaker_longest_pause=1) for n in (1, 2)))
    rows = [outbox.index("contacts", "first", {})]
    clock.rounds(1)
    for outage in range(2):
        rows += outbox.index_many("contacts", [(f"c{outage}-{n}", {"n": n}) for n in range(10)])
        proxy.on(anything, fault)
        clock.rounds(6)
        assert max(outbox.row(row)["deliveries"] for row in rows) > 2  # they are tried alone by now
        proxy.clear()
        clock.rounds(2)  # not enough for all of them, before the next outage
    clock.rounds(60)
    assert {outbox.state(row) for row in rows} == {"done"}
    assert {outbox.row(row)["attempts"] for row in rows} == {0}


@pytest.mark.elasticsearch
def test_outage_that_begins_whenever_a_certain_row_is_sent_kills_nothing(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
) -> None:
    row = outbox.index("contacts", "c1", POISON)
    clock = Clock(outbox.relay(destination, lone_after=2, breaker_longest_pause=1))
    outages: list[int] = []

    def fails(request: Request) -> bool:
        if poisonous(request):
            outages.append(clock.now + 2 * SECOND)
        return bool(outages) and clock.now <= outages[-1]

    proxy.on(fails, refuse)
    goods = []
    for n in range(30):
        goods.append(outbox.index("contacts", f"good-{n}", {}))
        clock.rounds(3)
    assert len(outages) > 5
    assert outbox.state(row) == "pending"
    proxy.clear()
    clock.rounds(10)
    assert {outbox.state(each) for each in [row, *goods]} == {"done"}


@pytest.mark.elasticsearch
def test_data_node_without_answers_behind_a_healthy_master_kills_nothing_and_other_indexes_arrive(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
) -> None:
    outbox.index("contacts", "first", {})
    outbox.index("deals", "first", {})
    clock = Clock(outbox.relay(destination, lone_after=2, breaker_longest_pause=1))
    clock.rounds(1)
    proxy.on(lambda request: request.is_bulk and b'"contacts-000001"' in request.body, refuse)
    held = outbox.index_many("contacts", [(f"c{n}", {}) for n in range(5)])
    flowing = outbox.index_many("deals", [(f"d{n}", {}) for n in range(5)])
    clock.rounds(20)
    flowing.append(outbox.index("deals", "later", {}))
    clock.rounds(20)
    assert {outbox.state(row) for row in flowing} == {"done"}
    assert {outbox.state(row) for row in held} == {"pending"}
    proxy.clear()
    clock.rounds(20)
    assert {outbox.state(row) for row in held} == {"done"}


@pytest.mark.elasticsearch
def test_shard_without_answers_kills_none_of_its_rows_while_other_shards_of_the_index_answer(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
) -> None:
    outbox.index("contacts", "first", {})
    clock = Clock(outbox.relay(destination, lone_after=2, breaker_longest_pause=1))
    clock.rounds(1)
    proxy.on(lambda request: request.is_bulk and b'"_id":"hung-' in request.body, refuse)
    held = outbox.index_many("contacts", [(f"hung-{n}", {}) for n in range(3)])
    flowing = []
    for n in range(20):
        flowing.append(outbox.index("contacts", f"c{n}", {}))
        clock.rounds(2)
    assert {outbox.state(row) for row in held} == {"pending"}
    proxy.clear()
    clock.rounds(20)
    assert {outbox.state(row) for row in [*held, *flowing]} == {"done"}


@pytest.mark.elasticsearch
def test_poisonous_update_dies_alone_and_leaves_the_document_as_it_was(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy, node: Node
) -> None:
    outbox.index("contacts", "c1", {"name": "Ada"})
    clock = Clock(outbox.relay(destination, lone_after=2, breaker_longest_pause=1))
    clock.rounds(1)
    version = node.version("contacts", "c1")
    poison = outbox.update("contacts", "c1", POISON)
    proxy.on(poisonous, refuse)
    for n in range(20):
        outbox.index("contacts", f"good-{n}", {})
        clock.rounds(1)
    assert (outbox.state(poison), outbox.row(poison)["error_type"]) == ("dead", "poison")
    assert (node.get("contacts", "c1"), node.version("contacts", "c1")) == ({"name": "Ada"}, version)
    asked = [request.body for request in proxy.requests if request.is_bulk and b'"version":0,' in request.body]
    assert len(asked) >= 2
    assert all(body.startswith(b'{"delete"') for body in asked)  # a write that reached the document's own shard


@pytest.mark.elasticsearch
def test_dead_poison_that_is_retried_is_sent_alone_again_and_may_succeed(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
) -> None:
    poison = outbox.index("contacts", "c1", POISON)
    proxy.on(poisonous, refuse)
    clock = Clock(outbox.relay(destination, lone_after=2, breaker_longest_pause=1))
    for n in range(20):
        outbox.index("contacts", f"good-{n}", {})
        clock.rounds(1)
    assert outbox.state(poison) == "dead"
    proxy.clear()  # the destination was mended
    operators.retry_dead(outbox.store(), [poison], clock.now)
    outbox.index("contacts", "beside", {})
    clock.rounds(1)
    assert outbox.outcome(poison) == "applied"
    assert [operations(request) for request in proxy.requests if poisonous(request)] == [1]


@pytest.mark.elasticsearch
def test_delivery_that_never_left_does_not_count(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
) -> None:
    rows = outbox.index_many("contacts", [("c1", {}), ("c2", {})])
    proxy.on(anything, refuse)  # the index is unknown, and nobody says where it is
    Clock(outbox.relay(destination, breaker_longest_pause=1)).rounds(10)
    assert len(proxy.requests) > 5
    assert [(outbox.state(row), outbox.row(row)["deliveries"]) for row in rows] == [("pending", 0)] * 2


@pytest.mark.elasticsearch
def test_row_that_was_answered_time_and_again_is_not_sent_alone(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
) -> None:
    outbox.index("contacts", "first", {})
    clock = Clock(outbox.relay(destination, lone_after=2, breaker_longest_pause=1))
    clock.rounds(1)
    rows = outbox.index_many("contacts", [(f"c{n}", {}) for n in range(10)])
    proxy.on(bulk, answer_each(429, "es_rejected_execution_exception"))
    clock.rounds(10)
    assert min(outbox.row(row)["deliveries"] for row in rows) > 2
    proxy.clear()
    clock.rounds(5)
    assert {outbox.state(row) for row in rows} == {"done"}
    assert [operations(request) for request in proxy.requests if request.is_bulk] == [10]


def test_row_whose_relay_died_with_others_in_hand_is_not_blamed_for_the_next_death_alone(outbox: Outbox) -> None:
    """It was answered time and again before: so often that it is sent alone after the first death."""
    rows, store, now = outbox.index_many("contacts", [("c1", {}), ("c2", {})]), outbox.store(), now_ms()
    outbox.raw("UPDATE outbox_events SET deliveries = 20, error_type = 'es_rejected_execution_exception'")

    def claimed(relay: int) -> Claim:
        claim = claims.claim(
            store,
            claims.ClaimRequest(
                relay=relay,
                now=now,
                lease_ms=60 * SECOND,
                longest_wait=60 * SECOND,
                rows=10,
                bytes_=10_000,
                lone_after=10,
            ),
        )
        assert claim is not None
        return claim

    assert len(claimed(1).events) == 2
    upkeep.reap(store, now, 600 * SECOND, dead_relays=[1])
    for relay in (2, 3):
        assert outbox.counts()["dead"] == 0
        claim = claimed(relay)
        assert claim.lone
        assert claim.events[0].id == rows[0]
        upkeep.reap(store, now, 600 * SECOND, dead_relays=[relay])
    assert (outbox.state(rows[0]), outbox.state(rows[1])) == ("dead", "pending")


def test_drain_says_that_a_row_died_which_killed_its_relay(outbox: Outbox, relays: Relays, tmp_path: Path) -> None:
    relays.give(OUTBOX_DESTINATION="embedded", OUTBOX_EMBEDDED_PATH=str(tmp_path / "search.db"))
    first, relay = outbox.index("contacts", "c1", {}), relays.start()
    until(lambda: outbox.state(first) == "done", "the relay delivers")
    (listed,) = outbox.relays()
    relay.kill()
    relay.wait()
    outbox.index("contacts", "c2", {})
    outbox.raw(
        "UPDATE outbox_events SET state = 'claimed', claimed_by = :relay, claim_token = '1', lease_expires_at = :end,"
        " deliveries = 12, error_type = 'relay_died' WHERE document_id = 'c2'",
        relay=listed["id"],
        end=now_ms() + 60 * SECOND,
    )
    drained = relays.call("run", "--drain")
    assert (drained.returncode, drained.stderr.splitlines()[-1]) == (1, "1 row is dead: see 'outbox-relay dead list'")


# -- the rule itself -----------------------------------------------------------------------------------------------


def test_two_failures_between_applied_rows_make_a_row_guilty() -> None:
    detector = PoisonDetector(JUST)
    for at in (1_000, 2_000):
        assert not detector.guilty(7)
        detector.applied("contacts", at)
        detector.failed_alone(7, "contacts", at + 1)
        detector.applied("contacts", at + 2)
    assert detector.guilty(7)
    assert not detector.guilty(8)
    detector.forget(7)
    assert not detector.guilty(7)


@pytest.mark.parametrize(
    "story",
    [
        pytest.param("fail apply", id="nothing-before"),
        pytest.param("apply fail", id="nothing-after"),
        pytest.param("other fail apply", id="another-index-before"),
        pytest.param("apply fail other", id="another-index-after"),
        pytest.param("apply wait fail apply", id="too-long-before"),
        pytest.param("apply fail wait apply", id="too-long-after"),
        pytest.param("apply outage fail apply", id="outage-before"),
        pytest.param("apply fail outage apply", id="outage-after"),
        pytest.param("apply fail fail outage apply", id="outage-after-two"),
    ],
)
def test_failure_alone_that_proves_nothing_is_not_counted(story: str) -> None:
    detector, now = PoisonDetector(JUST), 1_000
    for _ in range(5):
        now += 2 * JUST  # far from the story before
        for event in story.split():
            now += 1
            if event == "apply":
                detector.applied("contacts", now)
            elif event == "other":
                detector.applied("deals", now)
            elif event == "fail":
                detector.failed_alone(7, "contacts", now)
            elif event == "outage":
                detector.unanswered()
            else:
                now += 2 * JUST
    assert not detector.guilty(7)

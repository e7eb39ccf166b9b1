"""Partial updates: merged into what the index holds, under the version rule, in the order of their rows."""

from __future__ import annotations

from typing import Any

import pytest

from outbox.destinations.cluster.destination import ClusterDestination
from outbox.store import operators, upkeep
from outbox.store.models import EPOCH_STEP, now_ms
from outbox.store.operators import Retried
from tests.support.node import Node
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.support.proxy import FaultProxy, Request, bulk, cut, refuse, reply, swallow

pytestmark = pytest.mark.elasticsearch

SECOND = 1_000
MINUTE = 60 * SECOND


def mget(request: Request) -> bool:
    return request.path.partition("?")[0].endswith("/_mget")


@pytest.fixture
def typed(outbox: Outbox, destination: ClusterDestination) -> None:
    """An index whose mapping knows that `age` is a number."""
    outbox.index("contacts", "typed", {"age": 1})
    outbox.drain(destination)


def test_update_of_a_missing_document_is_dead_and_says_so(
    outbox: Outbox, destination: ClusterDestination, node: Node
) -> None:
    other = outbox.index("contacts", "other", {"age": 1})
    row = outbox.update("contacts", "c1", {"phone": "123"})
    outbox.drain(destination)
    assert (outbox.state(row), outbox.row(row)["error_type"]) == ("dead", "document_missing")
    assert outbox.state(other) == "done"
    assert node.get("contacts", "c1") is None


def test_update_of_a_document_of_an_earlier_system_keeps_its_fields(
    outbox: Outbox, destination: ClusterDestination, node: Node
) -> None:
    node.request("PUT", "/contacts", {"mappings": {"dynamic": False}})
    node.request("PUT", "/contacts/_doc/c1", {"legacy": 12345678901234567890123, "half": 0.5})
    outbox.update("contacts", "c1", {"phone": "123"})
    outbox.drain(destination)
    assert node.get("contacts", "c1") == {"legacy": 12345678901234567890123, "half": 0.5, "phone": "123"}


def test_updates_of_one_document_become_one_operation(
    outbox: Outbox, destination: ClusterDestination, node: Node, proxy: FaultProxy
) -> None:
    outbox.index("contacts", "c0", {"a": {"x": 0}})
    outbox.drain(destination)
    proxy.requests.clear()
    onto_stored = [outbox.update("contacts", "c0", patch) for patch in ({"a": {"x": 1}}, {"a": 5}, {"a": {"y": 2}})]
    onto_a_row = [outbox.index("contacts", "c1", {"n": 1}), outbox.update("contacts", "c1", {"m": 2})]
    outbox.drain(destination)
    assert [outbox.outcome(row) for row in onto_stored] == ["coalesced", "coalesced", "applied"]
    assert [outbox.outcome(row) for row in onto_a_row] == ["coalesced", "applied"]
    assert (node.get("contacts", "c0"), node.get("contacts", "c1")) == ({"a": {"y": 2}}, {"n": 1, "m": 2})
    assert [request.body.count(b"\n") for request in proxy.requests if request.is_bulk] == [4]


def test_update_after_a_delete_in_one_claim_revives_nothing(
    outbox: Outbox, destination: ClusterDestination, node: Node
) -> None:
    outbox.index("contacts", "c1", {"secret": 1})
    outbox.drain(destination)
    delete, update = outbox.delete("contacts", "c1"), outbox.update("contacts", "c1", {"phone": "123"})
    outbox.drain(destination)
    assert (outbox.outcome(delete), outbox.row(update)["error_type"]) == ("deleted", "document_missing")
    assert node.get("contacts", "c1") is None


@pytest.mark.usefixtures("typed")
@pytest.mark.parametrize("guilty", [0, 1, 2, 3])
def test_fold_with_one_bad_update_kills_only_that_one(
    outbox: Outbox, destination: ClusterDestination, node: Node, guilty: int
) -> None:
    outbox.index("contacts", "c1", {"age": 1})
    outbox.drain(destination)
    expected: dict[str, Any] = {"age": 1}
    rows = []
    for n in range(4):
        changes: dict[str, Any] = {f"f{n}": n} | ({"age": "x"} if n == guilty else {})
        rows.append(outbox.update("contacts", "c1", changes))
        expected |= {} if n == guilty else changes
    outbox.drain(destination)
    assert [outbox.state(row) for row in rows] == ["dead" if n == guilty else "done" for n in range(4)]
    assert node.get("contacts", "c1") == expected


@pytest.mark.usefixtures("typed")
def test_update_that_is_no_json_dies_alone(outbox: Outbox, destination: ClusterDestination, node: Node) -> None:
    outbox.index("contacts", "c1", {"age": 1})
    bad = [outbox.put_raw("contacts", "c1", text, action="update") for text in ("[1]", '{"a":', "", '{"a":NaN}')]
    last = outbox.update("contacts", "c1", {"phone": "123"})
    outbox.drain(destination)
    assert {outbox.row(row)["error_type"] for row in bad} == {"illegal_document"}
    assert outbox.outcome(last) == "applied"
    assert node.get("contacts", "c1") == {"age": 1, "phone": "123"}


# -- histories that broke earlier rules ----------------------------------------------------------------------------


def test_full_document_applied_but_not_recorded_does_not_come_back_under_an_update(
    outbox: Outbox, destination: ClusterDestination, node: Node, proxy: FaultProxy
) -> None:
    now = now_ms()
    first = outbox.index("contacts", "c1", {"old": 1})
    proxy.on(bulk, swallow, times=1)
    outbox.drain(destination, now)
    assert (node.get("contacts", "c1"), outbox.state(first)) == ({"old": 1}, "pending")
    outbox.index("contacts", "c1", {"new": 2})
    outbox.update("contacts", "c1", {"phone": "123"})
    outbox.drain(destination, now + MINUTE)
    assert node.get("contacts", "c1") == {"new": 2, "phone": "123"}


@pytest.mark.usefixtures("typed")
def test_retry_of_an_update_that_a_later_one_has_overtaken_stays_dead_and_names_it(
    outbox: Outbox, destination: ClusterDestination, node: Node
) -> None:
    outbox.index("contacts", "c1", {"age": 1})
    outbox.drain(destination)
    bad = outbox.update("contacts", "c1", {"age": "x", "lost": True})
    outbox.drain(destination)
    later = outbox.update("contacts", "c1", {"phone": "123"})
    outbox.drain(destination)
    store = outbox.store()
    for _ in range(2):
        assert operators.retry_dead(store, [bad], now_ms()) == Retried(pending=0, superseded=0, overtaken={bad: later})
        row = outbox.row(bad)
        assert (row["state"], row["error_type"]) == ("dead", "overtaken")
        assert row["error"].startswith(f"row {later} of the same document")
        assert row["error"].count("_parsing_exception") == 1
    assert node.get("contacts", "c1") == {"age": 1, "phone": "123"}

    outbox.index("contacts", "c1", {"age": 2})
    outbox.drain(destination)
    assert operators.retry_dead(store, [bad], now_ms()) == Retried(pending=0, superseded=1, overtaken={})


@pytest.mark.usefixtures("typed")
def test_retry_of_several_dead_updates_of_one_document_keeps_their_order(
    outbox: Outbox, destination: ClusterDestination, node: Node
) -> None:
    early = [outbox.update("contacts", "c1", {"n": n, f"f{n}": n}) for n in range(3)]
    outbox.drain(destination)
    assert {outbox.state(row) for row in early} == {"dead"}
    node.request("PUT", "/contacts/_doc/c1", {"late": True})  # it was to come from elsewhere
    assert operators.retry_dead(outbox.store(), early, now_ms()).pending == 3
    outbox.drain(destination)
    assert node.get("contacts", "c1") == {"late": True, "n": 2, "f0": 0, "f1": 1, "f2": 2}


@pytest.mark.usefixtures("typed")
def test_relay_killed_between_unfolded_updates_leaves_the_dead_letter_and_applies_the_rest(
    outbox: Outbox, destination: ClusterDestination, node: Node, proxy: FaultProxy
) -> None:
    outbox.index("contacts", "c1", {"age": 1})
    outbox.drain(destination)
    bad, good = outbox.update("contacts", "c1", {"age": "x"}), outbox.update("contacts", "c1", {"phone": "123"})
    sent: list[int] = []

    def third(request: Request) -> bool:
        sent.extend([1] * request.is_bulk)
        return len(sent) == 3  # the fold, the first row, then this

    proxy.on(third, refuse)
    outbox.relay(destination).run_once()
    assert (outbox.state(bad), outbox.state(good)) == ("dead", "pending")
    proxy.clear()
    outbox.drain(destination, now_ms() + MINUTE)
    assert node.get("contacts", "c1") == {"age": 1, "phone": "123"}


def test_update_folded_into_a_delete_that_was_applied_but_not_recorded_is_no_dead_letter(
    outbox: Outbox, place: Place
) -> None:
    outbox.index("contacts", "c1", {"n": 1})
    outbox.drain(place.destination)
    rows = [outbox.update("contacts", "c1", {"n": 2}), outbox.update("contacts", "c1", {"n": 3})]
    rows.append(outbox.delete("contacts", "c1"))
    killed, now = outbox.relay(place.destination), now_ms()
    request = killed._next_request(now)
    assert request is not None
    killed._send(request)
    assert place.get("contacts", "c1") is None
    upkeep.reap(outbox.store(), now + 2 * MINUTE, MINUTE)
    outbox.drain(place.destination, now + 2 * MINUTE, batch_rows=1)  # the delete is not of the same claim
    assert [outbox.outcome(row) for row in rows] == ["superseded", "superseded", "deleted"]
    late = outbox.update("contacts", "c1", {"n": 4})
    outbox.drain(place.destination)
    assert outbox.row(late)["error_type"] == "document_missing"


def test_update_applied_but_not_recorded_may_be_applied_twice(
    outbox: Outbox, destination: ClusterDestination, node: Node, proxy: FaultProxy
) -> None:
    now = now_ms()
    outbox.index("contacts", "c1", {"n": 1})
    outbox.drain(destination, now)
    update = outbox.update("contacts", "c1", {"phone": "123"})
    proxy.on(bulk, swallow, times=1)
    outbox.drain(destination, now)
    outbox.drain(destination, now + MINUTE)
    assert outbox.outcome(update) == "applied"
    assert node.get("contacts", "c1") == {"n": 1, "phone": "123"}
    assert node.version("contacts", "c1") == outbox.row(update)["version"]


def test_update_under_a_version_that_nothing_explains_is_dead(
    outbox: Outbox, destination: ClusterDestination, node: Node
) -> None:
    outbox.index("contacts", "c1", {"n": 1})
    outbox.drain(destination)
    node.request("PUT", f"/contacts/_doc/c1?version={EPOCH_STEP + 10**6}&version_type=external", {"other": 1})
    update = outbox.update("contacts", "c1", {"phone": "123"})
    outbox.drain(destination)
    assert outbox.row(update)["error_type"] == "unexplained_version"
    assert node.get("contacts", "c1") == {"other": 1}


@pytest.mark.parametrize(
    "fault",
    [refuse, cut(20), reply(503), reply(200, b"<html>", {"Content-Type": "text/html"}), reply(200, b'{"docs":[]}')],
)
def test_read_before_an_update_that_fails_spends_no_attempt(
    outbox: Outbox, destination: ClusterDestination, node: Node, proxy: FaultProxy, fault: Any
) -> None:
    now = now_ms()
    outbox.index("contacts", "c1", {"n": 1})
    outbox.drain(destination, now)
    update = outbox.update("contacts", "c1", {"phone": "123"})
    proxy.on(mget, fault, times=1)
    outbox.relay(destination).run_once(now)
    assert (outbox.state(update), outbox.row(update)["attempts"]) == ("pending", 0)
    outbox.drain(destination, now + MINUTE)
    assert node.get("contacts", "c1") == {"n": 1, "phone": "123"}

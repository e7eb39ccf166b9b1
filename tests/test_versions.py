"""What the version of a claim decides: rows that are sent twice, late requests, backups, and what others wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from outbox.destinations.base import Operation, Outcome
from outbox.destinations.cluster.destination import ClusterDestination
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.relay.decide import CERTAIN_AFTER
from outbox.store import operators, upkeep, versions
from outbox.store.models import EPOCH_STEP, now_ms
from outbox.store.operators import Retried
from tests.support.node import Node, destination_to
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.support.proxy import FaultProxy, bulk, swallow

pytestmark = pytest.mark.elasticsearch

SECOND = 1_000
TYPED = {"properties": {"age": {"type": "long"}, "n": {"type": "long"}}}


def test_row_that_is_delivered_again_is_written_with_a_higher_version(outbox: Outbox, place: Place) -> None:
    row = outbox.index("contacts", "c1", {"name": "Ada"})
    outbox.drain(place.destination)
    outbox.raw("UPDATE outbox_events SET state = 'pending', available_at = 1, outcome = NULL, finished_at = NULL")
    outbox.drain(place.destination)
    assert (outbox.outcome(row), outbox.row(row)["deliveries"]) == ("applied", 2)
    assert place.version("contacts", "c1") == outbox.row(row)["version"] == EPOCH_STEP + 2


def test_answer_lost_after_the_node_applied_it_is_delivered_again(
    outbox: Outbox, destination: ClusterDestination, node: Node, proxy: FaultProxy
) -> None:
    row = outbox.index("contacts", "c1", {"name": "Ada"})
    proxy.on(bulk, swallow, times=1)
    now = now_ms()
    outbox.relay(destination).run_once(now)
    assert node.get("contacts", "c1") == {"name": "Ada"}
    assert (outbox.state(row), outbox.row(row)["attempts"]) == ("pending", 0)
    outbox.drain(destination, now + 60 * SECOND)
    assert outbox.outcome(row) == "applied"


def test_connection_that_breaks_is_not_tried_again_at_another_node_before_the_row_says_so(
    outbox: Outbox, clean_node: Node, proxy: FaultProxy
) -> None:
    """Nobody knows what the first has applied, and the claim may be over by then."""
    cluster = destination_to(proxy.url, proxy.url.replace("127.0.0.1", "localhost"), request_timeout=30)
    row = outbox.index("contacts", "c1", {"name": "Ada"})
    proxy.on(bulk, swallow, times=1)
    now = now_ms()
    outbox.relay(cluster).run_once(now)
    assert clean_node.get("contacts", "c1") == {"name": "Ada"}
    assert (outbox.state(row), outbox.row(row)["error_type"]) == ("pending", "unanswered")
    outbox.drain(cluster, now + 60 * SECOND)
    cluster.close()
    assert outbox.outcome(row) == "applied"


def test_node_that_gives_no_connection_is_passed_over(outbox: Outbox, clean_node: Node, proxy: FaultProxy) -> None:
    other = FaultProxy(clean_node.url)
    cluster = destination_to(proxy.url, other.url, request_timeout=30)
    relay = outbox.relay(cluster)
    outbox.index("contacts", "c0", {})
    relay.run_once()
    other.down()
    rows = [outbox.index("contacts", f"c{n}", {}) for n in range(1, 4)]
    for _ in rows:  # whichever node has its turn
        relay.run_once()
    cluster.close()
    assert {outbox.row(row)["deliveries"] for row in rows} == {1}
    assert (outbox.counts()["done"], relay.breakers()) == (4, [])


def test_id_that_reads_like_an_answer_explains_nothing_and_hides_nothing(outbox: Outbox, place: Place) -> None:
    row = outbox.index("contacts", "current version [7]", {"name": "Ada"})
    outbox.drain(place.destination)
    outbox.draw_again()
    outbox.raw("UPDATE outbox_events SET state = 'pending', available_at = 1, outcome = NULL, finished_at = NULL")
    for _ in range(2):  # the first time the version is that of before
        outbox.drain(place.destination)
    assert (outbox.outcome(row), outbox.row(row)["deliveries"]) == ("applied", 3)
    assert place.version("contacts", "current version [7]") == EPOCH_STEP + 2


def test_restored_backup_that_draws_versions_again_is_not_taken_for_what_was_lost(outbox: Outbox, place: Place) -> None:
    for n in range(3):
        outbox.index("contacts", "c1", {"lost": f"timeline {n}"})
        outbox.drain(place.destination)
    outbox.raw("DELETE FROM outbox_documents")
    outbox.raw("DELETE FROM outbox_events")
    outbox.draw_again()
    row = outbox.index("contacts", "c1", {"after": "restore"})
    outbox.drain(place.destination)
    assert (outbox.state(row), outbox.row(row)["error_type"]) == ("dead", "unexplained_version")
    assert "epoch advance" in outbox.row(row)["error"]

    store = outbox.store()
    operators.advance_epoch(store, place.destination.highest_version("contacts") // EPOCH_STEP, now_ms())
    operators.retry_dead(store, [row], now_ms())
    outbox.drain(place.destination)
    assert place.get("contacts", "c1") == {"after": "restore"}


def test_version_that_somebody_else_wrote_is_told(outbox: Outbox, destination: ClusterDestination, node: Node) -> None:
    outbox.index("contacts", "other", {})
    outbox.drain(destination)
    node.request("PUT", f"/contacts/_doc/c1?version={EPOCH_STEP + 500}&version_type=external", {"by": "hand"})
    row = outbox.index("contacts", "c1", {"name": "Ada"})
    outbox.drain(destination)
    assert (outbox.state(row), outbox.row(row)["error_type"]) == ("dead", "unexplained_version")
    assert str(EPOCH_STEP + 500) in outbox.row(row)["error"]


def test_claim_that_is_older_than_what_a_reindex_has_written_comes_again_with_a_higher_version(
    outbox: Outbox, place: Place
) -> None:
    row = outbox.index("contacts", "c1", {"n": 1})
    outbox.drain(place.destination)
    relay = outbox.relay(place.destination)
    again = outbox.index("contacts", "c1", {"n": 2})
    request = relay._next_request(now_ms())
    assert request is not None
    store = outbox.store()
    with store.write(durable=True, alone=True):
        later = versions.draw(store)
    target = place.destination.ensure_index("contacts")
    place.destination.apply([Operation(target, target, "c1", later, b'{"n":7}', or_equal=True)])
    relay._settle(relay._send(request), now_ms())
    assert (outbox.state(again), outbox.row(again)["attempts"]) == ("pending", 0)
    outbox.drain(place.destination)
    assert (outbox.outcome(row), outbox.outcome(again)) == ("applied", "applied")
    assert place.get("contacts", "c1") == {"n": 2}
    assert (place.version("contacts", "c1") or 0) > later


def test_late_request_of_a_relay_that_lost_its_claim_changes_nothing(outbox: Outbox, place: Place) -> None:
    outbox.index("contacts", "c0", {})
    outbox.drain(place.destination)
    row = outbox.index("contacts", "c1", {"n": 1})
    slow, now = outbox.relay(place.destination), now_ms()
    request = slow._next_request(now)
    assert request is not None
    upkeep.reap(outbox.store(), now + 3_600 * SECOND, SECOND)
    outbox.index("contacts", "c1", {"n": 2})
    outbox.drain(place.destination, now + 3_600 * SECOND)
    slow._settle(slow._send(request), now)
    assert place.get("contacts", "c1") == {"n": 2}
    assert outbox.outcome(row) == "coalesced"


def test_proxy_that_repeats_every_request_holds_up_nothing(outbox: Outbox, tmp_path: Path) -> None:
    class Repeated(EmbeddedDestination):
        def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
            super().apply(operations)
            return super().apply(operations)

    search = Repeated(tmp_path / "search.db")
    row = outbox.index("contacts", "c1", {"n": 1})
    for _ in range(CERTAIN_AFTER + 1):
        outbox.drain(search)
    assert (outbox.outcome(row), outbox.row(row)["deliveries"]) == ("applied", CERTAIN_AFTER + 1)
    search.close()


def test_index_named_like_an_answer_of_the_node_is_found(
    outbox: Outbox, destination: ClusterDestination, node: Node
) -> None:
    node.request("PUT", "/error/_doc/c0", {})
    outbox.index("error", "c1", {"n": 1})
    outbox.drain(destination)
    assert node.get("error", "c1") == {"n": 1}
    assert node.indexes() == ["error"]  # adopted, as any other


def test_document_of_an_earlier_system_with_a_high_internal_version_is_replaced(
    outbox: Outbox, destination: ClusterDestination, node: Node
) -> None:
    for n in range(20):
        node.request("PUT", "/contacts/_doc/c1", {"legacy": n})
    outbox.index("contacts", "c1", {"name": "Ada"})
    outbox.drain(destination)
    assert node.get("contacts", "c1") == {"name": "Ada"}
    assert node.indexes() == ["contacts"]  # adopted as it is
    assert node.request("GET", "/contacts/_settings")[1]["contacts"]["settings"]["index"]["gc_deletes"] == "24h"


def test_index_is_created_with_the_settings_that_it_is_given_and_with_ours(
    destination: ClusterDestination, node: Node
) -> None:
    destination.ensure_index("contacts", settings={"index.refresh_interval": "5s", "number_of_shards": 2})
    found = node.request("GET", "/contacts/_settings")[1]["contacts-000001"]["settings"]["index"]
    assert (found["refresh_interval"], found["number_of_shards"], found["gc_deletes"]) == ("5s", "2", "24h")


def test_epoch_advanced_while_a_row_waits_keeps_the_order(outbox: Outbox, place: Place) -> None:
    outbox.index("contacts", "c1", {"n": 1})
    place.fail(times=1)
    now = now_ms()
    outbox.drain(place.destination, now)
    outbox.index("contacts", "c1", {"n": 2})
    operators.advance_epoch(outbox.store(), 1, now)
    outbox.drain(place.destination, now + 60 * SECOND)
    assert place.get("contacts", "c1") == {"n": 2}


def test_dead_row_whose_document_has_moved_on_is_superseded_by_its_retry(outbox: Outbox, place: Place) -> None:
    place.destination.ensure_index("contacts", TYPED)
    bad = outbox.index("contacts", "c1", {"age": "x"})
    outbox.drain(place.destination)
    outbox.index("contacts", "c1", {"age": 3})
    outbox.drain(place.destination)
    assert operators.retry_dead(outbox.store(), [bad], now_ms()) == Retried(pending=0, superseded=1, overtaken={})
    assert place.get("contacts", "c1") == {"age": 3}

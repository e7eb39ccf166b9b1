"""What a sync worker does with its jobs, with the outbox in the place of its queue: on each kind of destination.

First each kind of job by itself, delivered by a relay that the test drives; then an application and a relay process
beside it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from loguru import logger

from outbox import logs
from outbox.cli import main
from outbox.store.models import now_ms
from tests.support.outbox import Outbox, settings
from tests.support.places import Place
from tests.support.relays import Relays, until

SECOND = 1_000


# -- one job -------------------------------------------------------------------------------------------------------


def test_index_job_creates_the_document(outbox: Outbox, place: Place) -> None:
    row = outbox.index("contacts", "contact-123", {"name": "Ada"}, tenant_id="t1")
    outbox.drain(place.destination)
    assert place.get("contacts", "contact-123") == {"name": "Ada"}
    assert place.version("contacts", "contact-123") == outbox.row(row)["version"]
    assert (outbox.state(row), outbox.outcome(row)) == ("done", "applied")


def test_index_job_replaces_the_document(outbox: Outbox, place: Place) -> None:
    outbox.index("contacts", "c1", {"name": "Ada", "old": True})
    outbox.drain(place.destination)
    outbox.index("contacts", "c1", {"name": "Grace"})
    outbox.drain(place.destination)
    assert place.get("contacts", "c1") == {"name": "Grace"}


def test_update_job_merges_fields_into_the_document(outbox: Outbox, place: Place) -> None:
    outbox.index("contacts", "c1", {"name": "Ada", "address": {"city": "London", "zip": "W1"}, "tags": ["a", "b"]})
    outbox.drain(place.destination)
    row = outbox.update("contacts", "c1", {"phone": "123", "address": {"zip": "W2"}, "tags": ["c"], "name": None})
    outbox.drain(place.destination)
    assert (outbox.state(row), outbox.outcome(row)) == ("done", "applied")
    assert place.get("contacts", "c1") == {
        "name": None, "address": {"city": "London", "zip": "W2"}, "tags": ["c"], "phone": "123"
    }  # fmt: skip
    assert place.version("contacts", "c1") == outbox.row(row)["version"]


def test_delete_job_removes_the_document(outbox: Outbox, place: Place) -> None:
    outbox.index("contacts", "c1", {"name": "Ada"})
    outbox.drain(place.destination)
    row = outbox.delete("contacts", "c1")
    outbox.drain(place.destination)
    assert place.get("contacts", "c1") is None
    assert outbox.outcome(row) == "deleted"


def test_delete_of_a_missing_document_succeeds(outbox: Outbox, place: Place) -> None:
    row = outbox.delete("contacts", "never-there")
    outbox.drain(place.destination)
    assert outbox.outcome(row) == "deleted"
    assert place.indexes() == ["contacts-000001"]  # the delete created no index beside it


@pytest.mark.slow
def test_connection_trouble_is_retried_until_it_is_over_and_spends_no_attempt(outbox: Outbox, place: Place) -> None:
    outbox.index("contacts", "c1", {"n": 1})
    outbox.drain(place.destination)
    place.away()
    row, relay, now = outbox.index("contacts", "c1", {"n": 2}), outbox.relay(place.destination), now_ms()
    for probe in range(3):
        relay.run_once(now + probe * 60 * SECOND)
        assert (outbox.state(row), outbox.row(row)["attempts"]) == ("pending", 0)
    assert [breaker["scope"] for breaker in relay.breakers()] == ["destination"]
    place.back()
    relay.run_once(now + 3 * 60 * SECOND)
    assert (outbox.state(row), outbox.row(row)["attempts"]) == ("done", 0)
    assert place.get("contacts", "c1") == {"n": 2}


def test_retries_wait_two_four_and_eight_seconds_and_then_the_row_is_dead(outbox: Outbox, place: Place) -> None:
    row = outbox.index("contacts", "c1", {})
    place.fail()
    now = now_ms()
    for pause in (2, 4, 8):
        outbox.drain(place.destination, now)
        assert outbox.row(row)["available_at"] == now + pause * SECOND
        outbox.drain(place.destination, now + pause * SECOND - 1)
        assert outbox.state(row) == "pending"
        now += pause * SECOND
    outbox.drain(place.destination, now)
    assert outbox.state(row) == "dead"
    assert place.sent() == [1] * 4


def test_bad_request_is_not_retried(outbox: Outbox, place: Place) -> None:
    place.destination.ensure_index("contacts", {"properties": {"age": {"type": "long"}}})
    row = outbox.index("contacts", "c2", {"age": "thirty-six"})
    outbox.drain(place.destination)
    dead = outbox.row(row)
    assert (dead["state"], dead["attempts"], dead["error_type"]) == ("dead", 0, "document_parsing_exception")
    assert "age" in dead["error"]


def test_bulk_operations_of_many_documents_arrive(outbox: Outbox, place: Place) -> None:
    outbox.index_many("contacts", [(f"c{n}", {"n": n}) for n in range(2_500)])
    outbox.drain(place.destination)
    assert place.documents("contacts") == {f"c{n}": {"n": n} for n in range(2_500)}
    assert outbox.counts()["done"] == 2_500


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_result_and_log_lines_have_the_format_of_the_worker(outbox: Outbox, place: Place, log_format: str) -> None:
    place.destination.ensure_index("contacts", {"properties": {"age": {"type": "long"}}})
    outbox.index("accounts", "account-456", {"name": "Northwind"})
    outbox.drain(place.destination)
    log = io.StringIO()
    logs.set_up(settings(log_format=log_format), log)
    index = outbox.index("contacts", "contact-123", {"name": "Ada"}, tenant_id="t1")
    update = outbox.update("accounts", "account-456", {"city": "Leeds"})
    delete = outbox.delete("contacts", "contact-456")
    failed = outbox.index("contacts", "contact-789", {"age": "thirty-six"})
    outbox.drain(place.destination)
    logger.remove()
    if log_format == "json":
        lines = [json.loads(line) for line in log.getvalue().splitlines()]
        said = {(line["message"], line["index"], line["id"]) for line in lines}
        assert said == {
            ("[ES] INDEX", "contacts", "contact-123"),
            ("[ES] UPDATE", "accounts", "account-456"),
            ("[ES] DELETE", "contacts", "contact-456"),
            ("[ES] Error index", "contacts", "contact-789"),
        }
    else:
        said_ = [line[line.index("[ES]") :] for line in log.getvalue().splitlines()]
        assert {line for line in said_ if "Error" not in line} == {
            "[ES] INDEX contacts/contact-123", "[ES] UPDATE accounts/account-456", "[ES] DELETE contacts/contact-456"
        }  # fmt: skip
        (error,) = [line for line in said_ if "Error" in line]
        assert error.startswith("[ES] Error index contacts/contact-789: ")

    def shown(row: int) -> dict[str, dict[str, object]]:
        url = outbox.url
        printed = CliRunner().invoke(main, ["show", str(row), "--json", "--database-url", url])
        found: dict[str, dict[str, object]] = json.loads(printed.stdout)
        return found

    assert shown(index)["job"] == {
        "action": "index", "index": "contacts", "id": "contact-123", "document": {"name": "Ada"}, "tenantId": "t1"
    }  # fmt: skip
    for row, action, name, document_id in (
        (index, "index", "contacts", "contact-123"),
        (update, "update", "accounts", "account-456"),
        (delete, "delete", "contacts", "contact-456"),
    ):
        result = shown(row)["result"]
        assert str(result.pop("syncedAt")).endswith("Z")
        assert result == {"success": True, "action": action, "index": name, "id": document_id}
    assert shown(failed)["result"] == {
        "success": False, "action": "index", "index": "contacts", "id": "contact-789", "syncedAt": None
    }  # fmt: skip


# -- an application, and a relay beside it -------------------------------------------------------------------------


@pytest.fixture
def worker(outbox: Outbox, place: Place, tmp_path: Path) -> Iterator[Relays]:
    """A relay process that delivers to the place."""
    running = Relays(outbox, "", tmp_path)
    # For a file it is the time that a lock is waited for, and here only a test that wants it away keeps one.
    running.give(OUTBOX_REQUEST_TIMEOUT="20" if place.wire else "1", **place.environment)
    running.start()
    yield running
    running.end()


def synced(outbox: Outbox, row: int) -> None:
    until(lambda: outbox.state(row) == "done", f"row {row} is delivered")


def found(place: Place, index: str, query: str) -> list[str]:
    place.destination.refresh(index)
    return [hit.document_id for hit in place.destination.search(index, query)]


@pytest.mark.usefixtures("worker")
def test_contact_that_is_created_can_be_found(outbox: Outbox, place: Place) -> None:
    synced(outbox, outbox.index("contacts", "contact-123", {"name": "Ada Lovelace", "email": "ada@engines.example"}))
    assert found(place, "contacts", "lovelace") == ["contact-123"]
    assert found(place, "contacts", "lovlace") == ["contact-123"]
    assert found(place, "contacts", "hopper") == []


@pytest.mark.usefixtures("worker")
def test_account_that_is_updated_is_found_as_it_is_now(outbox: Outbox, place: Place) -> None:
    synced(outbox, outbox.index("accounts", "account-456", {"name": "Northwind", "city": "Leeds"}))
    assert found(place, "accounts", "northwind") == ["account-456"]
    synced(outbox, outbox.update("accounts", "account-456", {"name": "Tidewater"}))
    assert (found(place, "accounts", "northwind"), found(place, "accounts", "tidewater")) == ([], ["account-456"])
    assert place.get("accounts", "account-456") == {"name": "Tidewater", "city": "Leeds"}


@pytest.mark.usefixtures("worker")
def test_deal_that_is_deleted_is_found_no_longer(outbox: Outbox, place: Place) -> None:
    synced(outbox, outbox.index("deals", "deal-789", {"title": "Renewal"}))
    assert found(place, "deals", "renewal") == ["deal-789"]
    synced(outbox, outbox.delete("deals", "deal-789"))
    assert found(place, "deals", "renewal") == []


@pytest.mark.slow
def test_write_succeeds_while_the_destination_is_away_and_arrives_afterwards(
    outbox: Outbox, place: Place, worker: Relays
) -> None:
    synced(outbox, outbox.index("contacts", "contact-1", {"name": "Ada"}))
    place.away()
    rows = [outbox.index("contacts", "contact-2", {"name": "Grace"}), outbox.delete("contacts", "contact-1")]
    until(lambda: "destination unreachable" in worker.log(), "the relay notices")
    rows.append(outbox.update("contacts", "contact-2", {"city": "Arlington"}))  # as ever
    assert {(outbox.row(row)["attempts"], outbox.state(row)) for row in rows} <= {(0, "pending"), (0, "claimed")}
    place.back()
    for row in rows:
        synced(outbox, row)
    assert place.documents("contacts") == {"contact-2": {"name": "Grace", "city": "Arlington"}}
    assert {outbox.row(row)["attempts"] for row in rows} == {0}


@pytest.mark.usefixtures("worker")
def test_bulk_of_many_contacts_arrives_as_a_whole(outbox: Outbox, place: Place) -> None:
    contacts = {f"contact-{n}": {"name": f"Ada {n}"} for n in range(5_000)}
    rows = outbox.index_many("contacts", list(contacts.items()))
    until(lambda: outbox.counts()["done"] == len(rows), "all rows are delivered")
    assert place.documents("contacts") == contacts

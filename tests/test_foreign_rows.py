"""Rows that another program wrote: the ones that cannot be sent die alone."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.store.models import now_ms
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.support.proxy import FaultProxy

pytestmark = pytest.mark.elasticsearch

SECOND = 1_000


def test_payloads_that_cannot_be_sent_die_alone(outbox: Outbox, place: Place) -> None:
    good = outbox.index("contacts", "good", {"n": 1})
    forged = '{"a":1}\n{"delete":{"_index":"contacts-000001","_id":"good"}}'
    bad = [
        outbox.put_raw("contacts", "x" * 513, "{}"),
        outbox.put_raw("contacts", "newline", forged),
        outbox.put_raw("contacts", "broken", '{"n":'),
        outbox.put_raw("contacts", "array", "[1]"),
        outbox.put_raw("contacts", "", "{}"),
    ]
    missing = outbox.index("contacts", "missing", {})
    outbox.raw("DELETE FROM outbox_documents WHERE event_id = :id", id=missing)
    outbox.drain(place.destination)
    assert [outbox.state(row) for row in [*bad, missing]] == ["dead"] * 6
    assert outbox.state(good) == "done"
    assert place.documents("contacts") == {"good": {"n": 1}}


LATIN_1 = "CAST(x'4dfc' AS TEXT)"


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("column", "text"),
    [
        *product(["index_name", "document_id", "tenant_id", "entity"], ["x'00ff'", "x'41'", LATIN_1]),
        ("error_type", LATIN_1),
    ],
)
def test_row_that_names_its_document_by_no_text_dies_alone(
    outbox: Outbox, tmp_path: Path, column: str, text: str
) -> None:
    """SQLite takes any bytes: a BLOB where another program keeps its keys as such, or Latin-1."""
    destination = EmbeddedDestination(tmp_path / "search.db")
    good = outbox.index("contacts", "good", {"n": 1})
    bad = outbox.put_raw("contacts", "bad", "{}")
    outbox.raw(f"UPDATE outbox_events SET {column} = {text} WHERE id = :bad", bad=bad)
    relay = outbox.relay(destination)
    relay.run_once()
    assert (outbox.state(good), outbox.state(bad)) == ("done", "dead")
    dead = outbox.row(bad)
    assert (dead["error_type"], dead["error"].partition(";")[0]) == ("illegal_text", f"no UTF-8 text: {column}")
    assert (relay.totals.done, relay.totals.dead) == (1, 1)
    with outbox.engine.connect() as connection:
        (counted,) = connection.exec_driver_sql("SELECT index_name, tenant_id FROM outbox_stats WHERE dead = 1")
    assert tuple(counted) == (dead["index_name"], dead["tenant_id"] or "")
    destination.close()


@pytest.mark.sqlite
def test_rows_without_text_are_found_however_many_are_pending(
    outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.store.sqlite.malformed.MOST_AT_ONCE", 2)
    rows = [outbox.put_raw("contacts", f"c{number}", "{}") for number in range(7)]
    outbox.raw("UPDATE outbox_events SET document_id = x'FF' || id WHERE id % 3 = 1")
    destination = EmbeddedDestination(tmp_path / "search.db")
    outbox.drain(destination)
    assert [outbox.state(row) for row in rows] == ["dead" if row % 3 == 1 else "done" for row in rows]
    destination.close()


@pytest.mark.sqlite
@pytest.mark.parametrize("form", ["TEXT", "BLOB"])
def test_document_in_latin_1_dies_alone_and_can_be_looked_at(outbox: Outbox, place: Place, form: str) -> None:
    good, bad = outbox.index("contacts", "good", {"n": 1}), outbox.put_raw("contacts", "bad", "{}")
    latin_1 = '{"name":"Müller"}'.encode("latin-1").hex()
    outbox.raw(f"UPDATE outbox_documents SET document = CAST(x'{latin_1}' AS {form}) WHERE event_id = :bad", bad=bad)
    outbox.drain(place.destination)
    assert (outbox.state(good), outbox.state(bad)) == ("done", "dead")
    assert outbox.row(bad)["document"] == r'{"name":"M\xfcller"}'
    assert [row["id"] for row in outbox.store().events()] == [good, bad]


@pytest.mark.sqlite
def test_row_whose_time_or_size_is_no_number_is_delivered(outbox: Outbox, place: Place) -> None:
    values = ["created_at = CURRENT_TIMESTAMP", "created_at = 1.5", "attempts = 'none'", "deliveries = 1.5"]
    values += ["deliveries = 'few'", "document_bytes = 'many'", "available_at = 'now'"]
    rows = [outbox.put_raw("contacts", f"c{n}", "{}") for n in range(len(values))]
    for row, value in zip(rows, values, strict=True):
        outbox.raw(f"UPDATE outbox_events SET {value} WHERE id = :row", row=row)
    outbox.drain(place.destination)
    assert [outbox.outcome(row) for row in rows] == ["applied"] * len(values)
    assert now_ms() - outbox.row(rows[0])["created_at"] < 60 * SECOND


def test_rows_that_another_program_put_back_are_sent_alone_in_any_order(outbox: Outbox, place: Place) -> None:
    rows = [outbox.index("contacts", f"c{n}", {}) for n in range(3)]
    outbox.raw("UPDATE outbox_events SET deliveries = 11, error_type = 'unanswered'")
    outbox.raw("UPDATE outbox_events SET available_at = 1 WHERE id = :id", id=rows[1])
    outbox.drain(place.destination)
    assert {outbox.outcome(row) for row in rows} == {"applied"}


def test_large_rows_of_unknown_size_are_measured_at_the_claim(
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy
) -> None:
    for n in range(4):
        outbox.put_raw("contacts", f"c{n}", json.dumps({"text": "x" * 40_000}))
    outbox.drain(destination, batch_bytes=100_000)
    assert [len(request.body) > 100_000 for request in proxy.requests if request.is_bulk] == [False, False]

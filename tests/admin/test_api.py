"""What operators have done over HTTP, on real files: looking, dead rows, pausing, verifying."""

from __future__ import annotations

import json
import random
from datetime import datetime
from itertools import product
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine

from outbox.cli import main
from outbox.destinations.embedded.destination import EmbeddedDestination
from tests.admin.world import API, Company, Contact, World, checked, kill
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.support.relays import until
from tests.support.serving import client_of

# -- looking ----------------------------------------------------------------------------------------------------------


def test_status_says_what_waits_and_what_became_of_the_rest(world: World) -> None:
    world.save(Contact(id=1, name="Ada"), Company(id=1, name="Engines"))
    world.delivered()
    world.outbox.index("notes", "n1", {"text": "x"}, tenant_id="t2")
    kill(world.outbox, world.outbox.index("notes", "n2", {"text": "x"}))
    world.client.post("/resume")  # whoever acts sees what is so now
    seen = world.get("/status")
    assert {name: seen["queue"][name] for name in ("unfinished", "fresh", "claimed", "dead")} == {
        "unfinished": 1,
        "fresh": 1,
        "claimed": 0,
        "dead": 1,
    }
    assert (seen["periods"]["hour"]["done"], seen["periods"]["week"]["done"]) == (2, 2)
    assert [entity["entity"] for entity in seen["entities"]] == ["Company", "Contact"]
    assert seen["tenants"] == [{"tenantId": "t2", "rows": 1, "oldestSeconds": pytest.approx(0, abs=60)}]
    assert seen["deadTypes"] == [{"index": "notes", "errorType": "mapper_parsing_exception", "rows": 1}]
    assert seen["paused"] is None and seen["relays"] == [] and seen["verification"] is None
    assert until(lambda: world.get("/status")["destination"], "the destination was asked")["reachable"]


def states(outbox: Outbox) -> list[int]:
    """Rows in every state, of two indexes and tenants."""
    rows = outbox.index_many("contacts", [(f"c{at % 7}", {"name": str(at)}) for at in range(40)])
    index = "CASE id % 2 WHEN 0 THEN 'notes' ELSE 'contacts' END"
    outbox.raw(f"UPDATE outbox_events SET tenant_id = 't' || (id % 3), index_name = {index}")
    outbox.raw("UPDATE outbox_events SET state = 'done', outcome = 'applied', finished_at = 1 WHERE id % 4 = 0")
    outbox.raw("UPDATE outbox_events SET state = 'claimed', claim_token = 'x', lease_expires_at = 1 WHERE id % 11 = 5")
    outbox.raw("UPDATE outbox_events SET available_at = 1 WHERE id % 13 = 2 AND state = 'pending'")
    for row in rows[::9]:
        kill(outbox, row, "poison" if row % 2 else "mapper_parsing_exception")
    return rows


@pytest.mark.parametrize(
    "filters",
    [
        {},
        *({"state": state} for state in ("pending", "claimed", "done", "dead")),
        {"index": "notes"},
        {"tenant": "t1"},
        {"document": "c3"},
        {"errorType": "poison"},
        {"state": "dead", "errorType": "poison", "index": "contacts", "tenant": "t1"},
        {"state": "pending", "index": "contacts", "document": "c1"},
        {"index": "none"},
        {"tenant": "' OR 1 = 1 --"},
    ],
    ids=json.dumps,
)
def test_pages_show_each_row_once(embedded: World, filters: dict[str, str]) -> None:
    rows = states(embedded.outbox)
    columns = {"state": "state", "index": "index_name", "tenant": "tenant_id", "document": "document_id"}
    expected = [
        row
        for row in reversed(rows)
        if all(embedded.outbox.row(row)[columns.get(name, "error_type")] == given for name, given in filters.items())
    ]
    for limit in (1, 7, 500):
        seen, cursor = [], {}
        for _ in range(len(rows) + 1):
            page = embedded.get("/events", **filters, **cursor, limit=limit)
            assert len(page["items"]) <= limit
            seen += [item["id"] for item in page["items"]]
            if page["nextCursor"] is None:
                break
            cursor = {"cursor": page["nextCursor"]}
        assert seen == expected


def test_pages_miss_no_row_while_rows_come_end_and_go(embedded: World) -> None:
    chance = random.Random(5)
    rows = set(embedded.outbox.index_many("contacts", [(f"c{at}", {}) for at in range(200)]))
    seen: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        page = embedded.get("/events", limit=13, **cursor)
        seen += [item["id"] for item in page["items"]]
        embedded.outbox.index("contacts", "late", {})
        gone = chance.choice(sorted(rows))
        embedded.outbox.raw("DELETE FROM outbox_events WHERE id = :row", row=gone)
        rows.discard(gone)
        some = chance.sample(sorted(rows), 5)
        embedded.outbox.raw(f"UPDATE outbox_events SET state = 'done' WHERE id IN ({', '.join(map(str, some))})")
        if page["nextCursor"] is None:
            break
        cursor = {"cursor": page["nextCursor"]}
    assert len(seen) == len(set(seen))
    assert rows <= set(seen)


def test_row_with_its_document(embedded: World) -> None:
    row = embedded.outbox.index("contacts", "c/1?", {"name": "Ada <b>", "deep": {"list": [1, None]}}, tenant_id="t1")
    seen = embedded.get(f"/events/{row}")
    assert (seen["documentId"], seen["tenantId"], seen["state"]) == ("c/1?", "t1", "pending")
    assert seen["document"] == {"name": "Ada <b>", "deep": {"list": [1, None]}}
    assert datetime.fromisoformat(seen["createdAt"]).tzinfo is not None
    assert embedded.get(f"/events/{embedded.outbox.delete('contacts', 'c1')}")["document"] is None
    assert embedded.get(f"/events/{embedded.outbox.put_raw('contacts', 'c2', 'no JSON')}")["document"] == "no JSON"


def test_row_with_each_of_its_attempts_and_who_retried_it(embedded: World) -> None:
    embedded.destination.ensure_index("notes", {"properties": {"age": {"type": "long"}}})
    row = embedded.outbox.index("notes", "n1", {"age": "old"})
    embedded.drain()
    embedded.post("/dead/retry", {"ids": [row]})
    embedded.drain()
    steps = embedded.get(f"/events/{row}")["timeline"]
    assert [each["step"] for each in steps] == ["written", "failed", "retried", "failed"]
    assert [each["attempt"] for each in steps] == [None, 1, None, 2]
    assert {each["errorField"] for each in steps if each["step"] == "failed"} == {"age"}
    assert steps[2]["by"] == "admin at testclient"
    instants = [datetime.fromisoformat(each["at"]) for each in steps]
    assert instants == sorted(instants)
    embedded.post("/dead/discard", {"ids": [row]})
    assert "discarded by admin at testclient at " in embedded.get(f"/events/{row}", expected=404)["detail"]


# -- dead rows --------------------------------------------------------------------------------------------------------


def test_retry_says_what_became_of_each(embedded: World) -> None:
    outbox = embedded.outbox
    alone = outbox.index("notes", "alone", {"a": 1})
    replaced = outbox.index("notes", "replaced", {"a": 1})
    outbox.index("notes", "replaced", {"a": 2})
    overtaken = outbox.update("notes", "overtaken", {"a": 1})
    later = outbox.update("notes", "overtaken", {"b": 1})
    for row in (alone, replaced, overtaken):
        kill(outbox, row)
    outbox.raw("UPDATE outbox_events SET state = 'done', deliveries = 1 WHERE state = 'pending'")
    answer = embedded.post("/dead/retry", {"ids": [alone, replaced, overtaken]})
    assert answer == {"selected": 3, "pending": 1, "superseded": 1, "overtaken": {str(overtaken): later}}
    assert [outbox.state(row) for row in (alone, replaced, overtaken)] == ["pending", "done", "dead"]
    selection = f"ids={alone},{replaced},{overtaken}"
    assert embedded.logged(f"1 row retried by admin at testclient; selection: {selection}")
    assert embedded.post("/dead/retry", {"ids": [alone]}, 404)["detail"].startswith(f"no dead row {alone}")


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        ({"index": "notes"}, [0, 1]),
        ({"tenantId": "t1"}, [1, 2]),
        ({"errorType": "poison"}, [2]),
        ({"index": "notes", "tenantId": "t1"}, [1]),
        ({"all": True}, [0, 1, 2]),
        ({"index": "none"}, []),
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("what", ["retry", "discard"])
def test_dead_rows_by_selection(embedded: World, selection: dict[str, Any], chosen: list[int], what: str) -> None:
    outbox = embedded.outbox
    rows = [
        outbox.index("notes", "a", {}),
        outbox.index("notes", "b", {}, tenant_id="t1"),
        outbox.index("contacts", "c", {}, tenant_id="t1"),
    ]
    for row in rows:
        kill(outbox, row, "poison" if row == rows[2] else "mapper_parsing_exception")
    living = outbox.index("notes", "d", {}, tenant_id="t1")
    answer = embedded.post(f"/dead/{what}", selection)
    assert answer["pending" if what == "retry" else "removed"] == len(chosen)
    left = {row["id"] for row in outbox.dead()}
    assert left == {row for at, row in enumerate(rows) if at not in chosen}
    assert outbox.state(living) == "pending"
    assert embedded.logged(f"{'retried' if what == 'retry' else 'removed for good'} by admin at testclient")


def test_dead_rows_that_nobody_named_stay(embedded: World) -> None:
    kill(embedded.outbox, embedded.outbox.index("notes", "a", {}))
    for body in ({}, {"all": False}, {"ids": []}, {"everything": True}, {"ids": [0]}, {"ids": ["x"]}, [], "all", None):
        for what in ("retry", "discard"):
            embedded.post(f"/dead/{what}", body, 422)
    assert len(embedded.outbox.dead()) == 1


# -- pausing ----------------------------------------------------------------------------------------------------------


def test_pause_holds_relays_until_resumed(embedded: World) -> None:
    row = embedded.outbox.index("notes", "a", {})
    assert embedded.post("/pause", {"reason": "cluster upgrade\n2026"}) == {"paused": True, "changed": True}
    seen = embedded.get("/status")["paused"]
    assert (seen["by"], seen["reason"]) == ("admin at testclient", "cluster upgrade\n2026")
    embedded.drain()
    assert embedded.outbox.state(row) == "pending"
    assert embedded.post("/resume") == {"paused": False, "changed": True}
    assert embedded.get("/status")["paused"] is None
    assert embedded.post("/resume") == {"paused": False, "changed": False}
    embedded.drain()
    assert embedded.outbox.state(row) == "done"
    assert embedded.logged("WARNING paused by admin at testclient: cluster upgrade\\n2026")
    assert embedded.logged("INFO resumed by admin at testclient")


# -- verify -----------------------------------------------------------------------------------------------------------


def test_verify_finds_what_is_wrong_and_repairs_it(world: World, place: Place) -> None:
    world.save(*(Contact(id=at, name=f"Ada {at}") for at in range(5)))
    world.delivered()
    place.tamper("contacts", next(iter(place.documents("contacts"))), {"name": "somebody else"})
    assert world.post("/verify", {"entity": "Contact", "repair": True}, 202) == {"status": "running"}
    seen = until(lambda: world.get("/status")["verification"], "the verification has ended")
    assert (seen["drift"], seen["different"], seen["repaired"], seen["entities"]) == (1, 1, 1, ["Contact"])
    assert seen["by"] == "admin at testclient"
    world.delivered()
    world.post("/verify", {}, 202)
    seen = until(
        lambda: (found := world.get("/status")["verification"]) and found["drift"] == 0 and found, "nothing is wrong"
    )
    assert (seen["documents"], seen["entities"]) == (5, ["Contact", "Company"])
    assert world.logged("verification of Contact begun by admin at testclient")
    world.post("/verify", {"sample": 0.01}, 202)
    until(lambda: world.get("/status")["verification"]["sample"] == 0.01, "the verification has ended")
    assert world.get("/audit")[0]["about"] == "sample=1.0%"


def test_verify_of_what_does_not_exist(embedded: World) -> None:
    assert "Contact" in embedded.post("/verify", {"entity": "Contract"}, 422)["detail"]
    for body in ({"sample": 0}, {"sample": 2}, {"sample": "all"}, {"entity": ""}, {"repair": "perhaps"}):
        embedded.post("/verify", body, 422)


def test_without_a_registry_nothing_can_be_compared_or_rebuilt(engine: Engine, tmp_path: Path) -> None:
    destination = EmbeddedDestination(tmp_path / "search.db")
    with client_of(engine, destination) as client:
        for path, body in (("/verify", {}), ("/reindex", {"entity": "Contact"})):
            detail = checked(client.post(f"{API}{path}", json=body), 422)["detail"]
            assert "OUTBOX_ENTITIES" in detail
    destination.close()


def test_openapi_document_says_what_each_route_answers(embedded: World) -> None:
    document = embedded.client.get("/api/openapi.json").json()
    for path, methods in document["paths"].items():
        assert path.startswith(API)
        for method, operation in methods.items():
            assert operation["summary"], (path, method)
            for status, answer in operation["responses"].items():
                kind = "application/json" if status.startswith("2") else "application/problem+json"
                assert list(answer["content"]) == [kind], (path, method, status)


FAR = ("created_at = 1764545411000000000", "created_at = -99999999999999999")
BYTES = [
    f"{column} = {value}"
    for column, value in product(
        ["index_name", "document_id", "tenant_id", "entity", "error_type"], ["x'ff00'", "CAST(x'4dfc' AS TEXT)"]
    )
]
NO_NUMBERS = ["created_at = CURRENT_TIMESTAMP", "created_at = 1.5", "attempts = 'none'", "available_at = 'now'"]


@pytest.mark.parametrize(
    "value", [*FAR, *(pytest.param(each, marks=pytest.mark.sqlite) for each in [*BYTES, *NO_NUMBERS])]
)
def test_row_of_another_program_is_shown_whatever_stands_in_it(embedded: World, value: str) -> None:
    row = embedded.outbox.index("contacts", "a", {"n": 1})
    embedded.outbox.raw(f"UPDATE outbox_events SET {value} WHERE id = :row", row=row)
    for path in ("/", "/events", f"/events?id={row}", "/events?state=pending", f"/events/{row}", "/indexes"):
        assert embedded.client.get(path, headers={"Accept": "text/html"}).status_code == 200, path
    for path in ("/status", "/needs", "/events", f"/events/{row}"):
        embedded.get(path)
    assert embedded.client.get("/metrics").status_code == 200
    for command in (["show", str(row)], ["show", str(row), "--json"], ["status"], ["status", "--json"], ["check"]):
        result = CliRunner().invoke(main, command, env={"OUTBOX_DATABASE_URL": embedded.outbox.url})
        assert isinstance(result.exception, NoneType | SystemExit), (command, result.exception)

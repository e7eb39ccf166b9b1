"""What operators have done over HTTP, on real files: each operation, and each way in which it cannot be done."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from outbox import EntityRegistry, schema, sqlite
from outbox.admin import poller, service
from outbox.destinations.base import Destination
from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.reindex import Reindexer
from outbox.reindex.selection import Selection
from outbox.store import jobs
from outbox.store.models import now_ms
from outbox.store.store import Store
from tests.support import LIMIT_S
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.support.proxy import FaultProxy, anything, bulk, hang, reply
from tests.support.relays import until
from tests.support.serving import TestClient, client_of

API = "/api/v1/admin"


class Base(DeclarativeBase):
    pass


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    tenant: Mapped[str] = mapped_column(default="t1")
    changed: Mapped[datetime] = mapped_column(default=datetime(2026, 1, 1))


class Company(Base):
    """Each tenant has an index of its own."""

    __tablename__ = "companies"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    tenant: Mapped[str] = mapped_column(default="t1")


def registered() -> EntityRegistry:
    registry = EntityRegistry()
    registry.add(Contact, name="Contact", index="contacts", fields=["name"], tenant="tenant", changed_at="changed")
    registry.add(Company, name="Company", index="companies", fields=["name"], tenant="tenant", tenancy="index")
    return registry


class World:
    """An application, a relay that the test drives, and a client of the admin server."""

    def __init__(self, outbox: Outbox, destination: Destination, client: TestClient, registry: EntityRegistry) -> None:
        self.outbox, self.destination, self.client, self.registry = outbox, destination, client, registry
        self.sessions: sessionmaker[Session] = registry.capture(sessionmaker(outbox.engine))
        self.relay = outbox.relay(destination, 2, registry)
        self.lines: list[str] = []
        logger.add(self.lines.append, format="{level} {message}", level="INFO")

    def save(self, *contacts: Base) -> None:
        with self.sessions.begin() as session:
            session.add_all(contacts)

    def drain(self) -> None:
        while self.relay.run_once():
            pass

    def delivered(self) -> None:
        """All of it, however long a busy Elasticsearch lets the first answers wait."""

        def done() -> bool:
            self.drain()
            counts = self.outbox.counts()
            return not counts["pending"] + counts["claimed"]

        until(done, "all rows are delivered")

    def get(self, path: str, expected: int = 200, **parameters: Any) -> Any:
        answer = self.client.get(f"{API}{path}", params=parameters)
        return checked(answer, expected)

    def post(self, path: str, body: Any = None, expected: int = 200) -> Any:
        return checked(self.client.post(f"{API}{path}", json=body), expected)

    def job(self, number: int, state: str = "done") -> Any:
        """Drive the relay until the job has come to that state."""

        def ended() -> Any:
            self.drain()
            found = self.get(f"/reindex/{number}")
            return found if found["status"] == state else None

        return until(ended, f"reindex {number} is {state}: {self.get(f'/reindex/{number}')}")

    def logged(self, text: str) -> bool:
        return any(text in line for line in self.lines)


def checked(answer: Any, expected: int) -> Any:
    assert answer.status_code == expected, answer.text
    body = answer.json()
    if expected >= 400:
        is_problem(answer, expected)
    return body


def is_problem(answer: Any, status: int) -> None:
    """RFC 9457, and something that a person can do something with."""
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["type"] == "about:blank" and body["title"] and body["detail"]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy Elasticsearch takes longer to make an index than anybody waits for an answer."""
    monkeypatch.setattr(service, "LONGEST_START_S", LIMIT_S)


@pytest.fixture
def world(outbox: Outbox, place: Place) -> Iterator[World]:
    Base.metadata.create_all(outbox.engine)
    registry = registered()
    with client_of(outbox.engine, place.destination, registry) as client:
        yield World(outbox, place.destination, client, registry)


@pytest.fixture
def embedded(outbox: Outbox, tmp_path: Path) -> Iterator[World]:
    """The same with the embedded destination alone, for what does not depend on it."""
    Base.metadata.create_all(outbox.engine)
    destination, registry = EmbeddedDestination(tmp_path / "search.db"), registered()
    with client_of(outbox.engine, destination, registry) as client:
        yield World(outbox, destination, client, registry)
    destination.close()


def kill(outbox: Outbox, row: int, error_type: str = "mapper_parsing_exception") -> None:
    outbox.raw(
        "UPDATE outbox_events SET state = 'dead', attempts = 4, deliveries = 4, error_type = :type,"
        " error = 'failed to parse', available_at = NULL, finished_at = created_at WHERE id = :row",
        type=error_type,
        row=row,
    )


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
    outbox.raw("UPDATE outbox_events SET tenant_id = 't' || (id % 3), index_name = iif(id % 2, 'contacts', 'notes')")
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
    assert answer == {"pending": 1, "superseded": 1, "overtaken": {str(overtaken): later}}
    assert [outbox.state(row) for row in (alone, replaced, overtaken)] == ["pending", "done", "dead"]
    assert embedded.logged("1 row retried by admin at testclient; selection: ids=[")
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


# -- reindex ----------------------------------------------------------------------------------------------------------


def test_reindex_rebuilds_an_index_under_traffic(world: World, place: Place) -> None:
    world.save(*(Contact(id=at, name=f"Ada {at}") for at in range(30)))
    world.delivered()
    place.tamper("contacts", next(iter(place.documents("contacts"))), None)
    started = world.post("/reindex", {"entity": "Contact"}, 202)
    assert set(started) == {"jobId", "status", "estimatedDocuments"}
    assert (started["status"], started["estimatedDocuments"]) == ("running", 30)
    world.save(Contact(id=100, name="written meanwhile"))
    job = world.job(started["jobId"])
    assert (job["newIndex"], job["abandoned"], job["error"]) == ("contacts-000002", False, None)
    assert job["documents"] in (30, 31)
    assert len(place.documents("contacts")) == 31
    assert [each["jobId"] for each in world.get("/reindex")] == [started["jobId"]]
    assert world.logged("reindex of Contact begun by admin at testclient")


def test_part_of_an_index_is_rebuilt_in_place(world: World, place: Place) -> None:
    world.save(Contact(id=1, name="old"), Contact(id=2, name="new", changed=datetime(2026, 6, 1)))
    world.save(Contact(id=3, name="other", tenant="t2", changed=datetime(2026, 6, 1)))
    world.delivered()
    started = world.post("/reindex", {"entity": "Contact", "tenantId": "t1", "fromDate": "2026-05-01"}, 202)
    assert started["estimatedDocuments"] == 1
    job = world.job(started["jobId"])
    assert (job["newIndex"], job["tenantId"], job["fromDate"]) == (None, "t1", "2026-05-01")
    assert len(place.documents("contacts")) == 3


def test_each_tenants_index_is_rebuilt_one_after_another(world: World, place: Place) -> None:
    world.save(*(Company(id=at, name=f"Engines {at}", tenant=f"t{at % 3}") for at in range(9)))
    world.delivered()
    started = world.post("/reindex", {"entity": "Company"}, 202)
    assert started["estimatedDocuments"] == 9
    until(lambda: (world.drain(), len(world.get("/reindex")) == 3)[1], "all three have begun")
    for job in world.get("/reindex"):
        assert len(place.documents(world.job(job["jobId"])["index"])) == 3
    one = world.post("/reindex", {"entity": "Company", "tenantId": "t2"}, 202)
    assert (one["estimatedDocuments"], world.job(one["jobId"])["index"]) == (3, "t2_companies")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"entity": "Contract"}, ["did you mean", "Contact", "Company"]),
        ({"entity": "contacts"}, ["the index contacts is that of Contact"]),
        ({"entity": "Contact", "tenantId": "t9"}, ["t9", "t1"]),
        ({"entity": "Contact", "fromDate": "yesterday"}, ["yesterday", "2026-11-01"]),
        ({"entity": "Company", "fromDate": "2026-01-01"}, ["Company", "changed_at"]),
    ],
    ids=json.dumps,
)
def test_reindex_of_what_does_not_exist(embedded: World, body: dict[str, str], told: list[str]) -> None:
    embedded.save(Contact(id=1, name="Ada"), Company(id=1, name="Engines"))
    embedded.delivered()
    detail = embedded.post("/reindex", body, 422)["detail"]
    assert all(each in detail for each in told), detail
    assert embedded.get("/reindex") == []


def test_index_that_is_being_rebuilt_already(embedded: World) -> None:
    embedded.save(Contact(id=1, name="Ada"))
    embedded.delivered()
    embedded.post("/pause", {"reason": "so that the reindex waits for a row"})
    embedded.save(Contact(id=2, name="Grace"))
    started = embedded.post("/reindex", {"entity": "Contact"}, 202)
    detail = embedded.post("/reindex", {"entity": "Contact"}, 409)["detail"]
    assert f"reindex {started['jobId']} of contacts" in detail and "is running already" in detail
    embedded.post("/resume")
    embedded.job(started["jobId"])


def test_several_ask_at_once_and_one_begins(embedded: World) -> None:
    embedded.save(Contact(id=1, name="Ada"))
    embedded.delivered()
    embedded.post("/pause", {"reason": "so that the reindex waits for a row"})
    embedded.save(Contact(id=2, name="Grace"))
    codes: list[int] = []

    def ask() -> None:
        codes.append(embedded.client.post(f"{API}/reindex", json={"entity": "Contact"}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [202, 409, 409, 409, 409, 409]
    embedded.post("/resume")
    embedded.job(embedded.get("/reindex")[0]["jobId"])


def test_cancelled_reindex_leaves_the_index_as_it_was(world: World, place: Place) -> None:
    world.save(Contact(id=1, name="Ada"))
    world.delivered()
    world.post("/pause", {"reason": "so that the reindex waits for a row"})
    world.save(Contact(id=2, name="Grace"))
    number = world.post("/reindex", {"entity": "Contact"}, 202)["jobId"]
    assert world.post(f"/reindex/{number}/cancel", expected=202)["jobId"] == number
    world.job(number, "cancelled")
    assert "has ended already: cancelled" in world.post(f"/reindex/{number}/cancel", expected=409)["detail"]
    world.post("/resume")
    world.delivered()
    assert len(place.documents("contacts")) == 2
    assert place.indexes() == ["contacts-000001"]
    assert world.logged("WARNING reindex 1 of contacts (into contacts-000002) cancelled by admin at testclient")


def test_reindex_that_a_killed_server_left_is_gone_on_with(outbox: Outbox, tmp_path: Path) -> None:
    Base.metadata.create_all(outbox.engine)
    destination, registry = EmbeddedDestination(tmp_path / "search.db"), registered()
    sessions = registry.capture(sessionmaker(outbox.engine))
    with sessions.begin() as session:
        session.add_all(Contact(id=at, name=f"Ada {at}") for at in range(1_200))
    relay = outbox.relay(destination, 2, registry)
    while relay.run_once():
        pass
    store = Store(outbox.engine)
    steps = Reindexer(store, destination, registry).run(Selection("contacts", tuple(registry.of_index("contacts"))))
    while next(steps).rows < 500:
        pass
    outbox.raw("UPDATE outbox_reindex_jobs SET lease_expires_at = 1")  # the server was killed here, some time ago
    with client_of(outbox.engine, destination, registry) as client:
        world = World(outbox, destination, client, registry)
        (left,) = world.get("/reindex")
        assert (left["status"], left["abandoned"]) == ("running", True)
        assert world.get("/status")["reindexes"][0]["abandoned"]
        started = world.post("/reindex", {"entity": "Contact"}, 202)
        assert started["jobId"] == left["jobId"]
        assert world.job(started["jobId"])["documents"] == 1_200
    steps.close()
    store.close()
    destination.close()


def test_reindex_goes_on_where_a_stopped_server_left_it(outbox: Outbox, tmp_path: Path) -> None:
    Base.metadata.create_all(outbox.engine)
    destination, registry = EmbeddedDestination(tmp_path / "search.db"), registered()
    with client_of(outbox.engine, destination, registry) as client:
        world = World(outbox, destination, client, registry)
        world.save(Contact(id=1, name="Ada"))
        world.delivered()
        world.post("/pause", {"reason": "so that the reindex waits for a row"})
        world.save(Contact(id=2, name="Grace"))
        number = world.post("/reindex", {"entity": "Contact"}, 202)["jobId"]
    with closing(Store(outbox.engine)) as store:
        assert [job.id for job in jobs.orphans(store, now_ms())] == [number]  # a relay would go on with it, too
    with client_of(outbox.engine, destination, registry) as client:
        world = World(outbox, destination, client, registry)
        assert world.get(f"/reindex/{number}")["abandoned"]
        assert world.post("/reindex", {"entity": "Contact"}, 202)["jobId"] == number
        world.post("/resume")
        world.job(number)
    destination.close()


class Away(EmbeddedDestination):
    """Does not answer until `back` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.back = threading.Event()

    def inspect_index(self, name: str, target: str) -> Any:
        self.back.wait(LIMIT_S)
        return super().inspect_index(name, target)


def test_reindex_whose_tables_are_migrated_beneath_it_stops(embedded: World) -> None:
    embedded.save(Contact(id=1, name="Ada"))
    embedded.delivered()
    embedded.post("/pause", {"reason": "so that the reindex waits for a row"})
    embedded.save(Contact(id=2, name="Grace"))
    embedded.post("/reindex", {"entity": "Contact"}, 202)
    embedded.outbox.raw("CREATE TABLE more (id INTEGER)")
    embedded.outbox.raw("UPDATE outbox_alembic_version SET version_num = '9999'")
    until(lambda: embedded.logged("9999"), "the reindex says why it stops")
    embedded.outbox.raw("UPDATE outbox_alembic_version SET version_num = :at", at=schema.head())
    assert embedded.get("/reindex")[0]["status"] == "running"


def test_reindex_whose_destination_does_not_answer_in_time_does_not_begin_later(
    outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Base.metadata.create_all(outbox.engine)
    destination, registry = Away(tmp_path / "search.db"), registered()
    with client_of(outbox.engine, destination, registry) as client:
        world = World(outbox, destination, client, registry)
        world.save(Contact(id=1, name="Ada"))
        world.delivered()
        with monkeypatch.context() as patched:
            patched.setattr(service, "LONGEST_START_S", 0.2)
            told = world.post("/reindex", {"entity": "Contact"}, 502)["detail"]
        assert "has not answered within 0.2 s" in told and "ask again when it answers" in told
        assert world.get("/reindex") == []
        destination.back.set()
        (job,) = until(lambda: world.get("/reindex"), "the call that hung has come back")
        world.job(job["jobId"], "cancelled")
        until(lambda: world.logged("is cancelled"), "the log says so")
        world.job(world.post("/reindex", {"entity": "Contact"}, 202)["jobId"])
    destination.close()


@pytest.mark.elasticsearch
def test_reindex_while_elasticsearch_is_away(outbox: Outbox, proxy: FaultProxy) -> None:
    Base.metadata.create_all(outbox.engine)
    destination, registry = ElasticsearchDestination([proxy.url], request_timeout=5), registered()
    with client_of(outbox.engine, destination, registry) as client:
        world = World(outbox, destination, client, registry)
        world.save(Contact(id=1, name="Ada"))
        world.delivered()
        proxy.down()
        assert world.post("/reindex", {"entity": "Contact"}, 502)["detail"]
        proxy.up()
        proxy.on(anything, hang)
        began = now_ms()
        assert world.post("/reindex", {"entity": "Contact"}, 502)["detail"]
        assert now_ms() - began < 1_000 * LIMIT_S / 2  # it would hang for longer
        proxy.clear()
        assert world.get("/reindex") == []
        world.job(world.post("/reindex", {"entity": "Contact"}, 202)["jobId"])
    destination.close()


@pytest.mark.elasticsearch
def test_reindex_waits_for_elasticsearch_that_goes_away_meanwhile(outbox: Outbox, proxy: FaultProxy) -> None:
    Base.metadata.create_all(outbox.engine)
    destination, registry = ElasticsearchDestination([proxy.url], request_timeout=30), registered()
    with client_of(outbox.engine, destination, registry) as client:
        world = World(outbox, destination, client, registry)
        world.save(*(Contact(id=at, name="Ada") for at in range(600)))
        world.delivered()
        proxy.on(bulk, hang)
        number = world.post("/reindex", {"entity": "Contact"}, 202)["jobId"]
        proxy.wait_for(bulk)
        assert world.get(f"/reindex/{number}")["status"] == "running"
        proxy.clear()
        assert world.job(number)["documents"] == 600
    destination.close()


# -- verify -----------------------------------------------------------------------------------------------------------


@pytest.mark.elasticsearch
def test_gateway_that_answers_in_its_place_is_no_answer_and_ends_no_watch(
    outbox: Outbox, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "POLL_EVERY_S", 0.05)
    proxy.on(anything, reply(200, b"maintenance", {"Content-Type": "text/plain", "X-Elastic-Product": "Elasticsearch"}))
    destination, registry = ElasticsearchDestination([proxy.url], request_timeout=30), registered()
    with client_of(outbox.engine, destination, registry) as client:
        world = World(outbox, destination, client, registry)

        def reachable() -> bool | None:
            seen = world.get("/status")["destination"]
            return None if seen is None else bool(seen["reachable"])

        until(lambda: reachable() is False, "it is away")
        proxy.clear()
        until(reachable, "it is back")
    destination.close()


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


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", 422),
        (b"{", 400),
        (b'{"reason": "x",}', 400),
        (b"\xff\xfe", 400),
        (b"null", 422),
        (b"[]", 422),
        (b'"text"', 422),
        (b"1e999", 422),
        (b'{"unknown": 1}', 422),
        (b'{"reason": "\\ud800", "entity": "\\ud800", "index": "\\ud800"}', 422),
        (b'{"reason": "\\u0000", "entity": "\\u0000", "index": "\\u0000"}', 422),
        (b"[" * 5_000 + b"]" * 5_000, 422),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else "",
)
def test_body_that_makes_no_sense(embedded: World, body: bytes, expected: int) -> None:
    for path in ("/pause", "/dead/retry", "/dead/discard", "/reindex", "/verify"):
        answer = embedded.client.post(f"{API}{path}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in {expected, 400}, path
        is_problem(answer, answer.status_code)
    assert embedded.get("/status")["paused"] is None


QUESTIONS = {
    "/events/999": 404,
    "/events/0": 422,
    "/events/x": 422,
    "/events/99999999999999999999": 422,
    "/events?state=gone": 422,
    "/events?limit=0": 422,
    "/events?limit=501": 422,
    "/events?cursor=-1": 422,
    "/events?cursor=9999999999999999": 422,
    "/events?index=": 422,
    "/events?index=%00": 422,
    "/reindex/7": 404,
    "/reindex/7/cancel": 405,
    "/nothing": 404,
    "/pause": 405,
}


def test_question_that_makes_no_sense(embedded: World) -> None:
    for path, expected in QUESTIONS.items():
        answer = embedded.client.get(f"{API}{path}", headers={"Accept": "text/html"})
        assert answer.status_code == expected, path
        is_problem(answer, expected)
        assert expected != 405 or answer.headers["allow"]


def test_database_that_somebody_has_locked(tmp_path: Path, engine: Engine) -> None:
    impatient = create_engine(engine.url)
    sqlite.prepare(impatient, busy_timeout=0.1)
    destination = EmbeddedDestination(tmp_path / "search.db")
    lock = engine.raw_connection()
    with client_of(impatient, destination) as client:
        lock.cursor().execute("BEGIN IMMEDIATE")
        assert "locked" in checked(client.post(f"{API}/pause", json={"reason": "x"}), 503)["detail"]
        assert client.get(f"{API}/status").status_code == 200  # who only looks waits for nobody
        assert client.get("/health/ready").status_code == 200
        lock.cursor().execute("ROLLBACK")
        assert client.post(f"{API}/pause", json={"reason": "x"}).status_code == 200
    lock.close()
    impatient.dispose()
    destination.close()


@pytest.mark.parametrize("how", ["removed", "no database", "another without the tables"])
def test_database_that_is_gone(embedded: World, how: str, tmp_path: Path) -> None:
    file = tmp_path / "app.db"
    assert embedded.client.get("/health/ready").status_code == 200
    whole = embedded.outbox.engine.raw_connection()
    whole.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole.close()
    kept = file.rename(tmp_path / "kept.db")
    if how != "removed":
        file.write_bytes(b"this is no database, but text\n" * 200 if how == "no database" else b"")
    for path in ("/events", "/events/1", "/reindex"):
        assert embedded.get(path, 503)["detail"]
    until(lambda: embedded.client.get(f"{API}/status").status_code == 503, "the last overview is too old")
    embedded.post("/pause", {"reason": "x"}, 503)
    assert embedded.client.get("/health/ready").json() == {"status": "unready"}
    assert embedded.client.get("/health/live").status_code == 200
    assert embedded.client.get("/metrics").status_code == 503
    if how == "removed":
        assert not file.exists()  # nor was an empty one made
    kept.replace(file)
    assert embedded.client.get("/health/ready").status_code == 200  # as it was, or restored from a backup
    assert embedded.get("/status")["queue"]["unfinished"] == 0


def test_tables_that_were_migrated_beneath_the_server_are_not_served_until_it_knows_them(embedded: World) -> None:
    head, browser = schema.head(), {"accept": "text/html"}
    row = embedded.outbox.index("contacts", "c1", {})
    kill(embedded.outbox, row)
    embedded.outbox.raw("CREATE TABLE other (id)")  # the application's own migrations are none of its business
    assert embedded.get("/events")["items"]

    embedded.outbox.raw("ALTER TABLE outbox_events RENAME COLUMN error TO reason")
    embedded.outbox.raw("UPDATE outbox_alembic_version SET version_num = '9999'")
    says = (
        f"at revision 9999, newer than this version knows ({head}): upgrade outbox-relay, and restart what ran before"
    )
    for path in ("/events", f"/events/{row}", "/reindex"):
        assert says in embedded.get(path, 503)["detail"]
    for path, body in (("/dead/discard", {"all": True}), ("/pause", {"reason": "x"}), ("/verify", {})):
        assert says in embedded.post(path, body, 503)["detail"]
    page = embedded.client.get("/events", headers=browser)
    assert (page.status_code, says in page.text) == (503, True)
    assert embedded.client.get("/health/ready").status_code == 503
    assert embedded.client.get("/health/live").status_code == 200
    until(lambda: embedded.logged("9999"), "the log says it once")

    embedded.outbox.raw("ALTER TABLE outbox_events RENAME COLUMN reason TO error")
    embedded.outbox.raw("UPDATE outbox_alembic_version SET version_num = :at", at=head)
    assert embedded.get(f"/events/{row}")["state"] == "dead"


def test_backup_of_an_older_version_in_the_place_of_the_database(embedded: World) -> None:
    assert embedded.get("/events")["items"] == []
    embedded.outbox.raw("ALTER TABLE outbox_events DROP COLUMN error")
    embedded.outbox.raw("UPDATE outbox_alembic_version SET version_num = '0001'")
    assert embedded.get("/events", 503)["detail"].endswith(
        f"this version needs {schema.head()}: run 'outbox-relay migrate'"
    )


def test_openapi_document_says_what_each_route_answers(embedded: World) -> None:
    document = embedded.client.get("/api/openapi.json").json()
    for path, methods in document["paths"].items():
        assert path.startswith(API)
        for method, operation in methods.items():
            assert operation["summary"], (path, method)
            for status, answer in operation["responses"].items():
                kind = "application/json" if status.startswith("2") else "application/problem+json"
                assert list(answer["content"]) == [kind], (path, method, status)

"""A reindex that is begun, watched and cancelled over HTTP, whatever happens to its server or its destination."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import sessionmaker

from outbox import schema
from outbox.admin import service
from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.reindex import Reindexer
from outbox.reindex.selection import Selection
from outbox.store import jobs
from outbox.store.models import now_ms
from outbox.store.store import Store
from tests.admin.world import API, Base, Company, Contact, World, registered
from tests.support import LIMIT_S
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.support.proxy import FaultProxy, anything, bulk, hang
from tests.support.relays import until
from tests.support.serving import client_of


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy Elasticsearch takes longer to make an index than anybody waits for an answer."""
    monkeypatch.setattr(service, "LONGEST_START_S", LIMIT_S)


def rebuilds(world: World) -> list[dict[str, Any]]:
    """What the audit says of rebuilds, the newest first."""
    return [each for each in world.get("/audit") if each["action"] == "reindex"]


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
    with embedded.reindex_held():
        started = embedded.post("/reindex", {"entity": "Contact"}, 202)
        detail = embedded.post("/reindex", {"entity": "Contact"}, 409)["detail"]
    assert f"reindex {started['jobId']} of contacts" in detail and "is running already" in detail
    embedded.job(started["jobId"])


def test_several_ask_at_once_and_one_begins(embedded: World) -> None:
    embedded.save(Contact(id=1, name="Ada"))
    embedded.delivered()
    codes: list[int] = []

    def ask() -> None:
        codes.append(embedded.client.post(f"{API}/reindex", json={"entity": "Contact"}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    with embedded.reindex_held():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(codes) == [202, 409, 409, 409, 409, 409]
    embedded.job(embedded.get("/reindex")[0]["jobId"])


def test_cancelled_reindex_leaves_the_index_as_it_was(world: World, place: Place) -> None:
    world.save(Contact(id=1, name="Ada"))
    world.delivered()
    with world.reindex_held():
        number = world.post("/reindex", {"entity": "Contact"}, 202)["jobId"]
        (begun,) = rebuilds(world)
        assert (begun["about"], begun["endedAt"]) == ("entity=Contact", None)  # it goes on
        world.save(Contact(id=2, name="Grace"))
        assert world.post(f"/reindex/{number}/cancel", expected=202)["jobId"] == number
        until(lambda: world.get(f"/reindex/{number}")["status"] == "cancelling", "it is asked to stop")
    world.job(number, "cancelled")
    until(lambda: all(each["endedAt"] for each in rebuilds(world)), "the audit says that both have ended")
    cancelled, ended = rebuilds(world)
    assert (cancelled["about"], cancelled["error"]) == (f"cancel={number}", None)
    assert "cancelled by" in ended["error"]
    assert "has ended already: cancelled" in world.post(f"/reindex/{number}/cancel", expected=409)["detail"]
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
    """Does not answer while `back` is cleared."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.back = threading.Event()
        self.back.set()

    def inspect_index(self, name: str, target: str) -> Any:
        self.back.wait(LIMIT_S)
        return super().inspect_index(name, target)


def test_reindex_whose_tables_are_migrated_beneath_it_stops(embedded: World) -> None:
    embedded.save(Contact(id=1, name="Ada"))
    embedded.delivered()
    with embedded.reindex_held():
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
        destination.back.clear()
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

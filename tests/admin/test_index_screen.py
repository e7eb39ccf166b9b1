"""The screens of the indexes: which there are, and what is known of one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox.admin.screens import indexes
from outbox.destinations.base import IndexFacts
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.store.models import now_ms
from tests.admin.test_mapping_drift import drifted
from tests.admin.world import API, Company, Contact, World, kill, registered
from tests.support.outbox import Outbox
from tests.support.serving import TestClient, client_of

HTML = {"Accept": "text/html"}


def statistic(outbox: Outbox, index: str, at: int, done: int, dead: int = 0) -> None:
    outbox.raw(
        "INSERT INTO outbox_stats (minute, index_name, entity, tenant_id, action, done, dead)"
        " VALUES (:at, :index, 'Contact', 't1', 'index', :done, :dead)",
        at=at - at % 60_000,
        index=index,
        done=done,
        dead=dead,
    )


def breaker(outbox: Outbox, index: str | None, reason: str) -> None:
    now = now_ms()
    outbox.raw(
        "INSERT INTO outbox_relays (host, pid, version, started_at, heartbeat_at, breakers)"
        " VALUES ('worker-1', 7, '1', :now, :now, :breakers)",
        now=now,
        breakers=json.dumps([{"index": index, "reason": reason, "since": now}]),
    )


def test_index_says_what_waits_what_holds_it_up_and_how_it_is_made(embedded: World) -> None:
    embedded.save(Contact(id=1, name="Ada"), Company(id=1, name="Acme"))
    embedded.drain()
    kill(embedded.outbox, embedded.outbox.index("contacts", "c2", {"name": "Grace"}))
    embedded.outbox.index("contacts", "c3", {"name": "Alan"}, tenant_id="t1")
    embedded.outbox.index("deals", "d1", {})
    breaker(embedded.outbox, "contacts", "cluster_block_exception: the disk is full")
    embedded.post("/pause", {"reason": "an import", "index": "contacts"})
    embedded.post("/pause", {"reason": "it moves", "tenantId": "t1"})
    found = embedded.get("/index", index="contacts")
    assert (found["queue"]["unfinished"], found["queue"]["fresh"], found["queue"]["dead"]) == (1, 1, 1)
    assert found["queue"]["oldestSeconds"] >= 0
    assert found["entities"] == ["Contact"]
    assert [(each["index"], each["tenantId"], each["reason"]) for each in found["paused"]] == [
        (None, "t1", "it moves"),
        ("contacts", None, "an import"),
    ]
    assert found["breakers"][0]["reason"] == "cluster_block_exception: the disk is full"
    assert [(each["name"], each["role"]) for each in found["physical"]] == [("contacts-000001", "live")]
    assert found["readers"] == ["contacts-000001"]
    assert found["mappings"] == {"verdict": "same", "differences": [], "remedy": None, "error": None}
    assert (found["hour"]["done"], found["quarter"]["done"]) == (1, 1)
    page = embedded.client.get("/index?index=contacts").text
    for said in ("It takes no rows now", "the disk is full", "an import", "As registered", "contacts-000001"):
        assert said in page


def test_indexes_that_need_somebody_come_first(embedded: World) -> None:
    embedded.save(Contact(id=1, name="Ada"), Company(id=1, name="Acme"))
    embedded.drain()
    kill(embedded.outbox, embedded.outbox.index("zebras", "z1", {}))
    embedded.outbox.index("alpacas", "a1", {})
    lines = embedded.get("/indexes")
    assert [each["index"] for each in lines] == ["zebras", "alpacas", "contacts", "t1_companies"]
    assert (lines[0]["dead"], lines[0]["entities"], lines[1]["unfinished"]) == (1, [], 1)
    assert lines[3] == {
        "index": "t1_companies",
        "entities": ["Company"],
        "unfinished": 0,
        "oldestSeconds": None,
        "dead": 0,
        "paused": False,
        "pausedTenants": [],
        "blocked": None,
    }
    assert [each["index"] for each in embedded.get("/indexes", name="compan")] == ["t1_companies"]
    assert len(embedded.get("/indexes", limit=2)) == 2
    page = embedded.client.get("/indexes").text
    assert '<a href="/index?index=t1_companies">t1_companies</a>' in page


def test_index_of_which_one_tenant_is_paused_is_not_called_paused(embedded: World) -> None:
    embedded.outbox.index("alpacas", "a1", {}, tenant_id="acme")
    embedded.post("/pause", {"reason": "an import", "index": "alpacas", "tenantId": "acme"})
    (line,) = embedded.get("/indexes", name="alpacas")
    assert (line["paused"], line["pausedTenants"]) == (False, ["acme"])
    assert "rows of acme" in embedded.client.get("/indexes").text
    assert "Rows of acme are paused; all others flow" in embedded.client.get("/index?index=alpacas").text
    embedded.post("/pause", {"reason": "an import", "index": "alpacas"})
    assert embedded.get("/indexes", name="alpacas")[0]["paused"]
    assert "Paused: rows gather" in embedded.client.get("/index?index=alpacas").text


def test_index_that_no_row_names_is_not_there(embedded: World) -> None:
    assert "there is no index 'nowhere'" in embedded.get("/index", expected=404, index="nowhere")["detail"]
    assert embedded.client.get("/index", headers=HTML).status_code == 422
    assert embedded.get("/index", index="contacts")["physical"] == []  # an entity has it: its first row makes it
    page = embedded.client.get("/index?index=contacts").text
    assert "No row was sent so far" in page
    assert "Not known: no rows went to it so far." in page


def test_what_became_of_its_rows_by_hour_and_by_day_is_of_that_index_alone(
    embedded: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, day = now_ms(), 86_400_000
    monkeypatch.setattr(indexes, "now_ms", lambda: now)
    midnight = now - now % day
    embedded.outbox.index("contacts", "c1", {})
    statistic(embedded.outbox, "contacts", midnight - 3 * day, 7, 2)  # the sum of an hour
    statistic(embedded.outbox, "contacts", now, 5)
    statistic(embedded.outbox, "contacts", midnight - 8 * day, 9)
    statistic(embedded.outbox, "t1_companies", now, 11)
    found = embedded.get("/index", index="contacts")
    assert [(each["done"], each["dead"]) for each in found["days"]] == [(0, 0)] * 3 + [(7, 2)] + [(0, 0)] * 2 + [(5, 0)]
    assert [each["done"] for each in found["hours"]] == [0] * 23 + [5]
    assert found["day"]["done"] == 5


def test_index_that_is_not_as_registered_says_what_differs_and_how_to_mend_it(outbox: Outbox, tmp_path: Path) -> None:
    destination, registry = drifted(outbox, tmp_path)
    with client_of(outbox.engine, destination, registry) as client:
        found = client.get(f"{API}/index", params={"index": "contacts"}).json()["mappings"]
        page = client.get("/index?index=contacts").text
    destination.close()
    assert found["verdict"] == "different"
    assert "name is text, registered as keyword" in found["differences"][0]
    assert found["remedy"] == "run 'outbox-relay mappings apply', then 'outbox-relay reindex --entity contacts'"
    assert "Not as registered" in page


class Silent(EmbeddedDestination):
    """Says that it is well, and answers no further question until it may."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.may = threading.Event()

    def inspect_index(self, name: str, target: str) -> IndexFacts:
        self.may.wait()
        return super().inspect_index(name, target)


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Silent]:
    made = Silent(tmp_path / "search.db")
    yield made
    made.may.set()
    made.close()


def test_destination_that_is_away_holds_no_page_up(outbox: Outbox, silent: Silent) -> None:
    outbox.index("contacts", "c1", {})
    with client_of(outbox.engine, silent, registered()) as client:

        def asked() -> Any:
            return client.get(f"{API}/index", params={"index": "contacts"}).json()

        for _ in range(6):  # more than are waited for at a time
            found = asked()  # it returns, while nothing was answered
            assert found["readers"] is None
            assert found["queue"]["unfinished"] == 1
            assert found["mappings"]["error"] == "the destination has not answered within 1 s"
        assert "Not known: the destination has not answered within 1 s." in client.get("/index?index=contacts").text
        assert sum(each.name == "outbox-admin question" for each in threading.enumerate()) <= 4
        silent.may.set()


def test_name_of_an_index_leads_to_it_from_wherever_it_stands(embedded: World, client: TestClient) -> None:
    """Overview, rows, a row, a document."""
    row = embedded.outbox.index("deals&more", "d1", {})
    kill(embedded.outbox, row)
    breaker(embedded.outbox, "deals&more", "blocked")
    link = 'href="/index?index=deals%26more"'
    for path in (
        "/",
        "/indexes",
        f"/events/{row}",
        "/events?index=deals%26more",
        "/document?index=deals%26more&id=d1",
    ):
        assert link in client.get(path, headers=HTML).text, path


@pytest.fixture
def client(embedded: World) -> TestClient:
    return embedded.client


def test_who_pauses_an_index_on_its_page_comes_back_to_it(embedded: World, client: TestClient) -> None:
    embedded.outbox.index("contacts", "c1", {})
    given = {"index": "contacts", "reason": "an import", "back": "/index?index=contacts"}
    answer = client.post("/pause", data=given, follow_redirects=False)
    assert answer.headers["location"].startswith("/index?index=contacts&done=Paused%3A+index+contacts")
    page = client.get("/index?index=contacts").text
    assert "Paused: index contacts" in page
    assert "Pause this index, because" not in page
    answer = client.post("/resume", data={"index": "contacts", "back": "//evil.example"}, follow_redirects=False)
    assert answer.headers["location"].startswith("/?done=Resumed")

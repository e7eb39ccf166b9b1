"""One document as the database and the index have it: what is said of it, and delivering it again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from typing import Any

import pytest
from sqlalchemy import Engine

from outbox.destinations.base import Operation, OutcomeKind
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.errors import DestinationError
from tests.admin.world import Base, Company, Contact, World, kill, registered
from tests.support.outbox import Outbox
from tests.support.serving import client_of

AT = {"index": "contacts", "id": "1"}


@pytest.fixture
def world(engine: Engine, outbox: Outbox, search_db: EmbeddedDestination) -> Iterator[World]:
    """With one contact, delivered."""
    Base.metadata.create_all(engine)
    registry = registered()
    with client_of(engine, search_db, registry) as client:
        made = World(outbox, search_db, client, registry)
        made.save(Contact(id=1, name="Ada"))
        made.delivered()
        yield made


def verdict(world: World) -> tuple[str, bool]:
    found = world.get("/document", **AT)
    return found["verdict"], found["onItsWay"]


def put(world: World, document: bytes | None, version: int) -> None:
    """What somebody else writes into the index; None: a delete."""
    (outcome,) = world.destination.apply([Operation("contacts", "contacts-000001", "1", version, document)])
    assert outcome.kind is OutcomeKind.APPLIED, outcome


def page(world: World) -> str:
    return world.client.get("/document", params=AT, headers={"Accept": "text/html"}).text


def test_document_that_is_as_it_should_be(world: World) -> None:
    found = world.get("/document", **AT)
    assert (found["verdict"], found["entity"], found["onItsWay"], found["differs"]) == ("same", "Contact", False, [])
    assert found["expected"] == found["held"] == {"name": "Ada", "tenantId": "t1"}
    assert "The index holds what the database says" in page(world)


def test_text_and_number_that_read_the_same_are_told_apart_and_what_is_unseen_is_escaped_as_json(world: World) -> None:
    put(world, b'{"name": "5\\u0085", "age": 5, "tenantId": "t1"}', 2 * 10**12)
    shown = unescape(page(world))
    assert [json.loads(each) for each in re.findall("<pre>(.*?)</pre>", shown, re.DOTALL)] == [
        "Ada", "5\x85", "t1", "t1", 5,
    ]  # fmt: skip
    assert r'"5\u0085"' in shown


def test_change_that_is_not_delivered_yet_is_on_its_way(world: World) -> None:
    with world.sessions.begin() as session:
        session.get_one(Contact, 1).name = "Grace"
    assert verdict(world) == ("different", True)
    assert "a change of it is on its way" in page(world)
    world.delivered()
    assert verdict(world) == ("same", False)


def test_change_that_the_outbox_never_saw_is_shown_field_by_field_and_delivered_again(world: World) -> None:
    world.outbox.raw("UPDATE contacts SET name = 'Grace <b>'")
    found = world.get("/document", **AT)
    assert (found["verdict"], found["differs"]) == ("different", ["name"])
    assert (found["expected"]["name"], found["held"]["name"]) == ("Grace <b>", "Ada")
    shown = page(world)
    assert "Grace &lt;b&gt;" in shown and re.search(r'<tr data-key="name" class=differs>', shown)
    answer = world.client.post("/document/deliver", data=AT, follow_redirects=False)
    assert answer.headers["location"].startswith("/document?index=contacts&id=1&done=")
    assert verdict(world) == ("different", True)
    world.delivered()
    assert verdict(world) == ("same", False)


def test_document_that_the_index_lost_is_missing_and_delivered_again(world: World) -> None:
    held = world.destination.read("contacts", ["1"])["1"].version
    put(world, None, held + 10**6)
    assert verdict(world) == ("missing", False)
    world.post("/document/deliver", {"index": "contacts", "documentId": "1"}, 202)
    world.delivered()
    assert verdict(world) == ("same", False)


def test_form_delivers_the_document_with_a_blank_at_its_end(world: World) -> None:
    same_site = {"Origin": str(world.client.base_url)}
    answer = world.client.post("/document/deliver", data={"index": "contacts", "id": "1 "}, headers=same_site)
    assert answer.status_code == 200, answer.text
    newest = world.get("/events")["items"][0]
    assert (newest["documentId"], newest["state"]) == ("1 ", "pending")


def test_document_without_a_row_is_extra_and_removed_by_delivering_it_again(world: World) -> None:
    world.outbox.raw("DELETE FROM contacts")
    assert verdict(world) == ("extra", False)
    world.post("/document/deliver", {"index": "contacts", "documentId": "1"}, 202)
    world.delivered()
    found = world.get("/document", **AT)
    assert (found["verdict"], found["expected"], found["held"]) == ("same", None, None)


def test_document_of_a_version_that_takes_no_change_does_after_it_was_delivered_again(world: World) -> None:
    put(world, b'{"name":"Ada","tenantId":"t1"}', 10**15)
    assert verdict(world) == ("version", False)
    world.post("/document/deliver", {"index": "contacts", "documentId": "1"}, 202)
    world.delivered()
    assert verdict(world) == ("same", False)


def test_destination_that_does_not_answer_leaves_what_the_database_says(
    world: World, search_db: EmbeddedDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> Any:
        raise DestinationError("search.db cannot be opened")

    monkeypatch.setattr(search_db, "inspect_index", away)
    found = world.get("/document", **AT)
    assert (found["verdict"], found["error"]) == ("unknown", "search.db cannot be opened")
    assert found["expected"]["name"] == "Ada" and "search.db cannot be opened" in page(world)
    world.post("/document/deliver", {"index": "contacts", "documentId": "1"}, 502)


def test_document_that_no_entity_makes_shows_its_rows_and_cannot_be_delivered_again(world: World) -> None:
    world.outbox.index("notes", "n1", {"text": "hello"})
    world.delivered()
    found = world.get("/document", index="notes", id="n1")
    assert (found["verdict"], found["entity"], found["held"]) == ("unknown", None, {"text": "hello"})
    shown = world.client.get("/document", params={"index": "notes", "id": "n1"}).text
    assert "No registered entity has this index" in shown and "Deliver again" not in shown
    said = world.post("/document/deliver", {"index": "notes", "documentId": "n1"}, 422)["detail"]
    assert "write n1 again where it was written" in said


def test_tenant_of_an_index_of_its_own_is_found(world: World) -> None:
    world.save(Company(id=7, name="Acme", tenant="t2"))
    world.delivered()
    (row,) = world.get("/events", tenant="t2")["items"]
    found = world.get("/document", index=row["index"], id=row["documentId"])
    assert (found["verdict"], found["expected"]["name"]) == ("same", "Acme")


def test_row_leads_to_its_document_and_hidden_fields_stay_hidden(engine: Engine, world: World) -> None:
    world.outbox.raw("UPDATE contacts SET name = 'SECRET'")
    kill(world.outbox, 1)
    with client_of(engine, world.destination, world.registry, admin_hide="name") as client:
        assert 'href="/document?index=contacts&amp;id=1"' in client.get("/events/1").text
        answers = client.get("/document", params=AT).text + client.get("/api/v1/admin/document", params=AT).text
    assert "SECRET" not in answers and "Ada" not in answers


@pytest.mark.parametrize("given", [{}, {"index": "contacts"}, {"id": "1"}])
def test_page_of_no_document(world: World, given: dict[str, str]) -> None:
    answer = world.client.get("/document", params=given)
    assert answer.status_code == 422 and "say which document" in answer.text

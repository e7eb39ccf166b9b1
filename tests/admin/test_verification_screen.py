"""The screens of the verifications: what runs, what was found, and the documents that are wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox.destinations.base import Operation, Stored
from outbox.destinations.embedded.destination import EmbeddedDestination
from tests.admin.world import Base, Contact, World, registered
from tests.support.outbox import Outbox
from tests.support.relays import until
from tests.support.serving import client_of

HTML = {"Accept": "text/html"}


def ended(world: World, number: int = 1) -> Any:
    def look() -> Any:
        found = [each for each in world.get("/verify") if each["id"] == number and each["finishedAt"]]
        return found and found[0]

    return until(look, "the verification has ended")


def test_documents_that_are_wrong_are_named_and_lead_to_where_they_are_put_right(embedded: World) -> None:
    embedded.save(*(Contact(id=at, name=f"Ada {at}") for at in range(3)))
    embedded.drain()
    first = embedded.get("/events", index="contacts")["items"][0]["documentId"]
    embedded.destination.apply([Operation("contacts", "contacts-000001", first, 10**12 + 1_000, None)])
    embedded.post("/verify", {"entity": "Contact"}, 202)
    found = ended(embedded)
    assert (found["status"], found["drift"], found["missing"], found["documents"]) == ("done", 1, 1, 3)
    assert found["by"] == "admin at testclient"
    (wrong,) = embedded.get("/verify/1")["wrong"]
    assert (wrong["kind"], wrong["index"], wrong["documentId"], wrong["entity"]) == (
        "missing",
        "contacts",
        first,
        "Contact",
    )
    page = embedded.client.get("/verifications/1").text
    assert f'<a href="/document?index=contacts&amp;id={first}">' in page
    assert '<a href="/verifications/1">1</a>' in embedded.client.get("/verifications").text
    answer = embedded.client.post("/verify", data={"entity": "Contact", "repair": "yes"}, follow_redirects=False)
    assert answer.headers["location"].startswith("/verifications?done=A+verification+has+begun")
    assert ended(embedded, 2)["repaired"] == 1


def test_verification_that_another_process_has_begun_says_so(embedded: World) -> None:
    embedded.outbox.raw(
        "INSERT INTO outbox_verifications (started_at, finished_at, started_by, scheduled, entities, sample, extra)"
        " VALUES (1, 2, 'relay 1', 1, '[\"Contact\"]', 1, 2)"
    )
    embedded.outbox.raw(
        "INSERT INTO outbox_verifications (started_at, started_by, entities, sample) VALUES (1, 'ada', '[]', 1)"
    )
    killed, ended_one = embedded.get("/verify")
    assert (killed["status"], killed["progress"], killed["wrong"]) == ("unknown", None, None)
    assert (ended_one["status"], ended_one["drift"], ended_one["scheduled"], ended_one["wrong"]) == (
        "done",
        2,
        True,
        None,
    )
    assert "it runs in another process, or was killed" in embedded.client.get("/verifications").text
    assert "This server has not begun it" in embedded.client.get("/verifications/1").text
    assert "stop it where it was begun" in embedded.post("/verify/2/cancel", expected=404)["detail"]
    assert "there is no verification 9" in embedded.get("/verify/9", expected=404)["detail"]
    assert embedded.client.get("/verifications/9", headers=HTML).status_code == 404


class Held(EmbeddedDestination):
    """Answers for the first thousand documents, and for no further ones until it may."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked, self.may = 0, threading.Event()

    def read(self, name: str, document_ids: Any) -> dict[str, Stored]:
        self.asked += len(document_ids)
        if self.asked > 1_000:
            self.may.wait()
        return super().read(name, document_ids)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    made = Held(tmp_path / "search.db")
    yield made
    made.may.set()
    made.close()


def test_verification_that_runs_says_how_far_it_is_and_can_be_cancelled(outbox: Outbox, held: Held) -> None:
    Base.metadata.create_all(outbox.engine)
    registry = registered()
    with client_of(outbox.engine, held, registry) as client:
        world = World(outbox, held, client, registry)
        world.save(*(Contact(id=at, name=f"Ada {at}") for at in range(1_500)))
        world.drain()
        world.post("/verify", {"entity": "Contact"}, 202)
        run = until(lambda: [each for each in world.get("/verify") if each["progress"]], "it says how far it is")[0]
        assert run["status"] == "running"
        progress = run["progress"]
        assert (progress["side"], progress["name"], progress["done"], progress["total"]) == (
            "database",
            "Contact",
            1_000,
            1_500,
        )
        assert progress["rate"] > 0 and progress["etaSeconds"] > 0
        page = client.get("/verifications").text
        assert "database Contact: 1,000 of 1,500" in page and "Cancel verification 1" in page
        answer = client.post("/verify/cancel", data={"id": "1"}, follow_redirects=False)
        assert answer.status_code == 303
        held.may.set()
        found = ended(world)
        assert (found["status"], found["error"]) == ("failed", "stopped before its end")
        assert world.get("/audit")[0]["about"] == "cancel=1"

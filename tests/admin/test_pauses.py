"""Pausing an index or a tenant from the API and by the forms of the dashboard."""

from __future__ import annotations

from typing import Any

from outbox.store import pauses
from outbox.store.models import now_ms
from tests.admin.world import World
from tests.support.outbox import Outbox


def form(world: World, path: str, **fields: str) -> str:
    """What the page says to which a posted form leads."""
    answer = world.client.post(path, data=fields, headers={"Origin": str(world.client.base_url)})
    assert answer.status_code == 200, answer.text
    return str(answer.text)


def waiting(world: World) -> tuple[int, int]:
    """Rows of two indexes, the first of which is to be paused."""
    rows = [world.outbox.index(index, "a", {}, tenant_id="acme") for index in ("contacts", "notes")]
    return rows[0], rows[1]


def test_index_of_a_tenant_is_paused_and_resumed(embedded: World) -> None:
    held, free = waiting(embedded)
    asked = {"index": "contacts", "tenantId": "acme"}
    assert embedded.post("/pause", {**asked, "reason": "import\nforged"}) == {"paused": True, "changed": True}
    seen: Any = embedded.get("/status")
    assert seen["paused"] is None
    ((paused),) = seen["pauses"]
    assert asked.items() <= paused.items()
    assert (paused["by"], paused["reason"]) == ("admin at testclient", "import\nforged")
    assert "rows wait and tenant acme in index contacts is paused" in [each["text"] for each in seen["alerts"]]
    embedded.drain()
    assert (embedded.outbox.state(held), embedded.outbox.state(free)) == ("pending", "done")
    assert embedded.post("/resume") == {"paused": False, "changed": False}
    assert embedded.post("/resume", {"index": "contacts"}) == {"paused": False, "changed": False}
    assert embedded.post("/resume", asked) == {"paused": False, "changed": True}
    assert embedded.get("/status")["pauses"] == []
    embedded.drain()
    assert embedded.outbox.state(held) == "done"
    assert embedded.logged("WARNING tenant acme in index contacts paused by admin at testclient: import\\nforged")
    assert embedded.logged("INFO tenant acme in index contacts resumed by admin at testclient")


def test_what_does_not_exist_is_not_paused(embedded: World) -> None:
    waiting(embedded)
    for field, detail in (("index", "there is no index 'x'"), ("tenantId", "there is no tenant 'x'")):
        assert detail in embedded.post("/pause", {field: "x", "reason": "import"}, 422)["detail"]
    for empty in ({"index": ""}, {"tenantId": ""}):
        embedded.post("/pause", {**empty, "reason": "import"}, 422)
        embedded.post("/resume", empty, 422)
    assert pauses.current(embedded.outbox.store().run) == ()


def test_form_pauses_an_index_and_each_pause_has_a_button_that_ends_it(embedded: World) -> None:
    waiting(embedded)
    assert "Paused: index contacts." in form(embedded, "/pause", reason="import <b>", index="contacts", tenant="")
    page = form(embedded, "/pause", reason="import", index="", tenant="acme")
    assert "<b>Paused: index contacts</b>" in page and "import &lt;b&gt;" in page
    assert 'aria-label="Resume tenant acme"' in page
    page = form(embedded, "/resume", index="contacts")
    assert "Resumed." in page and "Paused: index contacts" not in page and "Paused: tenant acme" in page
    assert form(embedded, "/resume", tenant="acme").count("Resumed.") == 1
    assert pauses.current(embedded.outbox.store().run) == ()


def test_form_means_the_tenant_with_a_blank_at_its_end(embedded: World) -> None:
    for tenant in ("acme", "acme "):
        embedded.outbox.index("contacts", "a", {}, tenant_id=tenant)
        form(embedded, "/pause", reason=" import\n", tenant=tenant)
    form(embedded, "/resume", tenant="acme ")
    left = pauses.current(embedded.outbox.store().run)
    assert [(each.tenant, each.reason) for each in left] == [("acme", "import")]


def test_form_with_a_reason_of_blanks_pauses_nothing(embedded: World) -> None:
    answer = embedded.client.post("/pause", data={"reason": " "}, headers={"Origin": str(embedded.client.base_url)})
    assert (answer.status_code, pauses.current(embedded.outbox.store().run)) == (422, ())


def test_several_pauses_are_one_alert(embedded: World, outbox: Outbox) -> None:
    waiting(embedded)
    for index in ("contacts", "notes"):
        pauses.pause(outbox.store(), "import", "ada", now_ms(), index=index)
    (alert,) = [each for each in embedded.get("/status")["alerts"] if each["name"] == "paused"]
    assert alert["text"] == "rows wait and index contacts and 1 more are paused"
    assert alert["remedy"] == "outbox-relay resume --index contacts"

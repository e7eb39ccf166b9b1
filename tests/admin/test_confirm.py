"""All rows that fit a filter, dealt with after a page that says how many they are and what becomes of them."""

from __future__ import annotations

import re
from html import unescape

import pytest

from tests.admin.world import World, kill


def waiting(world: World) -> dict[str, int]:
    """Pending rows of two tenants: fresh ones, one to be tried again, and one that a relay has."""
    outbox = world.outbox
    found = {name: outbox.index("contacts", name, {}, tenant_id="acme") for name in ("a", "b", "tried", "claimed")}
    found["other"] = outbox.index("contacts", "a", {}, tenant_id="globex")
    tried, claimed = found["tried"], found["claimed"]
    outbox.raw("UPDATE outbox_events SET available_at = 9, error_type = 'busy' WHERE id = :id", id=tried)
    outbox.raw(
        "UPDATE outbox_events SET state = 'claimed', claim_token = 'x', lease_expires_at = 9 WHERE id = :id", id=claimed
    )
    return found


def left(world: World) -> set[int]:
    return {row["id"] for row in world.outbox.store().events()}


def question(world: World, act: str, text: str) -> tuple[str, dict[str, str]]:
    """The page, and the fields of its form."""
    page = world.client.get("/confirm", params={"do": act, "q": text}).text
    fields = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page)
    return unescape(page), {name: unescape(value) for name, value in fields}


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("state:pending", {"a", "b", "tried", "other"}),
        ("state:pending tenant:acme", {"a", "b", "tried"}),
        ("state:pending tenant:acme index:contacts document:b", {"b"}),
        ("state:pending error:busy", {"tried"}),
        ("state:pending id:1", {"a"}),
        ("state:pending id:1 tenant:acme", {"a"}),
    ],
)
def test_pending_rows_of_a_filter_are_purged_and_no_others(embedded: World, text: str, chosen: set[str]) -> None:
    found = waiting(embedded)
    page, fields = question(embedded, "purge", text)
    rows = f"{len(chosen)} row{'s' if len(chosen) > 1 else ''}"
    assert f"<h1>Purge {rows}?</h1>" in page and "The index misses these changes then." in page
    later = embedded.outbox.index("contacts", "b", {}, tenant_id="acme")  # nobody has seen it
    assert embedded.client.post("/purge", data=fields).status_code == 422  # without the tick
    assert left(embedded) == {*found.values(), later}
    answer = embedded.client.post("/purge", data={**fields, "sure": "yes"}, follow_redirects=False)
    assert f"{rows} removed for good.".replace(" ", "+") in answer.headers["location"]
    assert left(embedded) == {*found.values(), later} - {found[name] for name in chosen}


def test_row_that_a_relay_claims_after_the_question_is_left_alone(embedded: World) -> None:
    found = waiting(embedded)
    _, fields = question(embedded, "purge", "state:pending tenant:acme")
    embedded.outbox.raw("UPDATE outbox_events SET state = 'claimed', claim_token = 'x' WHERE id = :id", id=found["a"])
    embedded.client.post("/purge", data={**fields, "sure": "yes"})
    assert left(embedded) == {found["a"], found["claimed"], found["other"]}


@pytest.mark.parametrize(("act", "path"), [("retry", "/dead/retry"), ("discard", "/dead/discard")])
def test_dead_rows_of_a_filter_are_dealt_with_and_the_audit_says_how_many(embedded: World, act: str, path: str) -> None:
    found = waiting(embedded)
    for name in ("a", "b", "other"):
        kill(embedded.outbox, found[name], "poison")
    page, fields = question(embedded, act, "state:dead error:poison tenant:acme")
    assert f"<h1>{act.capitalize()} 2 rows?</h1>" in page
    assert '<code class="text">error:poison</code>' in page and '<code class="text">tenant:acme</code>' in page
    embedded.client.post(path, data={**fields, "sure": "yes"})
    assert [row["id"] for row in embedded.outbox.dead()] == [found["other"]]
    (noted,) = embedded.get("/audit")
    assert (noted["action"], noted["affected"], noted["actedBy"]) == (f"dead {act}", 2, "admin at testclient")
    assert "error_type=poison" in noted["about"] and "tenant=acme" in noted["about"]


@pytest.mark.parametrize(
    "fields",
    [{}, {"of": ""}, {"of": "state=dead"}, {"of": "state=pending"}, {"of": "state=pending&colour=red", "seen": "9"}],
)
def test_form_that_does_not_say_which_rows_purges_none(embedded: World, fields: dict[str, str]) -> None:
    found = waiting(embedded)
    assert embedded.client.post("/purge", data={**fields, "sure": "yes"}).status_code == 422
    assert left(embedded) == {*found.values()}


def test_row_that_is_not_pending_any_more_is_said_to_be_so(embedded: World) -> None:
    found = waiting(embedded)
    _, fields = question(embedded, "purge", f"state:pending id:{found['a']}")
    kill(embedded.outbox, found["a"])
    assert "No pending row is like that any more." in question(embedded, "purge", "state:pending id:1")[0]
    answer = embedded.client.post("/purge", data={**fields, "sure": "yes"}, headers={"Accept": "text/html"})
    assert answer.status_code == 404 and f"no pending row {found['a']}" in answer.text

"""The dashboard as an operator meets it: a real browser before a real relay."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.store import figures
from outbox.store.models import now_ms
from tests.dashboard.site import ENTITIES, Look, Site, dashboard, dead_row
from tests.reindex.world import World
from tests.support import browser as browsers
from tests.support.node import Node
from tests.support.outbox import Outbox
from tests.support.places import ClusterPlace
from tests.support.proxy import FaultProxy
from tests.support.relays import Relays, until
from tests.support.serving import client_of

TOKEN = "correct horse battery staple"


@pytest.mark.elasticsearch
def test_dead_letter_is_found_read_retried_when_its_cause_is_mended_and_gone(
    relays: Relays, outbox: Outbox, clean_node: Node, look: Look
) -> None:
    clean_node.request("PUT", "/things-000001", {
        "mappings": {"dynamic": "strict", "properties": {"name": {"type": "text"}}}, "aliases": {"things": {}},
    })  # fmt: skip
    row = outbox.index("things", "lamp", {"name": "Lamp", "colour": "red"})
    url = dashboard(relays, "--admin")
    until(lambda: outbox.state(row) == "dead", "the row dies")
    visit = look(url)
    visit.time_stands_still()
    page = visit.open("/")
    visit.renewed("#dead", "1")
    expect(page.locator(".large", has=page.locator("#dead"))).to_have_text("1 row")
    visit.click(page.get_by_role("link", name="See why, and retry"))
    assert [each[:4] for each in visit.rows()] == [[str(row), "dead", "index", "things/lamp"]]
    visit.click(page.get_by_role("link", name=str(row), exact=True))
    assert "strict_dynamic_mapping_exception" in visit.text("#error")
    assert "colour" in visit.text("#error")
    assert '"colour": "red"' in visit.text("pre")
    visit.screenshot("dead-letter")

    clean_node.request("PUT", "/things-000001/_mapping", {"properties": {"colour": {"type": "keyword"}}})
    visit.click(page.get_by_role("button", name=f"Retry row {row}").first)
    assert visit.text(".flash") == "1 row is tried again."
    until(lambda: outbox.state(row) == "done", "the row is delivered")
    assert clean_node.get("things", "lamp") == {"name": "Lamp", "colour": "red"}
    visit.renewed("#row .state", "done · applied")
    expect(page.get_by_role("button", name=f"Retry row {row}")).to_have_count(0)
    visit.open("/events?state=dead")
    assert "Nothing was given up" in visit.text("main")


@pytest.mark.elasticsearch
def test_reindex_is_begun_cancelled_begun_again_watched_to_its_end_and_verified_without_a_reload(
    relays: Relays,
    outbox: Outbox,
    destination: ElasticsearchDestination,
    clean_node: Node,
    proxy: FaultProxy,
    look: Look,
) -> None:
    world = World(outbox, ClusterPlace(destination, clean_node, proxy)).filled(20)
    visit = look(dashboard(relays, "--admin", OUTBOX_ENTITIES=ENTITIES))
    visit.time_stands_still()
    page = visit.open("/")
    page.get_by_label("Pause all relays, because").fill("to look at a reindex")
    visit.click(page.get_by_role("button", name="Pause"))
    world.save(21, "Grace")  # a reindex waits for this row before it swaps
    newest = "#jobs tbody tr:first-child .state"
    visit.click(page.get_by_role("link", name="Reindexes", exact=True))
    visit.click(page.get_by_role("button", name="See what it would do"))
    assert "Index contacts: about 21 documents of contacts are written into a new index" in visit.text("#planned")
    visit.screenshot("reindex-planned")
    visit.click(page.get_by_role("button", name="Begin"))
    assert "has begun: 21 rows" in visit.text(".flash")
    assert visit.text(newest) == "running"
    visit.click(page.get_by_role("button", name="Cancel reindex 1"))
    assert "is being cancelled" in visit.text(".flash")
    visit.renewed(newest, "cancelled")

    visit.click(page.get_by_role("button", name="See what it would do"))
    visit.click(page.get_by_role("button", name="Begin"))
    assert visit.text(newest) == "running"
    expect(page.get_by_role("progressbar", name="Progress of reindex 2")).to_have_count(1)
    visit.screenshot("reindex-running")
    page.evaluate("window.never = 'reloaded'")
    outbox.raw("UPDATE outbox_control SET paused_at = NULL")
    visit.renewed(newest, "done")
    assert page.locator("#jobs tbody tr").first.get_by_text("21 of 21").count() == 1
    assert page.evaluate("window.never") == "reloaded"
    world.assert_in_step(live="contacts-000003")

    visit.click(page.get_by_role("link", name="Verifications", exact=True))
    visit.click(page.get_by_role("button", name="Verify"))
    visit.renewed("#verifications tbody tr:first-child td:nth-child(2)", "No drift in 21 documents")
    visit.open("/")
    assert "in 21 documents (of contacts), by admin at 127.0.0.1" in visit.text("#verification")
    visit.screenshot("reindex-done")


@pytest.mark.elasticsearch
def test_paused_with_a_reason_rows_gather_and_drain_when_resumed(
    relays: Relays, outbox: Outbox, clean_node: Node, look: Look
) -> None:
    visit = look(dashboard(relays, "--admin"))
    visit.time_stands_still()
    page = visit.open("/")
    assert visit.text("#verdict h2") == "The index is up to date: nothing waits"
    page.get_by_label("Pause all relays, because").fill("the cluster is upgraded")
    visit.click(page.get_by_role("button", name="Pause"))
    assert visit.text("#reason") == "the cluster is upgraded"
    assert "by admin at 127.0.0.1" in visit.text("#switch")
    for number in range(3):
        outbox.index("contacts", f"c{number}", {"name": "Ada"}, tenant_id="t1")
    visit.renewed("#depth", "3")
    assert visit.text("#alert-paused").startswith("rows wait and the outbox is paused")
    assert page.title() == "1 to look at · outbox-relay"
    assert visit.text("#tenants tbody").startswith("t1 3")
    visit.screenshot("paused")

    visit.click(page.get_by_role("button", name="Resume"))
    assert visit.text(".flash") == "Resumed."
    visit.renewed("#depth", "0")
    assert set(clean_node.documents("contacts")) == {"c0", "c1", "c2"}
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    visit.screenshot("resumed")


def test_rows_and_figures_of_one_tenant(site: Site, look: Look) -> None:
    for number, tenant in enumerate(("acme", "acme", "globex")):
        site.outbox.index("contacts", f"c{number}", {"name": "Ada"}, tenant_id=tenant)
    dead_row(site.outbox, "c7", tenant_id="acme")
    dead_row(site.outbox, "c8", tenant_id="globex")
    site.outbox.raw(
        "INSERT INTO outbox_stats (minute, index_name, entity, tenant_id, action, done, latency_sum_ms)"
        " VALUES (:minute, 'contacts', '', 'acme', 'index', 1234, 49360),"
        " (:minute, 'contacts', '', 'globex', 'index', 5, 10)",
        minute=now_ms() - now_ms() % 60_000,
    )
    visit = look(site.url)
    page = visit.open("/")
    visit.click(page.locator("#tenants").get_by_role("link", name="acme"))
    assert [each[3] for each in visit.rows()] == ["contacts/c7", "contacts/c1", "contacts/c0"]
    assert {each[4] for each in visit.rows()} == {"acme"}
    figures = [visit.text(f"#tenant-{name}") for name in ("depth", "dead", "done")]
    assert figures == ["2", "1", "1,234"]
    assert "40 ms" in visit.text("[aria-label='Figures of this tenant']")
    visit.screenshot("tenant")

    visit.click(page.get_by_label("State").get_by_role("link", name="dead"))
    assert [each[3] for each in visit.rows()] == ["contacts/c7"]
    assert page.get_by_label("Filter", exact=True).input_value() == "tenant:acme state:dead"


def test_history_of_a_document_has_each_of_its_rows_in_order(site: Site, look: Look) -> None:
    rows = [
        site.outbox.index("contacts", "ada", {"name": "Ada"}),
        site.outbox.update("contacts", "ada", {"name": "Ada L."}),
        site.outbox.index("contacts", "ada", {"name": "Ada Lovelace"}),
        site.outbox.delete("contacts", "ada"),
    ]
    site.outbox.index("contacts", "ada2", {"name": "another"})
    for row, outcome, took in zip(rows[:2], ("applied", "coalesced"), (40, 250), strict=True):
        site.outbox.raw(
            "UPDATE outbox_events SET state = 'done', outcome = :o, deliveries = 1, finished_at = created_at + :t"
            " WHERE id = :r", o=outcome, t=took, r=row,
        )  # fmt: skip
    site.outbox.raw(
        "UPDATE outbox_events SET state = 'claimed', claimed_by = 7, lease_expires_at = 1800000000000 WHERE id = :r",
        r=rows[2],
    )
    visit = look(site.url)
    page = visit.open("/")
    page.get_by_role("textbox", name="Document id").fill("ada")
    visit.click(page.get_by_role("button", name="Look up"))
    assert visit.text("h1") == "History of ada"
    assert [each[:3] for each in visit.rows()] == [
        [str(rows[3]), "pending", "delete"],
        [str(rows[2]), "claimed", "index"],
        [str(rows[1]), "done · coalesced", "update"],
        [str(rows[0]), "done · applied", "index"],
    ]
    assert [each[6] for each in visit.rows()] == ["–", "–", "250 ms", "40 ms"]
    visit.screenshot("history")
    visit.open(f"/events/{rows[1]}")
    assert [each[0] for each in visit.rows()] == [str(row) for row in reversed(rows)]
    assert re.fullmatch(
        r"[-0-9]+ [:0-9]+\.\d{3} UTC done: coalesced, 250 ms after it was written",
        " ".join(visit.text("#timeline .done").split()),
    )
    assert page.locator("tr[aria-current]").get_attribute("data-key") == str(rows[1])
    visit.open(f"/events/{rows[2]}")
    assert "relay 7 has it until 2027-01-15 08:00:00.000 UTC" in visit.text("#row")


def test_history_of_more_rows_than_a_page_holds_is_leafed_through(site: Site, look: Look) -> None:
    rows = site.outbox.index_many("contacts", [("ada", {"version": number}) for number in range(120)])
    visit = look(site.url)
    page = visit.open(f"/events/{rows[-1]}")
    visit.click(page.get_by_role("link", name="all rows of this document"))
    seen = []
    while True:
        seen += [int(each[0]) for each in visit.rows()]
        older = page.get_by_role("link", name="Older rows", exact=True)
        if not older.count():
            break
        visit.click(older)
    assert seen == rows[::-1]


def test_rows_that_were_not_found_so_far_are_not_said_to_be_missing(
    outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "MOST_LOOKED_AT", 10)
    rare = outbox.index("contacts", "rare", {})
    outbox.index_many("contacts", [(f"c{number}", {}) for number in range(20)])
    outbox.raw("UPDATE outbox_events SET state = 'done'")
    destination = EmbeddedDestination(tmp_path / "search.db")
    with client_of(outbox.engine, destination) as client:
        page = client.get("/events?document=rare").text
        assert "None so far, but not all rows were looked at" in page
        for _ in range(2):
            older = re.search(r'<a href="([^"]*)" rel="next">', page)
            assert older is not None
            page = client.get(older[1].replace("&amp;", "&")).text
        assert f'<a href="/events/{rare}">' in page
        assert "No row is like that" in client.get("/events?document=nowhere&cursor=5").text
        page = client.get(f"/events/{rare}").text
        assert f'<tr data-key="{rare}" aria-current=true>' in page
        assert "There may be more" in page
    destination.close()


def test_token_is_asked_for_once_and_again_after_logout_or_when_the_session_is_over(
    embedded: Relays, outbox: Outbox, look: Look
) -> None:
    visit = look(dashboard(embedded, command="serve", OUTBOX_ADMIN_TOKEN=TOKEN))
    visit.provoked.append("401 (Unauthorized)")
    visit.time_stands_still()
    page = visit.open("/events?state=dead")
    assert "/login" in page.url
    expect(page.get_by_label("Token")).to_be_focused()
    page.get_by_label("Token").fill("let me in")
    visit.click(page.get_by_role("button", name="Log in"))
    assert visit.text("#wrong") == "That is not the token."
    visit.screenshot("login")
    page.get_by_label("Token").fill(TOKEN)
    visit.click(page.get_by_role("button", name="Log in"))
    assert visit.text("h1") == "Dead rows"
    assert page.url.endswith("/events?state=dead")
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert TOKEN not in cookie["value"]
    visit.open("/")
    visit.click(page.get_by_role("button", name="Log out"))
    assert "/login" in page.url
    visit.open("/events")
    assert "/login" in page.url

    # A session that is over leads to the login by itself, and from there back. What is sent then is not done.
    page.get_by_label("Token").fill(TOKEN)
    visit.click(page.get_by_role("button", name="Log in"))
    assert visit.text("h1") == "Rows"
    page.context.clear_cookies()
    page.clock.run_for(browsers.RENEWED_EVERY_MS)
    page.wait_for_url("**/login?next=/events")
    page.get_by_label("Token").fill(TOKEN)
    visit.click(page.get_by_role("button", name="Log in"))
    visit.open("/")
    page.context.clear_cookies()
    page.get_by_label("Pause all relays, because").fill("too late")
    visit.click(page.get_by_role("button", name="Pause"))
    assert page.url.endswith("/login?next=/")
    assert outbox.store().control().paused_at is None


def test_discarding_asks_for_a_tick(site: Site, look: Look) -> None:
    one, *others = [dead_row(site.outbox, f"c{number}") for number in range(3)]
    visit = look(site.url)
    visit.open("/")
    assert visit.text("#verdict h2") == "3 rows died and need a decision"
    page = visit.open(f"/events/{one}")
    page.get_by_role("button", name="Discard").click()
    assert site.outbox.state(one) == "dead"
    assert page.evaluate("document.activeElement.type") == "checkbox"  # the browser says what is missing
    page.get_by_label("The index may miss it").check()
    visit.screenshot("discard")
    visit.click(page.get_by_role("button", name="Discard"))
    assert visit.text(".flash") == "1 row removed for good."
    assert [each["id"] for each in site.outbox.dead()] == others

    visit.click(page.get_by_role("link", name="Discard all 2"))
    page.get_by_role("button", name="Discard 2 rows").click()
    assert len(site.outbox.dead()) == 2
    visit.provoked.append("422 (Unprocessable")
    page.evaluate("document.querySelector('form[action=\"/dead/discard\"] input[name=sure]').required = false")
    visit.click(page.get_by_role("button", name="Discard 2 rows"))
    assert "tick that the index may miss" in visit.text("main")
    assert len(site.outbox.dead()) == 2
    visit.open("/confirm?do=discard&state=dead")
    page.get_by_label("The index may miss them").check()
    later = dead_row(site.outbox, "c9", finished_at=now_ms() + 1)
    visit.click(page.get_by_role("button", name="Discard 2 rows"))
    assert visit.text(".flash") == "2 rows removed for good."
    assert [each["id"] for each in site.outbox.dead()] == [later]  # nobody has seen it


def test_what_is_done_to_a_filter_leaves_all_other_rows_alone(site: Site, look: Look) -> None:
    mine = dead_row(site.outbox, "a/b", tenant_id="acme")
    others = [
        dead_row(site.outbox, "a/b", tenant_id="globex"),
        dead_row(site.outbox, "c", tenant_id="acme"),
        dead_row(site.outbox, "a/b", index="deals", tenant_id="acme"),
        dead_row(site.outbox, "a/b", tenant_id="acme", error_type="other"),
    ]
    visit = look(site.url)
    page = visit.open("/events?state=dead&index=contacts&document=a%2Fb&tenant=acme&errorType=some_exception")
    assert [each[0] for each in visit.rows()] == [str(mine)]
    assert visit.text("main section h2") == "The dead row of this filter"
    visit.click(page.get_by_role("link", name="Retry it"))
    visit.click(page.get_by_role("button", name="Retry 1 row"))
    assert (site.outbox.state(mine), [each["id"] for each in site.outbox.dead()]) == ("pending", others)
    assert "document=a%2Fb" in page.url
    site.outbox.raw("UPDATE outbox_events SET state = 'dead' WHERE id = :row", row=mine)
    page.reload()
    visit.click(page.get_by_role("link", name="Discard it"))
    page.get_by_label("The index may miss them").check()
    visit.click(page.get_by_role("button", name="Discard 1 row"))
    assert [each["id"] for each in site.outbox.dead()] == others
    assert "document=a%2Fb" in page.url


def test_everything_works_without_a_script(embedded: Relays, outbox: Outbox, look: Look) -> None:
    visit = look(dashboard(embedded, "--admin"), java_script_enabled=False)
    page = visit.open("/")
    page.get_by_label("Pause all relays, because").fill("no script here")
    visit.click(page.get_by_role("button", name="Pause"))
    assert visit.text("#reason") == "no script here"
    row = dead_row(outbox, "c1", document='{"name": "Ada"}')
    visit.open("/events?state=dead")
    visit.click(page.get_by_role("button", name=f"Retry row {row}"))
    assert visit.text(".flash") == "1 row is tried again."
    assert outbox.state(row) == "pending"
    visit.open("/")
    visit.click(page.get_by_role("button", name="Resume"))
    until(lambda: outbox.state(row) == "done", "the row is delivered")
    page.get_by_role("textbox", name="Document id").fill("c1")
    visit.click(page.get_by_role("button", name="Look up"))
    assert [each.inner_text() for each in page.locator("#rows .state").all()] == ["done · applied"]
    visit.screenshot("without-script")


def test_keyboard_alone_leads_to_the_pause_and_shows_where_it_is(site: Site, look: Look) -> None:
    visit = look(site.url)
    page = visit.open("/")
    outline = "() => getComputedStyle(document.activeElement).outlineWidth"

    def tabbed_to() -> str:
        page.keyboard.press("Tab")
        assert page.evaluate(outline) == "3px"
        at = page.locator(":focus")
        box = at.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        return at.inner_text() or str(at.get_attribute("name"))

    assert tabbed_to() == "Skip to the content"
    visit.screenshot("keyboard-skip")
    order = [tabbed_to() for _ in range(12)]
    assert order == [
        "outbox-relay",
        "Overview",
        "Indexes",
        "Dead rows",
        "All rows",
        "Relays",
        "Reindexes",
        "Verifications",
        "Audit",
        "API",
        "document",
        "Look up",
    ]
    visit.open("/")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert tabbed_to() == "reason"
    page.keyboard.type("by keyboard")
    visit.screenshot("keyboard-pause")
    page.keyboard.press("Enter")
    expect(page.locator("#reason")).to_have_text("by keyboard")

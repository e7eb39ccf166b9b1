"""A page that renews itself before somebody who reads, types or points, and before a server that is gone."""

from __future__ import annotations

from playwright.sync_api import expect

from outbox import schema
from tests.dashboard.site import Look, Site, dashboard, dead_row
from tests.support import browser as browsers
from tests.support.relays import Relays


def test_renewing_leaves_focus_typed_text_selection_and_scrolling_alone(site: Site, look: Look) -> None:
    for number in range(60):
        site.outbox.index("contacts", f"c{number}", {"name": "Ada"}, tenant_id=f"tenant-{number:02d}")
    visit = look(site.url)
    visit.time_stands_still()
    page = visit.open("/")
    expect(page.locator("#depth")).to_have_text("60")
    page.get_by_label("Only tenant").fill("half of a na")
    page.get_by_label("Pause all relays, because").press_sequentially("half a rea")
    page.evaluate("document.querySelector('#tenants').parentElement.scrollTop = 120; scrollTo(0, 300)")
    for number in range(60, 65):
        site.outbox.index("contacts", f"c{number}", {"name": "Ada"}, tenant_id="tenant-00")
    visit.renewed("#depth", "65")
    kept = page.evaluate("""() => [document.activeElement.name, document.activeElement.value, scrollY,
        document.querySelector('#tenants').parentElement.scrollTop,
        document.querySelector('[action="/pause"] [name=tenant]').value]""")
    assert kept == ["reason", "half a rea", 300, 120, "half of a na"]
    page.keyboard.type("son")
    assert page.evaluate("document.activeElement.value") == "half a reason"

    page.evaluate("getSelection().selectAllChildren(document.querySelector('#tenants a'))")
    site.outbox.index("contacts", "c65", {"name": "Ada"}, tenant_id="tenant-00")
    visit.renewed("#depth", "66")
    assert page.evaluate("getSelection().toString()") == "tenant-00"
    assert visit.text("#tenants tbody td:nth-child(2)") == "7"
    # What is selected stays as it is read, even if it is another by now.
    page.evaluate("getSelection().selectAllChildren(document.querySelector('#depth'))")
    site.outbox.index("contacts", "c66", {"name": "Ada"}, tenant_id="tenant-00")
    visit.renewed("#tenants tbody td:nth-child(2)", "8")
    assert page.evaluate("getSelection().toString()") == "66"


def test_button_under_the_finger_stays_that_of_its_row(site: Site, look: Look) -> None:
    rows = [dead_row(site.outbox, f"c{number}") for number in range(4)]
    visit = look(site.url)
    visit.time_stands_still()
    page = visit.open("/events?state=dead")
    page.get_by_role("button", name=f"Retry row {rows[1]}").focus()
    site.outbox.raw("UPDATE outbox_events SET state = 'done', outcome = 'retried' WHERE id = :row", row=rows[2])
    newer = [dead_row(site.outbox, "c8"), dead_row(site.outbox, "c9")]
    visit.renewed("#rows tbody tr:first-child td:first-child", str(newer[1]))
    assert [int(each[0]) for each in visit.rows()] == [newer[1], newer[0], rows[3], rows[1], rows[0]]
    assert page.evaluate("document.activeElement.ariaLabel") == f"Retry row {rows[1]}"
    page.keyboard.press("Enter")
    expect(page.locator(".flash")).to_have_text("1 row is tried again.")
    assert site.outbox.state(rows[1]) == "pending"


def test_figures_of_a_server_that_is_gone_look_old(embedded: Relays, look: Look) -> None:
    visit = look(dashboard(embedded, command="serve"))
    visit.provoked.append("net::ERR_")
    visit.time_stands_still()
    page = visit.open("/")
    stale = page.get_by_text("No answer any more")
    expect(stale).to_be_hidden()
    good = page.evaluate("getComputedStyle(document.querySelector('#verdict')).backgroundColor")
    embedded.started[-1].kill()
    embedded.started[-1].wait()
    page.clock.run_for(browsers.RENEWED_EVERY_MS)
    expect(stale).to_be_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('#verdict')).backgroundColor") != good
    visit.screenshot("server-gone")


def test_open_page_says_that_the_tables_were_migrated_beneath_it(site: Site, look: Look) -> None:
    visit = look(site.url)
    visit.provoked.append("503")
    visit.time_stands_still()
    page = visit.open("/")
    stale = page.locator("#stale")
    expect(stale).to_be_hidden()
    site.outbox.raw("CREATE TABLE more (id)")
    site.outbox.raw("UPDATE outbox_alembic_version SET version_num = '9999'")
    visit.renewed_until(
        lambda: "at revision 9999, newer than this version knows" in visit.text("#stale"), "the page says why"
    )
    expect(stale).to_contain_text("restart what ran before. The figures below are those of the last answer")
    site.outbox.raw("UPDATE outbox_alembic_version SET version_num = :at", at=schema.head())
    visit.renewed_until(stale.is_hidden, "the page has figures again")


HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
"""What a browser does with the page of a tab that nobody sees, or sees again; a headless one has no such tabs."""


def test_hidden_page_asks_nothing_and_is_renewed_at_once_when_it_is_seen_again(site: Site, look: Look) -> None:
    visit = look(site.url)
    visit.time_stands_still()
    page = visit.open("/")
    expect(page.locator("#depth")).to_have_text("0")
    site.outbox.index("contacts", "c1", {"name": "Ada"})
    visit.renewed("#depth", "1")  # seen it asks
    page.wait_for_load_state("networkidle")
    page.evaluate(HIDE, True)
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.url))
    site.outbox.index("contacts", "c2", {"name": "Grace"})
    page.clock.pause_at("2100-01-01")  # from now on no timer runs but here
    page.clock.run_for(100 * browsers.RENEWED_EVERY_MS)
    assert visit.text("#depth") == "1"
    assert asked == []
    page.wait_for_timeout(1_000)  # as long as an overview is good
    page.evaluate(HIDE, False)
    expect(page.locator("#depth")).to_have_text("2")  # though no timer has run
    assert len(asked) == 1

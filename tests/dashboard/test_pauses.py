"""Somebody pauses an index on the dashboard, and another one resumes it."""

from __future__ import annotations

from outbox.store import pauses
from tests.dashboard.site import Look, Site


def test_index_of_a_tenant_is_paused_and_resumed_beside_a_second_pause(site: Site, look: Look) -> None:
    for index in ("contacts", "deals"):
        site.outbox.index(index, "a", {}, tenant_id="acme")
    visit = look(site.url)
    page = visit.open("/")
    for index, tenant in (("deals", ""), ("contacts", "acme")):
        page.get_by_label("Pause all relays, because").fill("the import of Monday")
        page.get_by_label("Only index").fill(index)
        page.get_by_label("Only tenant").fill(tenant)
        visit.click(page.get_by_role("button", name="Pause"))
    assert "Paused: tenant acme in index contacts" in visit.text(".flash")
    assert "the import of Monday" in visit.text("#switch .paused >> nth=0")
    visit.screenshot("paused-parts")
    visit.click(page.get_by_role("button", name="Resume tenant acme in index contacts"))
    assert visit.text(".flash") == "Resumed."
    assert [each.what for each in pauses.current(site.outbox.store().run)] == ["index deals"]

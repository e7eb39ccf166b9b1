"""Rows are found by one line of text, and all that are found are dealt with after a question, without a script."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.dashboard.site import Look, Site, dead_row

PENDING = 'state:pending tenant:"Acme Ltd"'


def test_pending_rows_that_were_found_by_typing_are_purged_after_the_question(site: Site, look: Look) -> None:
    for number, tenant in enumerate(("Acme Ltd", "Acme Ltd", "globex")):
        site.outbox.index("contacts", f"c{number}", {"name": "Ada"}, tenant_id=tenant)
    dead_row(site.outbox, "c7", tenant_id="Acme Ltd")
    visit = look(site.url, java_script_enabled=False)
    page = visit.open("/events")
    page.get_by_label("Filter", exact=True).fill(PENDING)
    page.get_by_label("Filter", exact=True).press("Enter")
    assert [each[3] for each in visit.rows()] == ["contacts/c1", "contacts/c0"]
    assert page.get_by_label("Filter", exact=True).input_value() == PENDING
    visit.screenshot("filter-pending")
    visit.click(page.get_by_role("link", name="Purge all …"))
    assert visit.text("h1") == "Purge 2 rows?"
    assert 'All 2 pending rows with tenant:"Acme Ltd".' in visit.text("main")
    visit.screenshot("confirm-purge")
    page.get_by_label("The index may miss them").check()
    visit.click(page.get_by_role("button", name="Purge 2 rows"))
    assert visit.text(".flash") == "2 rows removed for good."
    assert page.get_by_label("Filter", exact=True).input_value() == 'tenant:"Acme Ltd" state:pending'
    visit.click(page.get_by_label("State").get_by_role("link", name="any state"))
    assert [each[3] for each in visit.rows()] == ["contacts/c7"]
    visit.open("/audit")
    assert "purge" in visit.text("tbody tr:first-child") and "2" in visit.text("tbody tr:first-child")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_text_that_cannot_be_read_is_mended_where_it_stands(site: Site, look: Look, scheme: str, width: int) -> None:
    row = dead_row(site.outbox, "c1", tenant_id="acme")
    dead_row(site.outbox, "c2", tenant_id="globex")
    visit = look(site.url, viewport={"width": width, "height": 844}, color_scheme=scheme)
    visit.provoked.append("422 (Unprocessable")
    page = visit.open("/events?state=dead")
    field = page.get_by_label("Filter", exact=True)
    assert field.input_value() == "state:dead"
    visit.screenshot(f"filter-dead-{scheme}-{width}")
    field.fill("state:dead customer:acme")
    field.press("Enter")
    expect(page.get_by_role("alert").locator("visible=true")).to_contain_text("there is no qualifier 'customer:'")
    assert field.input_value() == "state:dead customer:acme"
    assert visit.too_wide() <= 0
    visit.screenshot(f"filter-wrong-{scheme}-{width}")
    field.fill("state:dead tenant:acme")
    field.press("Enter")
    expect(page.locator("#rows tbody tr")).to_have_count(1)
    assert [each[0] for each in visit.rows()] == [str(row)]
    visit.open("/confirm?do=discard&q=state:dead+tenant:acme+error:some_exception")
    visit.screenshot(f"confirm-discard-{scheme}-{width}")

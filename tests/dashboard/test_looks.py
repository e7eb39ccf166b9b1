"""How pages look on a phone, in either colour scheme, and where there is none."""

from __future__ import annotations

import json
import re

import pytest

from outbox.store.models import now_ms
from tests.dashboard.site import Look, Site, dead_row, insert
from tests.support import browser as browsers
from tests.support.outbox import Outbox

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}

PAGES = {
    "overview": "/",
    "indexes": "/indexes",
    "index": "/index?index=contacts",
    "relays": "/relays",
    "reindexes": "/reindexes",
    "reindex-planned": "/reindexes?entity=contacts&keep_old=yes",
    "verifications": "/verifications",
    "verification": "/verifications/1",
    "rows": "/events",
    "dead-rows": "/events?state=dead",
    "confirm": "/confirm?do=discard&state=dead&errorType=some_exception&errorField=(none)",
    "tenant": "/events?tenant=acme",
    "document": f"/document?index=contacts&id={'long-' * 20}1",
    "audit": "/audit",
    "login": "/login",
    "api": "/api/docs",
}


def busy(outbox: Outbox) -> tuple[int, int]:
    """A bit of everything. Returns a dead row and one that waits."""
    dead = dead_row(outbox, "c1", tenant_id="acme", error="no " * 300, document=json.dumps({"name": "Ada " * 200}))
    failed = {"event_id": dead, "failed_at": 1, "relay": 7, "host": "worker-1." * 9, "pid": 1, "error": "no " * 300}
    for attempt, state in enumerate(("pending", "dead", "dead"), 1):
        insert(outbox, "outbox_failures", attempt=attempt, state=state, error_type="some_exception", **failed)
    for number in range(70):
        document_id, tenant = f"{'long-' * 20}{number}", f"acme-{'very-' * 12}{number}"
        waiting = outbox.index("contacts", document_id, {"name": "Ada"}, tenant_id=tenant)
    breakers = json.dumps([{"index": None, "reason": "connection refused " * 9, "since": now_ms()}])
    insert(
        outbox, "outbox_relays",
        host="worker-1.eu-central-1.compute.internal.example.com", pid=1, version="0.1.0", started_at=now_ms(),
        heartbeat_at=now_ms(), breakers=breakers,
    )  # fmt: skip
    job = {"old_index": "contacts-000001", "documents": 5, "total": 9}
    insert(outbox, "outbox_reindex_jobs", index_name="contacts", phase="scan", **job)
    insert(
        outbox, "outbox_audit", began_at=1, acted_by="ada " * 30, action="purge", about="index=" + "x" * 300, affected=3
    )
    insert(
        outbox, "outbox_verifications",
        id=1, started_at=1, started_by="ada " * 30, entities=json.dumps(["contacts"] * 40), sample=0.5, missing=3,
        finished_at=now_ms(), error="no answer " * 40,
    )  # fmt: skip
    insert(outbox, "outbox_verifications", started_at=1, started_by="relay 1", entities='["contacts"]', sample=1)
    insert(outbox, "outbox_indexes", index_name="contacts", physical_index="contacts-" + "0" * 80, role="old")
    for state in ("done", "failed", "cancelled"):
        insert(outbox, "outbox_reindex_jobs", index_name="deals", phase="drop", state=state, finished_at=1, **job)
    return dead, waiting


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_on_a_phone_in_either_colour_scheme(site: Site, look: Look, scheme: str) -> None:
    dead, waiting = busy(site.outbox)
    visit = look(site.url, color_scheme=scheme, **PHONE)

    def assert_readable(path: str, name: str) -> None:
        page = visit.open(path)
        assert visit.too_wide() <= 0, path
        assert page.evaluate(browsers.CONTRASTS) == [], path
        assert page.evaluate(browsers.INLINE) == [], path
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper))) < 384) is (scheme == "dark")
        visit.screenshot(f"phone-{scheme}-{name}")

    for name, path in {**PAGES, "dead-row": f"/events/{dead}", "waiting-row": f"/events/{waiting}"}.items():
        assert_readable(path, name)
    visit.open("/events")
    assert visit.page.evaluate("document.querySelector('.wide').scrollWidth") > 390  # what is wide scrolls by itself
    insert(site.outbox, "outbox_control", id=1, paused_at=1, pause_reason="an upgrade")
    visit.page.wait_for_timeout(1_000)  # as long as an overview is good
    assert_readable("/", "paused")


def test_address_that_makes_no_sense_is_answered_by_a_page(site: Site, look: Look) -> None:
    visit = look(site.url)
    visit.provoked += ["404 (Not Found)", "422 (Unprocessable"]
    for path, said in (
        ("/events/999", "row 999 does not exist"),
        ("/events/abc", "valid integer"),
        ("/nowhere", "Nothing matches the given URI"),
    ):
        visit.open(path)
        assert said in visit.text("main")
        assert visit.page.get_by_role("link", name="To the overview").count() == 1

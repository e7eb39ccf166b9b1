"""The dashboard as people have it: below a path of a real nginx that adds TLS, as the guide says."""

from __future__ import annotations

import ssl
from http.client import HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from tests.dashboard.site import Look, dashboard, dead_row
from tests.support.outbox import Outbox
from tests.support.pages import PAGES, first
from tests.support.relays import Relays
from tests.support.serving import BEARER, TOKEN
from tests.support.tls import needs_nginx, needs_openssl, nginx, self_signed

pytestmark = [needs_nginx, needs_openssl]

GIVEN = {"OUTBOX_ADMIN_TOKEN": TOKEN, "OUTBOX_ADMIN_PROXIES": "127.0.0.1"}
ADDRESSES = "a:not([href^='#']), form, link, script, img"
SOMEBODY = "127.0.0.2"
"""Another address of this machine: nginx has clients beside those that are proxies."""


def locations(url: str, *, kept: bool) -> str:
    """The lines of the guide, for a server that has another port; the path passed on, or left out."""
    lines = first(PAGES["how-to/dashboard.md"], "nginx")
    assert lines.count("http://127.0.0.1:8321;") == 1
    return lines.replace("127.0.0.1:8321;", f"{urlsplit(url).netloc}{'' if kept else '/'};")


@pytest.mark.parametrize("kept", [True, False], ids=["path passed on", "path left out"])
def test_dashboard_works_below_a_path_of_nginx(
    embedded: Relays, outbox: Outbox, look: Look, tmp_path: Path, kept: bool
) -> None:
    row = dead_row(outbox)
    url = dashboard(embedded, "--root-path", "/outbox", command="serve", **GIVEN)
    self_signed(tmp_path)
    with nginx(tmp_path, locations(url, kept=kept)) as address:
        top = f"https://{address}/outbox"
        visit = look(top, ignore_https_errors=True)
        visit.time_stands_still()
        page = visit.open("/outbox/events?state=dead")

        def assert_below() -> None:
            found = page.eval_on_selector_all(ADDRESSES, "(all) => all.map((e) => e.href || e.src || e.action)")
            assert found
            assert [each for each in found if not each.startswith(f"{top}/")] == [], page.url
            assert page.evaluate("getComputedStyle(document.querySelector('.bar')).display") == "flex"  # has its style

        assert_below()
        page.get_by_label("Token").fill(TOKEN)
        visit.click(page.get_by_role("button", name="Log in"))
        assert page.url == f"{top}/events?state=dead"
        (cookie,) = page.context.cookies()
        assert (cookie["path"], cookie["secure"], cookie["httpOnly"]) == ("/outbox", True, True)
        assert_below()
        visit.click(page.get_by_role("button", name=f"Retry row {row}"))
        assert visit.text(".flash") == "1 row is tried again."
        assert_below()
        visit.click(page.get_by_role("link", name="Overview"))
        page.get_by_label("Pause all relays, because").fill("an upgrade")
        visit.click(page.get_by_role("button", name="Pause"))
        assert visit.text("#reason") == "an upgrade"
        outbox.index("contacts", "c2", {})
        visit.renewed("#depth", "2")
        for name in ("Dead rows", "All rows", "Audit", "API"):
            visit.click(page.get_by_role("link", name=name, exact=True))
            assert_below()
        (document,) = visit.links("main a[href$='openapi.json']")
        assert page.request.get(document).json()["servers"] == [{"url": "/outbox"}]
        visit.open("/outbox/")
        visit.click(page.get_by_role("button", name="Log out"))
        assert page.url == f"{top}/login"
        expect(page.get_by_label("Token")).to_be_focused()
        assert page.context.cookies() == []
        page.goto("about:blank")  # before nginx ends: what the page still loads would fail


def test_log_and_audit_name_the_client_of_nginx_whatever_it_claims(
    embedded: Relays, outbox: Outbox, tmp_path: Path
) -> None:
    url = dashboard(embedded, "--root-path", "/outbox", command="serve", **GIVEN)
    self_signed(tmp_path)
    claimed = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"}
    trusting = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
    with nginx(tmp_path, locations(url, kept=True)) as address:
        port = int(address.partition(":")[2])
        given = {**BEARER, **claimed, "Content-Type": "application/json", "Origin": f"https://{address}"}
        for origin, expected in ((f"https://{address}", 200), ("https://evil.example", 403)):
            asked = HTTPSConnection("127.0.0.1", port, context=trusting, source_address=(SOMEBODY, 0))
            asked.request("POST", "/outbox/api/v1/admin/pause", '{"reason": "a test"}', given | {"Origin": origin})
            assert asked.getresponse().status == expected
            asked.close()
    assert outbox.store().control().paused_by == f"admin at {SOMEBODY}"
    assert f"paused by admin at {SOMEBODY}" in embedded.log()
    assert f"of {SOMEBODY}: sent by a page of 'https://evil.example'" in embedded.log()
    assert "203.0.113.9" not in embedded.log()

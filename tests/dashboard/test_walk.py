"""Every page that the application has: found by following links, and judged like all others. None can be forgotten."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page
from starlette.responses import HTMLResponse

from outbox.admin.app import ROOMS
from outbox.admin.guard import HEADERS
from tests.dashboard.filled import filled, say
from tests.dashboard.site import Look, dashboard
from tests.support import browser as browsers
from tests.support.browser import Visit
from tests.support.outbox import Outbox
from tests.support.relays import Relays

pytestmark = pytest.mark.slow

WIDTHS: Final = {"phone": {"width": 390, "height": 844}, "desk": {"width": 1280, "height": 900}}
OF_A_KIND: Final = 2
"""Addresses of one page that are looked at at most: rows in different states, filters, …"""

HOSTILE: Final = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}} \u202egnp.\u2066\u200b"
UNSEEN: Final = "[\u200b\u202a-\u202e\u2066-\u2069\ufeff]"

REACHABLE: Final = """() => [...document.querySelectorAll(
  "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']"
)].filter((each) => each.checkVisibility() && !each.disabled).length"""

FOCUS: Final = """() => {
  const at = document.activeElement;
  if (at === document.body) return null;
  const box = at.getBoundingClientRect();
  const shown = parseFloat(getComputedStyle(at).outlineWidth) >= 3;
  const inside = box.width > 0 && box.left >= -1 && box.right <= innerWidth + 1;
  window.walked ??= new Map();
  if (!walked.has(at)) walked.set(at, walked.size);
  return [walked.get(at), shown && inside, at.outerHTML.slice(0, 120)];
}"""


def pages() -> dict[str, re.Pattern[str]]:
    """Every page of the application by its path, and what an address of it looks like."""
    found = {
        route.path: re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(route.path)))
        for room in ROOMS
        for route in room.routes.routes
        if "GET" in route.methods and _is_page(route.response_class)
    }
    assert {"/", "/events", "/events/{number}", "/audit", "/login", "/api/docs"} <= found.keys()
    return found


def _is_page(response_class: Any) -> bool:
    return getattr(response_class, "value", response_class) is HTMLResponse


def walk(visit: Visit, judge: Callable[[Page], None], most: int = OF_A_KIND) -> None:
    """Follow links until every kind of page has been seen, `most` times at most.

    A page that no link leads to is found missing here, and so is one that the outbox of `filled` has no example of: add
    what it shows there.
    """
    kinds = pages()
    seen: dict[str, list[str]] = {kind: [] for kind in kinds}
    waiting = ["/"]
    while waiting:
        path = waiting.pop(0)
        kind = next((kind for kind, alike in kinds.items() if alike.fullmatch(path.partition("?")[0])), None)
        if kind is None or path in seen[kind] or len(seen[kind]) == most:
            continue
        seen[kind].append(path)
        visit.open(path)
        judge(visit.page)
        links = visit.links("a[href]")
        waiting += [each.removeprefix(visit.url).partition("#")[0] for each in links if each.startswith(visit.url)]
    assert [kind for kind, paths in seen.items() if not paths and kind != "/login"] == []


def assert_calm(visit: Visit, axe: Axe, csp: list[str]) -> None:
    """No sideways scrolling, nothing inline, readable, and nothing that axe-core finds."""
    page = visit.page
    assert visit.too_wide() <= 0, page.url
    assert page.evaluate(browsers.INLINE) == [], page.url
    assert page.evaluate(browsers.CONTRASTS) == [], page.url
    assert set(csp) == {HEADERS["content-security-policy"]}
    found = axe.run(page).response["violations"]
    told = [(each["id"], each["help"], node["html"][:200]) for each in found for node in each["nodes"]]
    assert told == [], page.url


def assert_reached_by_keyboard(page: Page) -> None:
    """Tab leads to all that can be used, one after another, and shows where it is."""
    reachable: int = page.evaluate(REACHABLE)
    walked: list[int] = []
    while len(walked) < reachable:
        page.keyboard.press("Tab")
        if (at := page.evaluate(FOCUS)) is None:  # past the last, before the first
            continue
        assert at[0] == len(walked), f"{page.url}: after {len(walked)} of {reachable} it comes back to {at[2]}"
        assert at[1], f"{page.url}: the focus cannot be seen: {at[2]}"
        walked.append(at[0])


def policies(page: Page) -> list[str]:
    """The policy of each page that is opened from now on."""
    found: list[str] = []
    page.on(
        "response",
        lambda answer: (
            found.append(answer.headers["content-security-policy"]) if answer.request.is_navigation_request() else None
        ),
    )
    return found


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_calm_and_open_to_everybody(
    embedded: Relays, outbox: Outbox, look: Look, scheme: str, width: str
) -> None:
    filled(outbox, embedded)
    visit = look(dashboard(embedded, command="serve"), color_scheme=scheme, viewport=WIDTHS[width])
    visit.time_stands_still()
    axe, csp, name = Axe(), policies(visit.page), f"walk-{scheme}-{width}"

    def judge(page: Page) -> None:
        assert_calm(visit, axe, csp)
        if width == "phone" and scheme == "dark":  # once will do
            assert_reached_by_keyboard(page)
        path = unquote(page.url.removeprefix(visit.url))
        visit.screenshot(f"{name}-{re.sub(r'[^a-z0-9]+', '-', path.lower()).strip('-')[:60] or 'overview'}")

    walk(visit, judge, most=OF_A_KIND if scheme == "light" else 1)
    visit.open("/login")
    judge(visit.page)


def test_text_of_every_column_stays_text_on_every_page(embedded: Relays, outbox: Outbox, look: Look) -> None:
    filled(outbox, embedded)
    say(outbox, HOSTILE)
    visit = look(dashboard(embedded, command="serve"), viewport=WIDTHS["phone"])
    visit.provoked += ["502 (Bad Gateway)", "422 (Unprocessable"]  # of an index that has such a name
    visit.time_stands_still()
    shown: list[str] = []

    def judge(page: Page) -> None:
        assert page.evaluate(browsers.INLINE) == [], page.url
        assert visit.too_wide() <= 0, page.url
        assert visit.faults == [], page.url
        text = page.inner_text("html")
        assert not re.search(UNSEEN, text), page.url
        assert "49" not in text or "7*7" in text
        shown.append(text)
        visit.screenshot(f"walk-hostile-{len(shown)}")

    walk(visit, judge)
    assert sum("<script>alert(1)</script>" in each for each in shown) > 5

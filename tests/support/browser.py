"""A real browser on the dashboard, and what must never happen in it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Dialog, Locator, Page, Request, expect, sync_playwright

from tests.support import LIMIT_S
from tests.support.relays import until

SCREENSHOTS = Path(__file__).parents[1] / "screenshots"
"""What each journey saw last; git ignores it."""

RENEWED_EVERY_MS = 5_000

expect.set_options(timeout=1_000 * LIMIT_S)

CONTRASTS = """() => {
  // Each text with the contrast to what is behind it (WCAG 2.2, 1.4.3), where that is less than it should be.
  const parse = (color) => { const n = color.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color[3] === 1) return color.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const faults = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    const style = getComputedStyle(element);
    if (!walk.currentNode.data.trim() || !element.checkVisibility() || element.closest("option")) continue;
    const [one, other] = [light(parse(style.color).slice(0, 3)), light(behind(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (contrast < (large ? 3 : 4.5)) faults.push([contrast, walk.currentNode.data.trim().slice(0, 40)]);
  }
  return faults;
}"""

INLINE = """() => [...document.querySelectorAll("*")].filter((each) =>
  (each.localName === "script" && !each.src) || each.localName === "style" || each.hasAttribute("style") ||
  [...each.attributes].some(({ name }) => name.startsWith("on")) || /^\\s*javascript:/i.test(each.href ?? each.action)
).map((each) => each.outerHTML.slice(0, 200))"""


def unavailable_reason() -> str | None:
    """Why no browser can be had here; None if one can."""
    return None if shutil.which("chromium") else "Debian's package chromium is not installed"


@contextmanager
def browser() -> Iterator[Browser]:
    """Debian's Chromium. As long as it lives an event loop runs in this thread: no asyncio.run beside it."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu"],
            timeout=1_000 * LIMIT_S,
        )
        yield started
        started.close()


class Visit:
    """Somebody at the dashboard of `url`, with a browser of their own: no cookie is shared.

    `faults`: dialogs, errors on the console (broken rules of the Content-Security-Policy are told there), and
    requests to anywhere else, so far. `answers`: failures that the test provokes, by status.
    """

    def __init__(self, started: Browser, url: str, **options: Any) -> None:
        self.url = url.rstrip("/")
        self._context = started.new_context(base_url=self.url, **options)
        self._context.set_default_timeout(1_000 * LIMIT_S)
        self.page: Page = self._context.new_page()
        self.faults: list[str] = []
        self.provoked: list[str] = []
        self._listen()

    def _listen(self) -> None:
        def dialog(opened: Dialog) -> None:
            self.faults.append(f"dialog: {opened.message}")
            opened.dismiss()

        def console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and not any(each in message.text for each in self.provoked):
                self.faults.append(f"console: {message.text} ({self.page.url})")

        def request(sent: Request) -> None:
            if urlsplit(sent.url).netloc != urlsplit(self.url).netloc:
                self.faults.append(f"request: {sent.url}")

        self.page.on("dialog", dialog)
        self.page.on("console", console)
        self.page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        self._context.on("request", request)

    def open(self, path: str) -> Page:
        self.page.goto(path)
        return self.page

    def links(self, selector: str) -> list[str]:
        """Where links lead, as the browser understands them, from top to bottom."""
        found: list[str] = self.page.eval_on_selector_all(selector, "(links) => links.map((link) => link.href)")
        return found

    def click(self, at: Locator) -> None:
        """On what leads to another page, which is there when this returns."""
        with self.page.expect_navigation():
            at.click()

    def time_stands_still(self) -> None:
        """Timers of pages that are opened from now on run only in `renewed`."""
        self.page.clock.install()

    def renewed(self, selector: str, text: str) -> None:
        """Have the script of the page renew it until this stands there."""
        self.renewed_until(lambda: self.text(selector) == text, f"the page renews {selector} to {text!r}")

    def renewed_until(self, shown: Callable[[], bool], what: str) -> None:
        """A look of the script that a busy server keeps waiting is given up, and only the next one shows it."""

        def look() -> bool:
            self.page.clock.run_for(RENEWED_EVERY_MS)
            return shown()

        until(look, what)

    def text(self, selector: str) -> str:
        return re.sub(r"\s+", " ", self.page.inner_text(selector)).strip()

    def rows(self) -> list[list[str]]:
        """The table of rows, without its head."""
        found: list[list[str]] = self.page.evaluate(
            "() => [...document.querySelectorAll('#rows tbody tr')].map("
            "(row) => [...row.cells].map((cell) => cell.innerText.trim()))"
        )
        return found

    def too_wide(self) -> int:
        """Pixels by which the page as a whole could be scrolled sideways."""
        return int(self.page.evaluate("() => document.documentElement.scrollWidth - innerWidth"))

    def screenshot(self, name: str) -> None:
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    def close(self) -> None:
        self._context.close()

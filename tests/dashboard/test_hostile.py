"""What was stored or typed to run is shown as text, and its links lead to it."""

from __future__ import annotations

import json
import re

from outbox.store.models import now_ms
from tests.dashboard.site import Look, Site, dead_row, insert
from tests.support import browser as browsers
from tests.support.outbox import Outbox

HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "' onfocus=alert(1) autofocus='",
    "javascript:alert(1)//{{7*7}}${7*7}<%= 7*7 %>",
    "a/../../b?c=d#e%2f%00&f=g+h",
    "..",
    " spaces,  tab\tand\r\ntwo\nlines",
    "txt.\u202egnp.exe\u2066\u200b\ufeff",
    "Zażółć 日本 🦊",
    "x" * 10_000,
]


def full_of_it(outbox: Outbox, text: str) -> int:
    """Everything that is shown of the tables says this. Returns a dead row."""
    now = now_ms()
    names = {"entity": text, "tenant_id": text}
    document = json.dumps({text: [text, {"nested": text}]})
    row = dead_row(outbox, text, text, document=document, error_type=text, error=text, **names)
    failed = {"host": text, "pid": 1, "state": "dead", "error_type": text, "error_field": text, "error": text}
    for attempt in (1, 2):
        insert(outbox, "outbox_failures", event_id=row, attempt=attempt, failed_at=now, relay=1, **failed)
    insert(outbox, "outbox_events", action="index", index_name=text, document_id=text, tenant_id=text)
    minute = now - now % 60_000
    insert(outbox, "outbox_stats", minute=minute, index_name=text, action="index", done=1, **names)
    breakers = json.dumps([{"index": index, "reason": text, "since": now} for index in (text, None)])
    insert(
        outbox, "outbox_relays",
        host=text, pid=1, version=text, started_at=now, heartbeat_at=now, breakers=breakers,
    )  # fmt: skip
    insert(outbox, "outbox_control", id=1, paused_at=now, paused_by=text, pause_reason=text)
    insert(
        outbox, "outbox_reindex_jobs",
        index_name=text, old_index=text, phase=text, tenant_id=text, since=text, error=text,
    )  # fmt: skip
    insert(
        outbox, "outbox_verifications",
        started_at=now, finished_at=now, started_by=text, entities=json.dumps([text]), sample=1, error=text,
    )  # fmt: skip
    return row


def as_shown(text: str) -> str:
    """How a list shows it: what cannot be seen stands there escaped, runs of spaces are one, what is long is cut."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown_as(escaped)[:40]


def shown_as(text: str) -> str:
    """Runs of spaces are one in HTML."""
    return re.sub(" +", " ", text).strip()


def test_what_was_stored_to_run_is_shown_as_text_and_its_links_lead_to_it(site: Site, look: Look) -> None:
    rows = {text: full_of_it(site.outbox, text) for text in HOSTILE}
    visit = look(site.url, viewport={"width": 390, "height": 844})
    page = visit.page

    def assert_inert(path: str = "") -> None:
        if path:
            visit.open(path)
        assert page.evaluate(browsers.INLINE) == []
        assert visit.too_wide() <= 0, page.url
        assert visit.faults == []
        seen = page.inner_text("html")
        assert not re.search("[\u200b\u202a-\u202e\u2066-\u2069\ufeff]", seen)

    for path in ("/", "/indexes", "/relays", "/reindexes", "/verifications", "/events", "/events?state=dead"):
        assert_inert(path)
        shown = shown_as(page.inner_text("main"))
        assert [text for text in HOSTILE if as_shown(text) not in shown] == []
    visit.screenshot("hostile")
    histories = dict(zip(reversed(rows.values()), visit.links("#rows td.document-id a"), strict=True))
    for text, row in rows.items():
        of_it = [str(row + 1), str(row)]
        assert_inert(histories[row])
        assert [each[0] for each in visit.rows()] == of_it, text[:50]
        assert as_shown(text) in shown_as(visit.text("h1"))
        assert_inert(f"/events/{row}")
        assert [each[0] for each in visit.rows()] == of_it, text[:50]
        assert json.loads(page.inner_text("pre")) == {text: [text, {"nested": text}]}
        if len(text) < 1_000:
            index, document, tenant = visit.links("#row a")
            assert_inert(index)
            assert as_shown(text) in shown_as(visit.text("h1"))
            assert_inert(document)
            assert as_shown(text) in shown_as(visit.text("h1"))
            assert [each[0] for each in visit.rows()] == of_it, text
            assert_inert(tenant)
            assert [each[0] for each in visit.rows()] == of_it, text

    # Of each kind of error one row is dead: discarding what has it in common leaves all others alone.
    visit.open("/")
    for path in [each for each in visit.links("#causes td:nth-child(2) a") if len(each) < 1_000]:
        visit.open(path)
        ((number, *_),) = visit.rows()
        visit.click(page.get_by_role("link", name="Discard it"))
        page.get_by_label("The index may miss them").check()
        visit.click(page.get_by_role("button", name="Discard 1 row"))
        assert visit.text(".flash") == "1 row removed for good."
        assert int(number) not in [each["id"] for each in site.outbox.dead()]
    assert [each["id"] for each in site.outbox.dead()] == [rows[HOSTILE[-1]]]


def test_reason_typed_to_run_is_shown_as_text(site: Site, look: Look) -> None:
    visit = look(site.url)
    page = visit.open("/")
    page.get_by_label("Pause all relays, because").fill("<img src=x onerror=alert(1)>")
    visit.click(page.get_by_role("button", name="Pause"))
    assert visit.text("#reason") == "<img src=x onerror=alert(1)>"
    visit.open("/?done=<script>alert(1)</script>")
    assert visit.text(".flash") == "<script>alert(1)</script>"

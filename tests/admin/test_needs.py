"""What needs a person, and the history of each entity, on the overview."""

from __future__ import annotations

import json
import re

from outbox.admin.statistics import StatisticsCache
from outbox.store.models import now_ms
from tests.admin.test_index_screen import statistic
from tests.admin.test_relay_screen import listed
from tests.admin.world import Company, Contact, World, kill
from tests.support.outbox import Outbox

HOUR, DAY = 3_600_000, 86_400_000


def test_each_thing_that_needs_a_person_leads_to_the_screen_that_mends_it(embedded: World) -> None:
    now = now_ms()
    assert embedded.get("/needs") == []
    kill(embedded.outbox, embedded.outbox.index("contacts", "c1", {}))
    listed(embedded, id=1, breakers=json.dumps([{"index": "a&b", "reason": "disk full", "since": now}]))
    listed(embedded, id=2, heartbeat_at=1)
    embedded.outbox.raw(
        "INSERT INTO outbox_reindex_jobs (index_name, old_index, phase) VALUES ('contacts', 'contacts-000001', 'scan')"
    )
    embedded.outbox.raw(
        "INSERT INTO outbox_verifications (started_at, finished_at, started_by, entities, sample, missing)"
        " VALUES (1, 2, 'relay 1', '[\"Contact\"]', 1, 3)"
    )
    embedded.outbox.index("contacts", "c2", {})
    embedded.post("/pause", {"reason": "an import", "index": "contacts"})
    found = [(each["name"], each["page"], each["urgent"]) for each in embedded.get("/needs")]
    assert found == [
        ("paused", "/index?index=contacts", True),
        ("blocked", "/index?index=a%26b", True),
        ("relay_lost", "/relays", False),
        ("reindex", "/reindexes", False),
        ("dead", "/events?state=dead", False),
        ("drift", "/verifications", False),
    ]
    page = embedded.client.get("/").text
    assert "6 things need attention" in page
    assert '<a href="/index?index=a%26b">index a&amp;b takes no rows: disk full</a>' in page
    shown = re.findall(r'<li id="alert-[^"]*" data-key="[^"]*"><b><a href="([^"]*)">', page)
    assert shown == [each[1].replace("&", "&amp;") for each in found]


def test_what_was_repaired_needs_nobody(embedded: World) -> None:
    embedded.outbox.raw(
        "INSERT INTO outbox_verifications (started_at, finished_at, started_by, entities, sample, missing, repaired)"
        " VALUES (1, 2, 'ada', '[\"Contact\"]', 1, 3, 3)"
    )
    assert embedded.get("/needs") == []


def test_history_of_an_entity_is_counted_by_hour_and_by_day_however_often_it_is_read(outbox: Outbox) -> None:
    now = now_ms() // DAY * DAY + 5 * HOUR + 90_000  # one and a half minutes past five
    cache = StatisticsCache({})
    for at, done, dead in ((-3 * DAY, 7, 2), (-8 * DAY, 100, 0), (-6 * HOUR, 4, 0), (0, 5, 0)):
        statistic(outbox, "contacts", now + at, done, dead)
    assert cache.read(outbox.store(), now).finished(now)["Contact"][1] == [0, 0, 0, 9, 0, 4, 5]
    for minutes in (3, 30):
        later = now + minutes * 60_000
        statistic(outbox, "contacts", later, 1)
        found = cache.read(outbox.store(), later).finished(later)["Contact"]
    assert found == ([0] * 17 + [4] + [0] * 5 + [7], [0, 0, 0, 9, 0, 4, 7])
    next_day = now + 20 * HOUR
    assert cache.read(outbox.store(), next_day).finished(next_day)["Contact"][1] == [0, 0, 9, 0, 4, 7, 0]


def test_entity_leads_to_its_index_and_shows_its_history(embedded: World) -> None:
    embedded.save(Contact(id=1, name="Ada"), Company(id=1, name="Acme"))
    embedded.drain()
    company, contact = embedded.get("/status")["entities"]
    assert (company["entity"], contact["entity"]) == ("Company", "Contact")
    assert (sum(contact["hours"]), sum(contact["days"])) == (1, 1)
    page = embedded.client.get("/").text
    assert '<a href="/index?index=contacts">Contact</a>' in page
    assert '<a href="/indexes?name=companies">Company</a>' in page
    assert 'aria-label="Rows finished in the last 7 days, at most 1 row in one day"' in page

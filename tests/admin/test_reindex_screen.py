"""The screen of the rebuilds: what one would do, how far it is, and the way back."""

from __future__ import annotations

import re

import pytest

from outbox.store.models import now_ms
from tests.admin.world import Company, Contact, World

HTML = {"Accept": "text/html"}


@pytest.fixture
def filled(embedded: World) -> World:
    embedded.save(*(Contact(id=at, name=f"Ada {at}") for at in range(3)), Company(id=1, name="Acme"))
    embedded.drain()
    return embedded


def job(world: World, **columns: object) -> None:
    given = {"index_name": "contacts", "old_index": "contacts-000001", "phase": "scan", **columns}
    world.outbox.raw(
        f"INSERT INTO outbox_reindex_jobs ({', '.join(given)}) VALUES ({', '.join(f':{name}' for name in given)})",
        **given,
    )


def test_reindex_is_begun_only_when_it_was_seen_what_it_would_do(filled: World) -> None:
    page = filled.client.get("/reindexes").text
    assert 'action="/reindex"' not in page
    page = filled.client.get("/reindexes?entity=Contact&keep_old=yes").text
    assert "about 3 documents of Contact are written into a new index beside the live one" in page
    assert "the old one is kept and gets rows too" in page
    assert filled.get("/reindex") == []
    given = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
    assert given == {"entity": "Contact", "keep_old": "yes"}
    answer = filled.client.post("/reindex", data=given, follow_redirects=False)
    assert answer.headers["location"].startswith("/reindexes?done=Reindex+1+of+contacts+has+begun")
    filled.job(1)
    page = filled.client.get("/reindexes?entity=Contact&tenant=t1").text
    assert "are written into the live index" in page
    page = filled.client.get("/reindexes?entity=Contact&tenant=t1&from_date=2026-01-01%20").text
    assert 'name="tenant" value="t1"' in page and 'name="from_date" value="2026-01-01"' in page
    wrong = ("entity=nobody", "entity=Contact&tenant=t1&keep_old=yes", "entity=Contact&from_date=yesterday")
    for path in (*wrong, "entity=Contact&tenant=t1%20"):
        assert filled.client.get(f"/reindexes?{path}", headers=HTML).status_code == 422, path


def test_readers_get_the_kept_index_back_once_it_is_ticked(filled: World) -> None:
    started = filled.post("/reindex", {"entity": "Contact", "keepOld": True}, 202)
    filled.job(started["jobId"])
    assert filled.get("/kept") == [{"index": "contacts", "kept": "contacts-000001", "refused": 0}]
    assert "Roll back contacts" in filled.client.get("/reindexes").text
    assert filled.client.post("/reindex/rollback", data={"index": "contacts"}, headers=HTML).status_code == 422
    assert filled.get("/index", index="contacts")["readers"] == ["contacts-000002"]
    answer = filled.client.post("/reindex/rollback", data={"index": "contacts", "sure": "yes"}, follow_redirects=False)
    assert answer.headers["location"].startswith("/reindexes?done=Readers+and+rows+of+contacts+have+contacts-000001")
    assert filled.get("/index", index="contacts")["readers"] == ["contacts-000001"]
    back = filled.post("/reindex/rollback", {"index": "contacts"})
    assert back == {"index": "contacts", "live": "contacts-000002", "refused": 0}
    noted = filled.get("/audit")[0]
    assert (noted["action"], noted["about"], noted["error"]) == ("reindex", "rollback=contacts", None)
    assert "keeps no old one" in filled.post("/reindex/rollback", {"index": "deals"}, 409)["detail"]


def test_rate_and_what_is_left_are_said_while_it_writes(embedded: World) -> None:
    now = now_ms()
    job(embedded, documents=300, total=900, created_at=now - 10_000, updated_at=now)
    job(embedded, index_name="deals", documents=900, total=900, phase="wait", created_at=now - 10_000, updated_at=now)
    job(embedded, index_name="new", total=9, created_at=now, updated_at=now)
    ended = {"state": "done", "phase": "drop", "finished_at": now - 10_000, "updated_at": now}
    job(embedded, index_name="old", documents=900, total=900, created_at=now - 20_000, **ended)
    shown = {each["index"]: (each["rate"], each["etaSeconds"]) for each in embedded.get("/reindex")}
    assert shown == {"contacts": (30, 20), "deals": (90, None), "new": (None, None), "old": (90, None)}
    page = embedded.client.get("/reindexes").text
    assert "30 a second, 20.0 s left" in page
    assert page.index("deals") < page.index("/index?index=old")  # what has ended comes last


def test_reindex_that_is_paused_says_what_a_pause_does_to_it(filled: World) -> None:
    """As the screen says: the job goes on, and readers get the new index."""
    filled.post("/pause", {"reason": "a test", "index": "contacts"})
    filled.save(Contact(id=7, name="Grace"))  # waits
    started = filled.post("/reindex", {"entity": "Contact"}, 202)
    assert "A reindex has no pause of its own" in filled.client.get("/reindexes").text
    filled.job(started["jobId"])
    assert filled.get("/index", index="contacts")["readers"] == ["contacts-000002"]

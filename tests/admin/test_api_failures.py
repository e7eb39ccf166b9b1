"""What cannot be done over HTTP: questions without sense, and a database or a destination that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from outbox import schema, sqlite
from outbox.admin import poller
from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from outbox.destinations.embedded.destination import EmbeddedDestination
from tests.admin.world import API, World, checked, is_problem, kill, registered
from tests.support.outbox import Outbox
from tests.support.proxy import FaultProxy, anything, reply
from tests.support.relays import until
from tests.support.serving import client_of


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", 422),
        (b"{", 400),
        (b'{"reason": "x",}', 400),
        (b"\xff\xfe", 400),
        (b"null", 422),
        (b"[]", 422),
        (b'"text"', 422),
        (b"1e999", 422),
        (b'{"unknown": 1}', 422),
        (b'{"reason": "\\ud800", "entity": "\\ud800", "index": "\\ud800"}', 422),
        (b'{"reason": "\\u0000", "entity": "\\u0000", "index": "\\u0000"}', 422),
        (b"[" * 5_000 + b"]" * 5_000, 422),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else "",
)
def test_body_that_makes_no_sense(embedded: World, body: bytes, expected: int) -> None:
    for path in ("/pause", "/dead/retry", "/dead/discard", "/reindex", "/verify"):
        answer = embedded.client.post(f"{API}{path}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in {expected, 400}, path
        is_problem(answer, answer.status_code)
    assert embedded.get("/status")["paused"] is None


QUESTIONS = {
    "/events/999": 404,
    "/events/0": 422,
    "/events/x": 422,
    "/events/99999999999999999999": 422,
    "/events?state=gone": 422,
    "/events?q=state:gone": 422,
    "/events?q=colour:red": 422,
    "/events?q=index:a&index=a": 422,
    "/events?limit=0": 422,
    "/events?limit=501": 422,
    "/events?cursor=-1": 422,
    "/events?cursor=9999999999999999": 422,
    "/events?index=": 422,
    "/events?index=%00": 422,
    "/reindex/7": 404,
    "/reindex/7/cancel": 405,
    "/nothing": 404,
    "/pause": 405,
}


def test_question_that_makes_no_sense(embedded: World) -> None:
    for path, expected in QUESTIONS.items():
        answer = embedded.client.get(f"{API}{path}", headers={"Accept": "text/html"})
        assert answer.status_code == expected, path
        is_problem(answer, expected)
        assert expected != 405 or answer.headers["allow"]


def test_database_that_somebody_has_locked(tmp_path: Path, engine: Engine) -> None:
    impatient = create_engine(engine.url)
    sqlite.prepare(impatient, busy_timeout=0.1)
    destination = EmbeddedDestination(tmp_path / "search.db")
    lock = engine.raw_connection()
    with client_of(impatient, destination) as client:
        lock.cursor().execute("BEGIN IMMEDIATE")
        assert "locked" in checked(client.post(f"{API}/pause", json={"reason": "x"}), 503)["detail"]
        assert client.get(f"{API}/status").status_code == 200  # who only looks waits for nobody
        assert client.get("/health/ready").status_code == 200
        lock.cursor().execute("ROLLBACK")
        assert client.post(f"{API}/pause", json={"reason": "x"}).status_code == 200
    lock.close()
    impatient.dispose()
    destination.close()


@pytest.mark.parametrize("how", ["removed", "no database", "another without the tables"])
def test_database_that_is_gone(embedded: World, how: str, tmp_path: Path) -> None:
    file = tmp_path / "app.db"
    assert embedded.client.get("/health/ready").status_code == 200
    whole = embedded.outbox.engine.raw_connection()
    whole.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole.close()
    kept = file.rename(tmp_path / "kept.db")
    if how != "removed":
        file.write_bytes(b"this is no database, but text\n" * 200 if how == "no database" else b"")
    for path in ("/events", "/events/1", "/reindex"):
        assert embedded.get(path, 503)["detail"]
    until(lambda: embedded.client.get(f"{API}/status").status_code == 503, "the last overview is too old")
    embedded.post("/pause", {"reason": "x"}, 503)
    assert embedded.client.get("/health/ready").json() == {"status": "unready"}
    assert embedded.client.get("/health/live").status_code == 200
    assert embedded.client.get("/metrics").status_code == 503
    if how == "removed":
        assert not file.exists()  # nor was an empty one made
    kept.replace(file)
    assert embedded.client.get("/health/ready").status_code == 200  # as it was, or restored from a backup
    assert embedded.get("/status")["queue"]["unfinished"] == 0


@pytest.mark.slow
def test_tables_that_were_migrated_beneath_the_server_are_not_served_until_it_knows_them(embedded: World) -> None:
    head, browser = schema.head(), {"accept": "text/html"}
    row = embedded.outbox.index("contacts", "c1", {})
    kill(embedded.outbox, row)
    embedded.outbox.raw("CREATE TABLE other (id)")  # the application's own migrations are none of its business
    assert embedded.get("/events")["items"]

    embedded.outbox.raw("ALTER TABLE outbox_events RENAME COLUMN error TO reason")
    embedded.outbox.raw("UPDATE outbox_alembic_version SET version_num = '9999'")
    says = (
        f"at revision 9999, newer than this version knows ({head}): upgrade outbox-relay, and restart what ran before"
    )
    for path in ("/events", f"/events/{row}", "/reindex"):
        assert says in embedded.get(path, 503)["detail"]
    for path, body in (("/dead/discard", {"all": True}), ("/pause", {"reason": "x"}), ("/verify", {})):
        assert says in embedded.post(path, body, 503)["detail"]
    page = embedded.client.get("/events", headers=browser)
    assert (page.status_code, says in page.text) == (503, True)
    assert embedded.client.get("/health/ready").status_code == 503
    assert embedded.client.get("/health/live").status_code == 200
    until(lambda: embedded.logged("9999"), "the log says it once")

    embedded.outbox.raw("ALTER TABLE outbox_events RENAME COLUMN reason TO error")
    embedded.outbox.raw("UPDATE outbox_alembic_version SET version_num = :at", at=head)
    assert embedded.get(f"/events/{row}")["state"] == "dead"


def test_backup_of_an_older_version_in_the_place_of_the_database(embedded: World) -> None:
    assert embedded.get("/events")["items"] == []
    embedded.outbox.raw("ALTER TABLE outbox_events DROP COLUMN error")
    embedded.outbox.raw("UPDATE outbox_alembic_version SET version_num = '0001'")
    assert embedded.get("/events", 503)["detail"].endswith(
        f"this version needs {schema.head()}: run 'outbox-relay migrate'"
    )


@pytest.mark.elasticsearch
def test_gateway_that_answers_in_its_place_is_no_answer_and_ends_no_watch(
    outbox: Outbox, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "POLL_EVERY_S", 0.05)
    proxy.on(anything, reply(200, b"maintenance", {"Content-Type": "text/plain", "X-Elastic-Product": "Elasticsearch"}))
    destination, registry = ElasticsearchDestination([proxy.url], request_timeout=30), registered()
    with client_of(outbox.engine, destination, registry) as client:
        world = World(outbox, destination, client, registry)

        def reachable() -> bool | None:
            seen = world.get("/status")["destination"]
            return None if seen is None else bool(seen["reachable"])

        until(lambda: reachable() is False, "it is away")
        proxy.clear()
        until(reachable, "it is back")
    destination.close()

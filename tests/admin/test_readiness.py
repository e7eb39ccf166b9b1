"""A relay that gets nowhere is not ready, and says why; one that has a reason to wait is."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine

from outbox import sqlite as prepared
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.relay import Relay
from outbox.store import pauses
from outbox.store.models import now_ms
from outbox.store.store import Store
from tests.admin.world import Base, Contact, registered
from tests.support import LIMIT_S
from tests.support.outbox import Outbox, settings
from tests.support.relays import until
from tests.support.serving import BEARER, TOKEN, Process, TestClient, client_of

LONG_MS = 10 * 60_000

Served = tuple[TestClient, Relay]


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[EmbeddedDestination]:
    made = EmbeddedDestination(tmp_path / "search.db", timeout=3)  # what its outage takes
    yield made
    made.close()


@pytest.fixture
def served(outbox: Outbox, destination: EmbeddedDestination) -> Iterator[Served]:
    """An admin server beside a relay that the test drives."""
    relay = outbox.relay(destination)
    with client_of(outbox.engine, destination, relay=relay) as client:
        until(lambda: client.get("/health").json()["destination"], "the destination was asked")
        yield client, relay


def long_ago(relay: Relay) -> None:
    """The relay has not come back to its loop since."""
    relay.looked_at = time.monotonic() - LONG_MS / 1000


def written(outbox: Outbox, document: str = "c1", index: str = "contacts") -> int:
    row = outbox.index(index, document, {})
    outbox.raw("UPDATE outbox_events SET created_at = created_at - :long WHERE id = :row", long=LONG_MS, row=row)
    return row


def reason(client: TestClient) -> str | None:
    """Why it is not ready."""
    answer = client.get("/health/ready")
    assert answer.status_code in (200, 503)
    if answer.status_code == 200:
        assert answer.json() == {"status": "ok"}
        return None
    assert answer.json()["status"] == "unready"
    return str(answer.json()["reason"])


def test_relay_that_does_not_come_back_to_its_rows(served: Served, outbox: Outbox) -> None:
    client, relay = served
    written(outbox)
    assert reason(client) is None  # it looked a moment ago
    long_ago(relay)
    found = reason(client)
    assert found is not None
    assert "has not looked for rows since 20" in found
    assert "rows of index contacts wait since 20" in found and "restart it" in found
    assert client.get("/health/live").status_code == 200
    assert relay.run_once() == 1
    assert reason(client) is None


def test_write_lock_that_nobody_gives_back(outbox: Outbox, destination: EmbeddedDestination) -> None:
    impatient = create_engine(outbox.engine.url)
    prepared.prepare(impatient, busy_timeout=0.1)
    store = Store(impatient)
    store.pin()
    relay = Relay(store, destination, settings(poll_interval=0.01))
    written(outbox)
    lock = outbox.engine.raw_connection()
    lock.cursor().execute("BEGIN IMMEDIATE")
    thread = threading.Thread(target=relay.run)
    with client_of(outbox.engine, destination, relay=relay) as client:
        until(lambda: client.get("/health").json()["destination"], "the destination was asked")
        thread.start()
        until(lambda: relay.database_error, "the relay has met the lock")
        long_ago(relay)
        found = reason(client)
        assert found is not None
        assert "locked" in found and "index contacts" in found and "outbox-relay check" in found
        lock.cursor().execute("ROLLBACK")
        until(lambda: reason(client) is None, "it is ready again")
    relay.stop()
    thread.join(LIMIT_S)
    lock.close()
    store.close()
    impatient.dispose()


def retrying(outbox: Outbox, row: int, at: int) -> None:
    outbox.raw("UPDATE outbox_events SET available_at = :at WHERE id = :row", at=at, row=row)


def behind_one_that_waits(outbox: Outbox, _relay: Relay) -> None:
    retrying(outbox, written(outbox), now_ms() + 60_000)
    written(outbox)


def behind_one_that_is_claimed(outbox: Outbox, _relay: Relay) -> None:
    row = written(outbox)
    outbox.raw("UPDATE outbox_events SET state = 'claimed', lease_expires_at = :at WHERE id = :row", at=1, row=row)
    written(outbox)


def before_its_time(outbox: Outbox, _relay: Relay) -> None:
    retrying(outbox, written(outbox), now_ms() + 60_000)


def due_a_moment_ago(outbox: Outbox, _relay: Relay) -> None:
    retrying(outbox, written(outbox), now_ms() - 1_000)


def written_a_moment_ago(outbox: Outbox, _relay: Relay) -> None:
    outbox.index("contacts", "c1", {})


def while_paused(outbox: Outbox, _relay: Relay) -> None:
    written(outbox)
    pauses.pause(outbox.store(), "x", "test", now_ms())


def of_an_index_that_is_paused(outbox: Outbox, _relay: Relay) -> None:
    written(outbox)
    pauses.pause(outbox.store(), "x", "test", now_ms(), index="contacts")


def in_an_outage(outbox: Outbox, relay: Relay) -> None:
    written(outbox)
    assert relay.run_once() == 1  # so that its index is there
    written(outbox)
    with closing(sqlite3.connect("search.db", isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        assert relay.run_once() == 0
    assert [breaker["scope"] for breaker in relay.breakers()] == ["destination"]


def nothing(_outbox: Outbox, _relay: Relay) -> None:
    pass


@pytest.mark.parametrize(
    "row",
    [
        nothing, before_its_time, due_a_moment_ago, written_a_moment_ago, behind_one_that_waits,
        behind_one_that_is_claimed, while_paused, of_an_index_that_is_paused, in_an_outage,
    ],
)  # fmt: skip
def test_row_that_waits_for_good_reason_is_no_alarm(
    served: Served, outbox: Outbox, row: Callable[[Outbox, Relay], None]
) -> None:
    client, relay = served
    row(outbox, relay)
    long_ago(relay)
    assert reason(client) is None


def behind_a_dead_one(outbox: Outbox) -> None:
    dead = written(outbox)
    outbox.raw("UPDATE outbox_events SET state = 'dead', error_type = 'x', error = 'y' WHERE id = :dead", dead=dead)
    written(outbox)


def due_for_long(outbox: Outbox) -> None:
    retrying(outbox, written(outbox), now_ms() - LONG_MS)


@pytest.mark.parametrize("row", [behind_a_dead_one, due_for_long])
def test_row_that_nothing_holds(served: Served, outbox: Outbox, row: Callable[[Outbox], None]) -> None:
    client, relay = served
    row(outbox)
    long_ago(relay)
    assert reason(client) is not None


def test_server_without_a_relay_answers_for_itself_alone(outbox: Outbox, destination: EmbeddedDestination) -> None:
    written(outbox)
    outbox.store().register_relay("host", 1, "1.0", now_ms())  # another process
    with client_of(outbox.engine, destination) as client:
        until(lambda: client.get("/health").json()["destination"], "the destination was asked")
        assert reason(client) is None


def test_relay_whose_only_rows_are_refused(served: Served, outbox: Outbox) -> None:
    """As after an update of the application that forgot OUTBOX_ENTITIES: each row waits, and none is lost."""
    client, relay = served
    outbox.raw(
        "INSERT INTO outbox_events (action, index_name, document_id, entity) VALUES ('refresh', 'deals', '1', 'Deal')"
    )
    relay.run_once(now_ms() - LONG_MS)
    assert relay.breakers()
    assert reason(client) is None  # its next try is due: it may take rows by now
    relay.run_once()
    found = reason(client)
    assert found is not None
    assert "index deals takes no rows since 20" in found and "OUTBOX_ENTITIES" in found
    assert "outbox-relay check" in found

    outbox.index("contacts", "c1", {})
    assert relay.run_once() == 1
    assert reason(client) is None  # the others flow: that one index is what is wrong, and the alert of it says so


def test_index_that_was_refused_a_moment_ago_is_no_alarm(served: Served, outbox: Outbox) -> None:
    client, relay = served
    outbox.raw(
        "INSERT INTO outbox_events (action, index_name, document_id, entity) VALUES ('refresh', 'deals', '1', 'Deal')"
    )
    relay.run_once()
    assert relay.breakers() and reason(client) is None


def test_who_does_not_know_the_token_learns_nothing_but_yes_or_no(
    outbox: Outbox, destination: EmbeddedDestination
) -> None:
    written(outbox)
    relay = outbox.relay(destination)
    with client_of(outbox.engine, destination, relay=relay, admin_token=TOKEN) as client:
        until(lambda: client.get("/health", headers=BEARER).json()["destination"], "the destination was asked")
        long_ago(relay)
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "outbox_session=wrong"}):
            answer = client.get("/health/ready", headers=headers)
            assert (answer.status_code, answer.json()) == (503, {"status": "unready"})
        assert "contacts" in client.get("/health/ready", headers=BEARER).json()["reason"]


HANGS = """
import threading
from tests.admin.world import Base, Contact
from outbox import EntityRegistry
def hang(contact):
    threading.Event().wait()
registry = EntityRegistry()
registry.add(Contact, name="Contact", index="contacts", to_document=hang)
"""


@pytest.mark.slow  # as long as two of the shortest leases
def test_process_whose_entities_hang(outbox: Outbox, tmp_path: Path) -> None:
    Base.metadata.create_all(outbox.engine)
    (tmp_path / "hanging.py").write_text(HANGS)
    process = Process(
        tmp_path,
        "run",
        "--admin",
        OUTBOX_DATABASE_URL=outbox.url,
        OUTBOX_DESTINATION="embedded",
        OUTBOX_EMBEDDED_PATH=str(tmp_path / "search.db"),
        OUTBOX_ENTITIES="hanging:registry",
        OUTBOX_LEASE="5.2",
        OUTBOX_REQUEST_TIMEOUT="0.1",
    )

    def answer(path: str = "/health/ready") -> httpx.Response:
        return httpx.get(process.url + path, timeout=LIMIT_S)

    assert answer().status_code == 200
    with registered().capture(outbox.sessions).begin() as session:
        session.add(Contact(id=1, name="Ada"))
    until(lambda: answer().status_code == 503, "it is not ready")
    assert "not looked for rows" in answer().json()["reason"] and "index contacts" in answer().json()["reason"]
    assert answer("/health/live").status_code == 200
    assert process.log.count("not ready:") == 1
    process.end(signal.SIGKILL)

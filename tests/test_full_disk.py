"""No room under the database file: the application hears it from the database, the relay waits, nothing is lost."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from outbox import OutboxRepository, schema, sqlite
from tests.support import LIMIT_S
from tests.support.disk import SmallDisk, small_disk
from tests.support.node import Node
from tests.support.outbox import Outbox
from tests.support.proxy import FaultProxy
from tests.support.relays import Relays, until

pytestmark = pytest.mark.elasticsearch


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    with small_disk("4m") as made:
        yield made


@pytest.fixture
def outbox(disk: SmallDisk) -> Iterator[Outbox]:
    engine = create_engine(f"sqlite:///{disk.directory / 'app.db'}")
    sqlite.prepare(engine)
    schema.upgrade(engine)
    made = Outbox(engine)
    made.raw("CREATE TABLE contacts (id TEXT)")
    yield made
    made.close()
    engine.dispose()


def write(outbox: Outbox, *ids: str) -> None:
    """What an application does: entities and their rows in one transaction."""
    with outbox.sessions.begin() as session:
        for document_id in ids:
            session.execute(text("INSERT INTO contacts VALUES (:id)"), {"id": document_id})
            OutboxRepository(session).index("contacts", document_id, {"notes": "x" * 500})


def test_full_disk_rolls_the_write_back_whole_and_the_relay_goes_on_when_there_is_room(
    outbox: Outbox, relays: Relays, proxy: FaultProxy, node: Node, disk: SmallDisk
) -> None:
    relay = relays.start(OUTBOX_POLL_INTERVAL="0.05", OUTBOX_HEARTBEAT_INTERVAL="0.2", OUTBOX_LOG_OPERATIONS="false")
    write(outbox, "before")
    until(lambda: outbox.counts()["done"] == 1, "the first row arrives")
    proxy.down()
    waiting = [f"c{n}" for n in range(50)]
    write(outbox, *waiting)
    until(lambda: "destination unreachable" in relays.log(), "the relay notices the outage")
    with closing(sqlite3.connect(disk.directory / "app.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM contacts").fetchall()  # as long as it reads, the log cannot begin anew
        disk.fill()
        proxy.up()
        until(lambda: "nothing is lost" in relays.log(), "the relay's claims notice, not its heartbeat alone")
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:  # two seconds in which everybody tries
            with pytest.raises(OperationalError, match="database or disk is full"):
                write(outbox, *(f"lost-{n}" for n in range(50)))
        assert relay.poll() is None
        assert [row[0] for row in reader.execute("SELECT count(*) FROM contacts")] == [51]
    disk.empty()

    until(lambda: outbox.counts()["done"] == 51, "everything arrives when there is room")
    write(outbox, "after")
    until(lambda: outbox.counts()["done"] == 52, "what is written then arrives, too")
    with outbox.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM contacts")).scalar_one() == 52
    assert outbox.counts() == {"pending": 0, "claimed": 0, "done": 52, "dead": 0}
    assert set(node.documents("contacts")) == {"before", "after", *waiting}
    relay.terminate()
    assert relay.wait(LIMIT_S) == 0
    said = [line for line in relays.log().splitlines() if "disk is full" in line]
    assert sum("nothing is lost" in line for line in said) == 1, said
    assert sum("suspended until the database answers" in line for line in said) == len(said) - 1 <= 2, said
    assert relays.log().count("the database takes writes again") == 1
    assert "Traceback" not in relays.log()

"""Every page and every look of the API over an outbox on PostgreSQL, with rows of each state."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine

from outbox.destinations.embedded.destination import EmbeddedDestination
from tests.admin.world import API, Base, World, registered
from tests.support.outbox import Outbox
from tests.support.postgres import Postgres
from tests.support.serving import client_of

PAGES = ("/", "/audit", "/events", "/health", "/metrics", "/indexes", "/index?index=contacts", "/relays", "/reindexes")
LOOKS = ("status", "needs", "audit", "events", "indexes", "index?index=contacts", "relays", "reindex", "kept", "verify")


@pytest.fixture
def world(postgres: Postgres, search_db: EmbeddedDestination) -> Iterator[World]:
    registry = registered()
    with postgres.database() as url:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        outbox = Outbox(engine)
        with client_of(engine, search_db, registry) as client:
            yield World(outbox, search_db, client, registry)
        outbox.close()
        engine.dispose()


def test_pages_and_looks_answer(world: World) -> None:
    world.outbox.index("contacts", "c1", {"name": "Ada"})
    world.outbox.update("contacts", "c2", {"name": "there is no document"})
    world.outbox.index("contacts", "c3", {"name": "Alan"}, tenant_id="t1")
    relay = world.outbox.relay(world.destination)
    while relay.run_once():
        pass
    world.outbox.index("contacts", "c4", {"name": "waits"})
    assert world.outbox.counts()["dead"] == 1
    rows = [f"/events/{number}" for number in (1, 2, 4)]
    paths = [*PAGES, *rows, "/verifications", "/confirm?do=retry&state=dead", "/document?index=contacts&id=c1"]
    looks = [f"{API}/{look}" for look in (*LOOKS, "document?index=contacts&id=c1")]
    answers = {path: world.client.get(path) for path in (*paths, *looks)}
    assert {path: answer.status_code for path, answer in answers.items() if answer.status_code != 200} == {}

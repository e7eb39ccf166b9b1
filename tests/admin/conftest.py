"""An admin server beside a relay that the test drives, and one that is a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.destinations.embedded.destination import EmbeddedDestination
from tests.admin.world import Base, World, registered, serving
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.support.serving import Process, client_of


@pytest.fixture
def world(outbox: Outbox, place: Place) -> Iterator[World]:
    Base.metadata.create_all(outbox.engine)
    registry = registered()
    with client_of(outbox.engine, place.destination, registry) as client:
        yield World(outbox, place.destination, client, registry)


@pytest.fixture
def search_db(tmp_path: Path) -> Iterator[EmbeddedDestination]:
    made = EmbeddedDestination(tmp_path / "search.db")
    yield made
    made.close()


@pytest.fixture
def embedded(outbox: Outbox, search_db: EmbeddedDestination) -> Iterator[World]:
    """The same with the embedded destination alone, for what does not depend on it."""
    Base.metadata.create_all(outbox.engine)
    registry = registered()
    with client_of(outbox.engine, search_db, registry) as client:
        yield World(outbox, search_db, client, registry)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """With its own limits for slow connections: a busy machine may take longer than a shorter one for any of them."""
    running = serving(tmp_path_factory.mktemp("served"))
    yield running
    assert running.end() == 0

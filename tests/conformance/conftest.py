"""The destinations that must keep the contract. A new one needs its line in `DESTINATIONS`, and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from outbox.destinations.base import Destination
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.store.models import metadata
from outbox.store.store import Store, dialect_of
from tests.conformance.database import DATABASES, Database
from tests.conformance.index import MAPPINGS, Index
from tests.support.node import OPENSEARCH, TESTED, Node, destination_to

Opener = Callable[[], Destination]
"""Opens the data of one test: again, in another thread or, since it can be pickled, in another process."""


def _embedded(_request: pytest.FixtureRequest, directory: Path) -> Opener:
    return partial(EmbeddedDestination, directory / "search.db")


def _cluster(node: str, request: pytest.FixtureRequest, _directory: Path) -> Opener:
    running: Node = request.getfixturevalue(node)
    request.addfinalizer(running.wipe)
    return partial(destination_to, running.url, server=running.server)


_real = pytest.mark.elasticsearch
DESTINATIONS: list[Any] = [
    pytest.param(_embedded, id="embedded"),
    pytest.param(partial(_cluster, "node_9"), id="elasticsearch-9", marks=_real),
    pytest.param(partial(_cluster, "node_of_opensearch"), id="opensearch", marks=_real),
]
if TESTED is not OPENSEARCH:
    DESTINATIONS.append(pytest.param(partial(_cluster, "node"), id="elasticsearch-8", marks=_real))


@pytest.fixture(params=DESTINATIONS)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    opened: Opener = request.param(request, tmp_path)
    return opened


@pytest.fixture
def destination(opener: Opener) -> Iterator[Destination]:
    made = opener()
    yield made
    made.close()


@pytest.fixture
def name() -> str:
    """A name that nothing has: tests share the nodes."""
    return f"contract-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def index(destination: Destination, name: str) -> Index:
    destination.ensure_index(name)
    return Index(destination, name)


@pytest.fixture
def typed(destination: Destination, name: str) -> Index:
    destination.ensure_index(name, MAPPINGS)
    return Index(destination, name)


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    engine = DATABASES[request.param](request)
    dialect_of(engine).prepare(engine)
    metadata.create_all(engine)
    made = Database(engine)
    with made.opened:
        yield made
    engine.dispose()


@pytest.fixture
def store(database: Database) -> Store:
    return database.store()

"""Relays and writers on a PostgreSQL, with the embedded destination."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from tests.support.outbox import Outbox
from tests.support.places import EmbeddedPlace
from tests.support.postgres import Postgres
from tests.support.relays import Relays
from tests.support.writers import RELAYS, Writers


@pytest.fixture
def server(postgres: Postgres) -> Postgres:
    """Tests that do something to it have one of their own."""
    return postgres


@pytest.fixture
def engine(server: Postgres) -> Iterator[Engine]:
    """Its sessions are told from those of writers and relays."""
    with server.database() as url:
        made = create_engine(url, pool_pre_ping=True, connect_args={"application_name": "the test"})
        yield made
        made.dispose()


@pytest.fixture
def place(embedded_place: EmbeddedPlace) -> EmbeddedPlace:
    return embedded_place


@pytest.fixture
def relays(outbox: Outbox, place: EmbeddedPlace, tmp_path: Path) -> Iterator[Relays]:
    running = Relays(outbox, "http://127.0.0.1:9", tmp_path)
    running.give(**place.environment, **RELAYS)
    yield running
    running.end()


@pytest.fixture
def writers(outbox: Outbox, chance: random.Random) -> Writers:
    return Writers(outbox, random.Random(chance.random()))

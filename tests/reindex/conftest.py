"""A world on each kind of destination."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reindex.world import World
from tests.support.outbox import Outbox
from tests.support.places import Place


@pytest.fixture
def world(outbox: Outbox, place: Place) -> Iterator[World]:
    made = World(outbox, place)
    yield made
    made.store.close()

"""A world for each kind of destination, and what is logged meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from loguru import logger

from tests.reindex.world import World
from tests.support.outbox import Outbox
from tests.support.places import Place


@pytest.fixture
def said() -> list[str]:
    lines: list[str] = []
    logger.add(lambda line: lines.append(str(line).strip()), format="{level} {message}")
    return lines


@pytest.fixture
def world(outbox: Outbox, place: Place) -> Iterator[World]:
    made = World(outbox, place)
    yield made
    made.store.close()

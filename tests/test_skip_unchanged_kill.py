"""Relays killed over and over while an entity with `skip_unchanged` is saved, most of the time without a change."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox import OutboxRepository
from tests.reindex.world import World
from tests.support.killing import ROUNDS, Application, kill_over_and_over
from tests.support.models import Contact
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.support.relays import Relays

pytestmark = pytest.mark.slow

DOCUMENTS = 60
MOST_SERIES = 5  # of kills, until one has met a row on its way: few are, where the destination is this machine's disk
REGISTRY = """
from tests.reindex.world import World
registry = World.registered(tenancy="shared", skip_unchanged=True)
"""


@pytest.fixture
def relays(outbox: Outbox, place: Place, tmp_path: Path) -> Iterator[Relays]:
    (tmp_path / "entities_of_test.py").write_text(REGISTRY)
    running = Relays(outbox, "http://127.0.0.1:9", tmp_path)
    running.give(
        **place.environment,
        PYTHONPATH=os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
        OUTBOX_ENTITIES="entities_of_test:registry",
        OUTBOX_BATCH_ROWS="15",
        OUTBOX_LOG_OPERATIONS="false",
    )
    yield running
    running.end()


class Saves(Application):
    """One to four contacts a transaction; two of three are as they were, and the others have one of two names."""

    def __init__(self, world: World, chance: random.Random) -> None:
        super().__init__()
        self._world, self._chance = world, chance

    def transaction(self) -> None:
        with self._world.sessions.begin() as session:
            for _ in range(self._chance.randint(1, 4)):
                number = self._chance.randrange(DOCUMENTS)
                found = session.get(Contact, number)
                what = self._chance.random()
                if found is None or what > 2 / 3:
                    session.merge(Contact(id=number, name=self._chance.choice("AB")))
                elif what < 0.02:
                    session.delete(found)
                else:
                    OutboxRepository(session, self._world.registry).refresh(found)
            if self._chance.random() < 0.1:
                raise ZeroDivisionError


def test_relays_killed_over_and_over_leave_the_index_as_the_database(
    outbox: Outbox, relays: Relays, place: Place, chance: random.Random
) -> None:
    world = World(outbox, place, tenancy="shared", skip_unchanged=True)
    for _ in range(MOST_SERIES):
        kill_over_and_over(relays, Saves(world, random.Random(chance.random())), chance, ROUNDS // 3)
        with outbox.engine.connect() as connection:
            if connection.exec_driver_sql("SELECT EXISTS (SELECT 1 FROM outbox_events WHERE deliveries > 1)").scalar():
                break
    drained = relays.call("run", "--drain", OUTBOX_BATCH_ROWS="500")
    assert drained.returncode == 0, drained.stderr
    assert outbox.dead() == []
    with world.sessions() as session:
        expected = {str(each.id): each.name for each in session.query(Contact)}
    assert {each: held["name"] for each, held in place.documents("contacts").items()} == expected
    with outbox.engine.connect() as connection:
        conditions = ("outcome = 'unchanged'", "deliveries > 1", "deliveries > 0 AND outcome = 'unchanged'")
        counted = ", ".join(f"count(*) FILTER (WHERE {each})" for each in conditions)
        counts = connection.exec_driver_sql(f"SELECT count(*), {counted} FROM outbox_events").one()
    print("rows, unchanged, delivered more than once:", *counts)
    assert counts[1] > 0
    assert counts[2] > 0  # the kills met rows on their way
    assert counts[3] == 0
    world.store.close()

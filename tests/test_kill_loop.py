"""Two relay processes, killed at random moments over and over while the application goes on writing.

`TEST_KILL_ROUNDS` makes it longer, `TEST_KILL_SEED` repeats what was random in a run that failed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.killing import ROUNDS, Application, kill_over_and_over
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.support.relays import Relays

pytestmark = pytest.mark.slow

TENANTS = ("t1", "t2", "t3")
DOCUMENTS = 300
BUSY = 12  # every second row is of one of them: theirs are always on the way
LEDGERS = 6  # of those, only ever updated, each time in a field of its own: what one update said stays to be seen
UNMAPPED = {"dynamic": False, "properties": {}}  # so many fields are more than an index takes


@pytest.fixture
def relays(outbox: Outbox, place: Place, tmp_path: Path) -> Iterator[Relays]:
    running = Relays(outbox, "http://127.0.0.1:9", tmp_path)
    running.give(
        **place.environment,
        OUTBOX_BATCH_ROWS="15",  # the updates of one document come in several claims
        OUTBOX_REQUEST_TIMEOUT="20",
        OUTBOX_LOG_OPERATIONS="false",
    )
    yield running
    running.end()


class Writer(Application):
    """Knows what the index has to hold in the end."""

    def __init__(self, outbox: Outbox, chance: random.Random) -> None:
        super().__init__()
        self._outbox, self._chance = outbox, chance
        self.expected: dict[str, dict[str, Any]] = {}
        self.rows = 0

    def transaction(self) -> None:
        """One to four rows; one in ten is rolled back."""
        written = dict(self.expected)
        number = self._chance.randint(1, 4)
        with self._outbox.sessions.begin() as session:
            repo = self._outbox.repository(session)
            for _ in range(number):
                at = self._chance.randrange(BUSY if self._chance.random() < 0.5 else DOCUMENTS)
                document_id, tenant = f"c{at}", TENANTS[at % len(TENANTS)]
                n, held = self._chance.randrange(10**6), written.get(document_id)
                what = self._chance.choices(["update", "index", "delete"], [7, 2, 1])[0]
                if held and (what == "update" or at < LEDGERS):
                    field = f"f{n}" if at < LEDGERS else self._chance.choice("abcdef")
                    repo.update("contacts", document_id, {"last": [n], "seen": {field: n}}, tenant_id=tenant)
                    written[document_id] = {**held, "last": [n], "seen": {**held["seen"], field: n}}
                elif held and what == "delete":
                    repo.delete("contacts", document_id, tenant_id=tenant)
                    del written[document_id]
                elif held is None and what == "update":  # applied as both, or twice, it would be seen
                    document = {"n": n, "last": ["made"], "seen": {}}
                    repo.update(
                        "contacts", document_id, {"last": [n], "seen": {"g": n}}, upsert=document, tenant_id=tenant
                    )
                    written[document_id] = document
                else:
                    document = {"n": n, "last": [], "seen": {}}
                    repo.index("contacts", document_id, document, tenant_id=tenant)
                    written[document_id] = document
            if self._chance.random() < 0.1:
                raise ZeroDivisionError
        self.expected, self.rows = written, self.rows + number


def test_relays_killed_over_and_over_under_writes_lose_double_and_kill_nothing(
    outbox: Outbox, relays: Relays, place: Place, chance: random.Random
) -> None:
    application = Writer(outbox, random.Random(chance.random()))
    place.destination.ensure_index("contacts", UNMAPPED)
    kill_over_and_over(relays, application, chance, ROUNDS)
    drained = relays.call("run", "--drain", OUTBOX_BATCH_ROWS="500")
    assert drained.returncode == 0, drained.stderr
    assert outbox.dead() == []
    assert outbox.counts() == {"pending": 0, "claimed": 0, "done": application.rows, "dead": 0}
    assert place.documents("contacts") == application.expected
    with outbox.engine.connect() as connection:
        again = connection.exec_driver_sql("SELECT count(*) FROM outbox_events WHERE deliveries > 1").scalar_one()
    assert again > 0  # the kills met rows on their way
    print(f"{application.rows} rows, {again} of them were delivered more than once")

"""Three relays and eight writing processes on a PostgreSQL that fails them: the index is what was committed.

Whoever reads a document while another writes it, whichever transaction ends first, and whatever becomes of a relay, a
session or the server. `TEST_KILL_ROUNDS` makes it longer, `TEST_KILL_SEED` repeats what was random.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from tests.support.killing import ROUNDS, kill_over_and_over
from tests.support.outbox import Outbox
from tests.support.places import EmbeddedPlace
from tests.support.postgres import Postgres
from tests.support.relays import Relays, until
from tests.support.writers import Writers

pytestmark = pytest.mark.slow

NUMBER = 3  # of relays


def disturb_over_and_over(relays: Relays, writers: Writers, disturb: Callable[[], None], chance: random.Random) -> None:
    """No relay ends before it is told to."""
    running = [relays.start() for _ in range(NUMBER)]
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(writers.run)
        try:
            for at in range(NUMBER):
                until(lambda at=at: " delivers " in relays.log(at), "the relay is up")  # type: ignore[misc]
            for _ in range(ROUNDS):
                time.sleep(chance.uniform(0, 0.6))
                disturb()
                assert [relays.log(at) for at, process in enumerate(running) if process.poll() is not None] == []
        finally:
            writers.stop.set()
        writing.result()
    relays.stop()


def test_relays_that_are_killed_lose_and_overtake_nothing(
    relays: Relays, writers: Writers, place: EmbeddedPlace, chance: random.Random
) -> None:
    kill_over_and_over(relays, writers, chance, ROUNDS, number=NUMBER)
    writers.assert_delivered(relays, place)


def test_sessions_that_are_ended_at_random_cost_no_row_and_no_relay(
    outbox: Outbox, relays: Relays, writers: Writers, place: EmbeddedPlace, chance: random.Random
) -> None:
    def end_one() -> None:
        with outbox.engine.connect() as connection:
            others = "datname = current_database() AND application_name <> current_setting('application_name')"
            pids = list(connection.scalars(text(f"SELECT pid FROM pg_stat_activity WHERE {others} ORDER BY pid")))
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": chance.choice(pids)})

    disturb_over_and_over(relays, writers, end_one, chance)
    writers.assert_delivered(relays, place)


def test_server_that_crashes_under_load_costs_no_row_and_no_relay(
    relays: Relays, writers: Writers, place: EmbeddedPlace, chance: random.Random, postgres: Postgres
) -> None:
    rounds = iter(range(ROUNDS))

    def crash() -> None:
        if next(rounds) % 5 == 4:
            postgres.stop()
            time.sleep(chance.uniform(0, 1))
            postgres.start()

    disturb_over_and_over(relays, writers, crash, chance)
    writers.assert_delivered(relays, place)

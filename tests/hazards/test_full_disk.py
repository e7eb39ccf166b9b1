"""No room under a PostgreSQL server: writers and relays go on by themselves when there is room again."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.exc import DBAPIError

from outbox.errors import DatabaseUnavailable
from tests.support.disk import SmallDisk, small_disk
from tests.support.outbox import Outbox
from tests.support.places import EmbeddedPlace
from tests.support.postgres import Postgres
from tests.support.relays import Relays, until
from tests.support.writers import Writers

pytestmark = pytest.mark.slow

NUMBER = 2  # of relays
BACKLOG = 2_000  # rows, which need room to be claimed
FULL_S = 3  # in which everybody tries


@pytest.fixture(params=["data", "log"])
def disk(request: pytest.FixtureRequest) -> Iterator[SmallDisk]:
    """Of what it holds: the files of the tables, or the write-ahead log."""
    request.getfixturevalue("postgres")  # skips, or fails, where none can be had
    with small_disk({"data": "120m", "log": "100m"}[request.param]) as made:
        yield made


@pytest.fixture
def of_log(request: pytest.FixtureRequest) -> bool:
    return str(request.node.callspec.params["disk"]) == "log"


@pytest.fixture
def server(disk: SmallDisk, of_log: bool) -> Iterator[Postgres]:
    running = Postgres(log=disk.directory) if of_log else Postgres(data=disk.directory)
    yield running
    running.close()


def test_full_disk_of_the_server_costs_no_row_and_no_relay(
    of_log: bool,
    disk: SmallDisk,
    server: Postgres,
    outbox: Outbox,
    relays: Relays,
    writers: Writers,
    place: EmbeddedPlace,
    chance: random.Random,
) -> None:
    running = [relays.start(OUTBOX_HEARTBEAT_INTERVAL="0.2") for _ in range(NUMBER)]
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(writers.run)
        try:
            until(lambda: outbox.counts()["done"] > 100, "rows are written and delivered")
            place.away()
            outbox.index_many("backlog", [(str(n), {}) for n in range(BACKLOG)])
            disk.fill()
            place.back()
            for at in range(NUMBER):
                until(lambda at=at: "nothing is lost" in relays.log(at), "the relay notices")  # type: ignore[misc]
            deadline, refused = time.monotonic() + FULL_S, 0
            while time.monotonic() < deadline:
                try:
                    outbox.index_many("large", [(str(n), {"text": chance.randbytes(3_000).hex()}) for n in range(100)])
                except (DBAPIError, DatabaseUnavailable):
                    refused += 1
            assert refused
            assert [relays.log(at) for at, process in enumerate(running) if process.poll() is not None] == []
            disk.empty()
            if of_log:  # the server has ended, and takes an operator
                server.stop()
                server.start()
            store = outbox.store()  # the one before may have lost its session
            delivered = store.counts()["done"]
            until(lambda: store.counts()["done"] > delivered + 100, "rows are written and delivered once more")
        finally:
            writers.stop.set()
        writing.result()
    relays.stop()
    for at in range(NUMBER):
        said = relays.log(at)
        print(said)
        assert "Traceback" not in said
        assert "the database takes writes again" in said
    writers.assert_delivered(relays, place)

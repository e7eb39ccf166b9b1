"""The database file is replaced, or removed, while a relay works on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import LIMIT_S
from tests.support.outbox import Outbox
from tests.support.relays import Relays, until


@pytest.fixture
def embedded_relays(outbox: Outbox, tmp_path: Path) -> Iterator[Relays]:
    made = Relays(outbox, "", tmp_path)
    made.give(
        OUTBOX_DESTINATION="embedded",
        OUTBOX_EMBEDDED_PATH=str(tmp_path / "search.db"),
        OUTBOX_ELASTICSEARCH_URL="",
        OUTBOX_HEARTBEAT_INTERVAL="1",
    )
    yield made
    made.end()


def replace(database: Path) -> None:
    """As `mv`, `rsync`, a restore and deploy scripts do."""
    copy = database.with_name("restored.db")
    shutil.copy(database, copy)
    copy.rename(database)


@pytest.mark.parametrize("change", [replace, Path.unlink])
def test_relay_whose_database_is_another_one_ends_and_says_what_to_do(
    change: Callable[[Path], None], outbox: Outbox, embedded_relays: Relays
) -> None:
    relay = embedded_relays.start()
    until(lambda: "delivers" in embedded_relays.log(), "the relay has started")
    database = Path(str(outbox.engine.url.database))
    change(database)
    assert relay.wait(LIMIT_S) == 1
    assert database.exists() == (change is replace)  # none was made where there was none
    last = embedded_relays.log().strip().splitlines()[-1]
    assert last.startswith("error: database ")
    assert "was replaced or removed" in last
    assert "epoch advance" in last


def test_relay_whose_database_stays_the_same_goes_on(outbox: Outbox, embedded_relays: Relays) -> None:
    relay = embedded_relays.start()
    until(lambda: "delivers" in embedded_relays.log(), "the relay has started")
    store = outbox.store()
    first = store.relays()[0]["heartbeat_at"]
    until(lambda: store.relays()[0]["heartbeat_at"] > first, "a heartbeat")
    assert relay.poll() is None

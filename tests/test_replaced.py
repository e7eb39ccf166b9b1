"""The database file is replaced, or removed, while a relay works on it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from outbox.check import newer_indexes
from outbox.destinations.base import Operation
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.store import operators, verifications
from outbox.store.models import EPOCH_STEP, now_ms
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


@pytest.mark.slow
def test_relay_on_an_older_file_is_refused_until_the_epoch_is_advanced(outbox: Outbox, embedded_relays: Relays) -> None:
    database = Path(str(outbox.engine.url.database))
    outbox.index("contacts", "c1", {"name": "Ada"})
    assert embedded_relays.call("run", "--drain").returncode == 0
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(database.with_name("b.db"))) as backup:
        source.backup(backup)
    outbox.index("contacts", "c2", {"name": "Grace"})  # is not in the backup
    assert embedded_relays.call("run", "--drain").returncode == 0
    outbox.close()
    outbox.engine.dispose()
    database.with_name("b.db").rename(database)
    row = outbox.index("contacts", "c2", {"name": "Alan"})
    refused = embedded_relays.call("run", "--drain")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"database {database} is older than index contacts" in refused.stderr
    assert "run 'outbox-relay epoch advance'" in refused.stderr
    assert "run 'outbox-relay epoch advance'" in embedded_relays.call("check").stdout
    assert embedded_relays.call("epoch", "advance", "--yes").returncode == 0
    assert embedded_relays.call("run", "--drain").stderr.endswith("1 done, 0 dead\n")
    assert "'Alan'" in embedded_relays.call("search", "contacts", "Alan", "--json").stdout.replace('"', "'")
    assert row


def test_documents_that_the_database_has_sent_or_a_repair_has_gone_above_do_not_make_it_an_older_one(
    outbox: Outbox, embedded: EmbeddedDestination
) -> None:
    row, store = outbox.index("contacts", "c1", {"name": "Ada"}), outbox.store()
    outbox.drain(embedded)
    outbox.index("contacts", "c1", {"name": "Ada Lovelace"})
    assert newer_indexes(store, embedded) == []
    by_hand = EPOCH_STEP + row + 7
    embedded.apply([Operation("contacts", "contacts-000001", "c1", by_hand, b"{}")])
    assert newer_indexes(store, embedded) == ["contacts"]
    verifications.raise_above(store, by_hand, now_ms())
    assert newer_indexes(store, embedded) == []
    operators.purge(store, operators.pending(store))
    assert newer_indexes(store, embedded) == []


def test_relay_whose_database_stays_the_same_goes_on(outbox: Outbox, embedded_relays: Relays) -> None:
    relay = embedded_relays.start()
    until(lambda: "delivers" in embedded_relays.log(), "the relay has started")
    store = outbox.store()
    first = store.relays()[0]["heartbeat_at"]
    until(lambda: store.relays()[0]["heartbeat_at"] > first, "a heartbeat")
    assert relay.poll() is None

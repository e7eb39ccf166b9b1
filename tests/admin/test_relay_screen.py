"""The screen of the relays: what each does now, and what to do about one that is lost."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox.store.models import now_ms
from tests.admin.world import World
from tests.dashboard.site import embedded_relays
from tests.support.relays import Relays, until


def listed(world: World, **columns: object) -> None:
    now = now_ms()
    given = {
        "host": "worker-1", "pid": 7, "version": "1.2.3", "started_at": now - 100_000, "heartbeat_at": now, **columns
    }  # fmt: skip
    world.outbox.raw(
        f"INSERT INTO outbox_relays ({', '.join(given)}) VALUES ({', '.join(f':{name}' for name in given)})", **given
    )


def relays(world: World) -> list[Any]:
    found: list[Any] = world.get("/relays")
    return found


def test_relay_says_what_it_does_and_what_the_lock_takes_of_its_time(embedded: World) -> None:
    now = now_ms()
    listed(embedded, id=1, lock_held_ms=20_000, lock_waited_ms=10_000, lock_longest_ms=120)
    listed(embedded, id=2, breakers=json.dumps([{"index": None, "reason": "connection refused", "since": now}]))
    listed(embedded, id=3, host="worker-2", started_at=now, heartbeat_at=now - 10**7)
    for index in ("contacts", "deals"):
        row = embedded.outbox.index(index, "c1", {})
        embedded.outbox.raw(
            "UPDATE outbox_events SET state = 'claimed', claimed_by = 1, claim_token = 'x', lease_expires_at = :until"
            " WHERE id = :row",
            until=now + 60_000,
            row=row,
        )
    embedded.outbox.raw(
        "INSERT INTO outbox_reindex_jobs (index_name, old_index, phase, lease_token, lease_holder, lease_expires_at)"
        " VALUES ('contacts', 'contacts-000001', 'scan', 'x', 'worker-1, pid 7', :until)",
        until=now + 60_000,
    )
    silent, delivers, waits = relays(embedded)
    assert (silent["id"], silent["doing"], silent["running"]) == (3, "silent", False)
    assert "process 7 on worker-2" in silent["remedy"]
    assert (delivers["doing"], delivers["rows"], delivers["rowsOf"], delivers["indexes"]) == (
        "delivers",
        2,
        "contacts",
        2,
    )
    assert (round(delivers["lockHeldShare"], 1), round(delivers["lockWaitedShare"], 1)) == (0.2, 0.1)
    assert (delivers["reindexes"], delivers["remedy"], delivers["version"]) == ([1], None, "1.2.3")
    assert (waits["doing"], waits["rows"]) == ("waits", 0)
    page = embedded.client.get("/relays").text
    for said in ("2 rows in hand of", "connection refused", "outbox-relay run", "/index?index=contacts", "1.2.3"):
        assert said in page


@pytest.fixture
def processes(embedded: World, tmp_path: Path) -> Iterator[Relays]:
    running = embedded_relays(embedded.outbox, tmp_path)
    yield running
    running.end()


def test_relay_that_hangs_is_told_from_one_that_was_killed(embedded: World, processes: Relays) -> None:
    assert "No relay runs" in embedded.client.get("/relays").text
    process = processes.start()
    (relay,) = until(lambda: relays(embedded), "the relay is listed")
    assert (relay["pid"], relay["doing"], relay["remedy"]) == (process.pid, "idle", None)
    process.send_signal(signal.SIGSTOP)
    embedded.outbox.raw("UPDATE outbox_relays SET heartbeat_at = 1")
    (relay,) = until(lambda: [each for each in relays(embedded) if each["doing"] != "idle"], "it is silent")
    assert relay["doing"] == "hangs"
    assert f"process {process.pid} on " in relay["remedy"]
    assert "see what it waits for, else kill it" in relay["remedy"]
    process.kill()
    process.wait()
    (relay,) = until(lambda: [each for each in relays(embedded) if each["doing"] == "killed"], "its end is seen")
    assert "was killed: other relays deliver its rows" in relay["remedy"]

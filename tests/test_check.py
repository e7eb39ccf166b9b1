"""What `outbox-relay check` finds, and that it says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine

from outbox import check, sqlite
from outbox.destinations.elasticsearch import ElasticsearchDestination
from outbox.models import now_ms
from tests.support.node import Node
from tests.support.outbox import Outbox
from tests.support.proxy import FaultProxy


def levels(findings: list[check.Finding]) -> dict[str, str]:
    return {finding.name: finding.level for finding in findings}


def test_missing_tables_fail_with_the_remedy(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    sqlite.prepare(engine)
    found = {finding.name: finding for finding in check.database(engine)}
    engine.dispose()
    assert (found["schema"].level, found["schema"].remedy) == ("fail", "run 'outbox-relay migrate'")


def test_healthy_database_warns_only_of_the_missing_relay(outbox: Outbox) -> None:
    found = levels(list(check.database(outbox.engine)))
    assert {name for name, level in found.items() if level != "ok"} == {"relays"}


def test_old_and_dead_rows_and_a_pause_are_warned_of(outbox: Outbox) -> None:
    outbox.index("contacts", "c1", {})
    dead = outbox.index("contacts", "c2", {})
    outbox.raw("UPDATE outbox_events SET created_at = created_at - 3600000")
    outbox.raw("UPDATE outbox_events SET state = 'dead' WHERE id = :id", id=dead)
    outbox.store().pause("maintenance", "ada", now_ms())
    found = levels(list(check.database(outbox.engine)))
    assert (found["queue"], found["dead rows"], found["pause"]) == ("warn", "warn", "warn")


@pytest.mark.elasticsearch
def test_index_that_forgets_deletes_too_soon_fails(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node
) -> None:
    outbox.index("contacts", "c1", {})
    outbox.drain(destination)
    assert set(levels(list(check.destination(outbox.engine, destination))).values()) == {"ok"}
    node.request("PUT", "/contacts-000001/_settings", {"index.gc_deletes": "1s"})
    (finding,) = [f for f in check.destination(outbox.engine, destination) if f.name == "index contacts"]
    assert finding.level == "fail"
    assert "index.gc_deletes is 1s" in finding.found


@pytest.mark.elasticsearch
def test_destination_that_is_away_fails(
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy
) -> None:
    proxy.down()
    assert levels(list(check.destination(outbox.engine, destination))) == {"destination": "fail"}
    proxy.up()

"""An outbox with something in every table and of every kind, to look at each page with."""

from __future__ import annotations

import json
from typing import Final

from sqlalchemy import Text

from outbox.store.models import metadata, now_ms
from tests.dashboard.site import dead_row, insert
from tests.reindex.world import World
from tests.support.models import Base, Contact
from tests.support.outbox import Outbox
from tests.support.relays import Relays

HOUR_MS: Final = 3_600_000
MEANT: Final = {
    *("state", "action", "outcome", "role", "phase", "breakers", "entities", "position", "document"),
    *("physical_index", "new_index", "claim_token", "lease_token"),
}
"""Columns of text whose words or whose form mean something, in whichever table."""


def filled(outbox: Outbox, relays: Relays) -> None:
    """Contacts that are delivered, rows in every state, and all that relays, reindexes and operators note."""
    Base.metadata.create_all(outbox.engine)
    sessions = World.registered(tenancy="prefixed").capture(outbox.sessions)
    with sessions.begin() as session:
        session.add_all(Contact(id=number, name=f"Ada {number}") for number in range(1, 4))
    assert relays.call("run", "--drain").returncode == 0
    now = now_ms()
    dead = dead_row(
        outbox, "t1:7", tenant_id="acme", entity="Contact", error_type="document_parsing_exception",
        error="failed to parse field [age] of type [integer]: 'forty-two'", error_field="age",
        document=json.dumps({"name": "Ada Lovelace", "age": "forty-two", "rank": 9007199254740993}),
    )  # fmt: skip
    for attempt, state in ((1, "pending"), (2, "dead")):
        insert(
            outbox, "outbox_failures", event_id=dead, attempt=attempt, failed_at=now - 1_000, relay=3, host="worker-1",
            pid=4711, state=state, error_type="document_parsing_exception", error_field="age", error="failed to parse",
        )  # fmt: skip
    dead_row(outbox, "t1:8", index="deals", error_type="strict_dynamic_mapping_exception", error="not allowed: colour")
    for number in range(60):
        outbox.index("contacts", f"t1:{number}", {"name": "Grace"}, tenant_id=f"tenant-{number % 30}")
    waiting = outbox.index("deals", "t1:9", {"name": "late"}, tenant_id="acme")
    outbox.raw("UPDATE outbox_events SET attempts = 1, available_at = 1900000000000 WHERE id = :row", row=waiting)
    claimed = outbox.index("deals", "t1:10", {"name": "on its way"}, tenant_id="acme")
    outbox.raw(
        "UPDATE outbox_events SET state = 'claimed', claimed_by = 3, claim_token = 'x', lease_expires_at = :at"
        " WHERE id = :row", at=now + HOUR_MS, row=claimed,
    )  # fmt: skip
    _noted(outbox, now)


def _noted(outbox: Outbox, now: int) -> None:
    breakers = json.dumps([{"index": "deals", "reason": "index [deals-000001] blocked: read-only", "since": now}])
    insert(
        outbox, "outbox_relays", id=3, host="worker-1.eu-central-1.compute.internal.example.com", pid=4711,
        version="0.1.0", started_at=now - HOUR_MS, heartbeat_at=now + 24 * HOUR_MS, breakers=breakers,
    )  # fmt: skip
    insert(outbox, "outbox_pauses", index_name="contacts", tenant_id="acme", paused_at=now, paused_by="ada", reason="?")
    insert(outbox, "outbox_indexes", index_name="deals", physical_index="deals-000001")
    for state, finished in (("failed", now), ("done", now), ("running", None)):
        insert(
            outbox, "outbox_reindex_jobs", index_name="contacts", old_index="contacts-000001", documents=5, total=9,
            new_index="contacts-000002", phase="scan", state=state, finished_at=finished, error="the cluster was away",
            lease_holder="worker-1", tenant_id="acme",
        )  # fmt: skip
    for drift in (0, 2):
        insert(
            outbox, "outbox_verifications", started_at=now - 1_000, finished_at=now, started_by="ada",
            entities='["contacts"]', sample=1, documents=3, missing=drift, error=None if drift else "it was stopped",
        )  # fmt: skip
    for about in ("index=contacts", "reason=an upgrade of the cluster " + "and of all its nodes " * 20):
        insert(
            outbox, "outbox_audit", began_at=now, ended_at=now, acted_by="ada at 127.0.0.1", action="dead retry",
            about=about, affected=3, error="the database is locked",
        )  # fmt: skip
    for minutes in range(1, 170):
        minute = now - now % 60_000 - minutes * 60_000
        insert(outbox, "outbox_depths", minute=minute, unfinished=minutes % 40, oldest_ms=100)
        insert(
            outbox, "outbox_stats", minute=minute, index_name="contacts", entity="contacts", tenant_id="acme",
            action="index", done=minutes % 70, dead=int(minutes % 50 == 0), latency_sum_ms=minutes * 900,
        )  # fmt: skip


def say(outbox: Outbox, text: str) -> None:
    """Every text that is stored, of whatever table and column, says this."""
    for table in metadata.sorted_tables:
        for column in table.columns:
            if isinstance(column.type, Text) and column.name not in MEANT:
                outbox.raw(
                    f"UPDATE OR IGNORE {table.name} SET {column.name} = :text WHERE {column.name} IS NOT NULL",
                    text=text,
                )
    outbox.raw("UPDATE outbox_documents SET document = :text", text=json.dumps({text: [text, {text: text}]}))
    outbox.raw("UPDATE outbox_verifications SET entities = :text", text=json.dumps([text]))
    breakers = json.dumps([{"index": each, "reason": text, "since": now_ms()} for each in (text, None)])
    outbox.raw("UPDATE outbox_relays SET breakers = :text", text=breakers)

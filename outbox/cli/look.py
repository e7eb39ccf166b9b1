"""status, show and settings: look, change nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from outbox import documents, logs
from outbox.cli.jobs import job_facts, job_line
from outbox.cli.options import NUMBER, database_option, json_option
from outbox.cli.wiring import load_settings, open_store
from outbox.errors import OutboxError
from outbox.maintenance.growth import Limits, Measured, growth
from outbox.settings import Settings, variable
from outbox.store import conflicts, history, jobs, pauses, verifications
from outbox.store.drift import DriftKind, needs_somebody
from outbox.store.history import Step
from outbox.store.models import now_ms
from outbox.store.shown import moment
from outbox.store.store import Store


@click.command()
@json_option
@database_option
def status(as_json: bool, database_url: str | None) -> None:
    """Show how many rows wait, how long, and who delivers them.

    \b
    Examples:
      outbox-relay status
      outbox-relay status --json | jq .pending
    """
    loaded = load_settings(database_url=database_url)
    with open_store(loaded) as store:
        facts = _facts(store, loaded)
        reindexes = [job_line(store, job) for job in jobs.open_jobs(store)]
    if as_json:
        click.echo(json.dumps(facts))
        return
    for line in (
        *_of_rows(facts),
        *_of_what_holds_them(facts),
        *reindexes,
        *_of_relays(facts),
        *_of_verification(facts),
        *_of_no_relay(facts),
    ):
        click.echo(line)


def _facts(store: Store, loaded: Settings) -> dict[str, Any]:
    """All that is shown, for other programs."""
    now, oldest, control = now_ms(), store.oldest_unfinished(), store.control()
    counts, relays = store.counts(), store.relays()
    age = None if oldest is None else max(0.0, (now - oldest) / 1000)
    used, free, wal = store.sizes()
    grown = [each for each in growth(Measured(age or 0, sum(counts.values()), wal), Limits.of(loaded)) if each.over]
    return {
        **counts,
        "oldest_pending_seconds": age,
        "database": {"bytes": used, "free_bytes": free, "wal_bytes": wal},
        "warnings": [{"name": each.name, "found": each.found, "remedy": each.remedy} for each in grown],
        "paused": None
        if control.paused_at is None
        else {"since": iso(control.paused_at), "by": control.paused_by, "reason": control.pause_reason},
        "pauses": [
            {
                "what": each.what,
                "index": each.index,
                "tenant": each.tenant,
                "since": iso(each.since),
                "by": each.by,
                "reason": each.reason,
                "rows": pauses.waiting(store, each),
                "remedy": each.remedy,
            }
            for each in pauses.current(store.run)
            if not each.is_of_all
        ],
        "epoch": control.epoch,
        "breakers": [breaker for relay in relays for breaker in relay["breakers"]],
        "held_by_versions": [asdict(each) for each in conflicts.held_by_others(store)],
        "verification": verified(verifications.last(store)),
        "reindexes": [job_facts(store, job) for job in jobs.open_jobs(store)],
        "relays": [
            {**relay, "silent_seconds": silent / 1000, "running": silent < loaded.silent_ms}
            for relay in relays
            for silent in [max(0, now - relay["heartbeat_at"])]
        ],
    }


def _of_rows(facts: dict[str, Any]) -> Iterator[str]:
    age, database = facts["oldest_pending_seconds"], facts["database"]
    since = "" if age is None else f", the oldest for {age:,.1f} s"
    used, free, wal = (database[name] / 1e6 for name in ("bytes", "free_bytes", "wal_bytes"))
    yield f"{facts['pending'] + facts['claimed']:>12,} waiting{since} ({facts['claimed']:,} in flight)"
    yield f"{facts['done']:>12,} done and not yet pruned"
    yield f"{facts['dead']:>12,} dead" + ("  → outbox-relay dead list" if facts["dead"] else "")
    yield f"{used:>12,.1f} MB database, {free:,.1f} MB of it free; {wal:,.1f} MB write-ahead log"


def _of_what_holds_them(facts: dict[str, Any]) -> Iterator[str]:
    for each in facts["warnings"]:
        yield f"GROWN: {each['found']}  → {each['remedy']}"
    if paused := facts["paused"]:
        since = f"PAUSED since {paused['since']} by {paused['by']}: {paused['reason'] or '?'}"
        yield logs.safe(f"{since}  → outbox-relay resume")
    for each in facts["pauses"]:
        rows = logs.rows(each["rows"], "waits", "wait")
        since = f"PAUSED: {each['what']} since {each['since']} by {each['by']}: {each['reason']}; {rows}"
        yield logs.safe(f"{since}  → {each['remedy']}")
    for breaker in facts["breakers"]:
        name = breaker["index"] or "destination"
        yield logs.safe(f"WAITING for {name} since {iso(breaker['since'])}: {breaker['reason']}")
    for held in facts["held_by_versions"]:
        if held["index"] not in {breaker["index"] for breaker in facts["breakers"]}:  # which says the same
            yield logs.safe(f"WAITING for {held['index']}, {logs.rows(held['rows'])}: {held['reason']}")


def _of_relays(facts: dict[str, Any]) -> Iterator[str]:
    for relay in facts["relays"]:
        where = logs.safe(f"relay {relay['id']} on {relay['host']}, pid {relay['pid']}")
        state = "" if relay["running"] else ": killed, or hangs"
        yield f"{where}, last sign of life {relay['silent_seconds']:.0f} s ago{state}"


def _of_verification(facts: dict[str, Any]) -> Iterator[str]:
    if facts["verification"]:
        yield logs.safe(_verification_line(facts["verification"]))


def _of_no_relay(facts: dict[str, Any]) -> Iterator[str]:
    if not any(relay["running"] for relay in facts["relays"]):
        yield "no relay runs  → outbox-relay run"


def verified(row: dict[str, Any] | None) -> dict[str, Any] | None:
    """A verification as people and programs read it."""
    if row is None:
        return None
    kinds = {str(kind): row[kind] for kind in DriftKind}
    return {
        "finished": iso(row["finished_at"]),
        "seconds": (row["finished_at"] - row["started_at"]) / 1000,
        "by": row["started_by"],
        "entities": row["entities"],
        "tenant": row["tenant_id"],
        "sample": row["sample"],
        "documents": row["documents"],
        "drift": sum(kinds.values()),
        **kinds,
        "in_flight": row["in_flight"],
        "repaired": row["repaired"],
        "error": row["error"],
    }


def _verification_line(facts: dict[str, Any]) -> str:
    part = "" if facts["sample"] == 1 else f"a sample of {facts['sample'] * 100:g}% of "
    whose = "" if facts["tenant"] is None else f" of tenant {facts['tenant']}"
    what = f"{part}{', '.join(facts['entities'])}{whose} at {facts['finished']} by {facts['by']}"
    if facts["error"]:
        return f"NOT VERIFIED: {what}: {facts['error']}"
    took = f"{facts['documents']:,} documents in {facts['seconds']:,.1f} s"
    if not facts["drift"]:
        return f"verified {what}: {took}, no drift"
    found = ", ".join(f"{facts[kind]:,} {kind}" for kind in DriftKind if facts[kind])
    after = f", {logs.rows(facts['repaired'])} written to repair it" if facts["repaired"] else ""
    remedy = "  → outbox-relay verify --repair" if needs_somebody(facts["drift"], facts["repaired"]) else ""
    return f"DRIFT in {what}: {found} ({took}){after}{remedy}"


@click.command()
@click.argument("event_id", type=NUMBER, metavar="ID")
@json_option
@database_option
def show(event_id: int, as_json: bool, database_url: str | None) -> None:
    """Show one row of the outbox: its job, history and result.

    The history has each attempt that failed, and who retried the row. The numbers of dead rows are in
    'outbox-relay dead list', others in the table outbox_events.

    \b
    Examples:
      outbox-relay show 42
      outbox-relay show 42 --json | jq .result
      outbox-relay dead show 42  # the same
    """
    with open_store(load_settings(database_url=database_url)) as store:
        row = store.event(event_id)
        if row is None:
            raise OutboxError(_missing(event_id, history.removal_of(store, event_id)))
        steps = history.of_row(store, row)
    document = row.pop("document")
    facts = {
        "job": {
            "action": row["action"],
            "index": row["index_name"],
            "id": row["document_id"],
            "document": _read(document),
            "tenantId": row["tenant_id"],
        },
        "result": {
            "success": row["state"] == "done",
            "action": row["action"],
            "index": row["index_name"],
            "id": row["document_id"],
            "syncedAt": iso(row["finished_at"]) if row["state"] == "done" else None,
        },
        "row": row,
        "history": [{**asdict(each), "at": iso(each.at), "until": iso(each.until)} for each in steps],
    }
    if as_json:
        click.echo(documents.as_json(facts, shown=lambda each: " " <= each <= "~"))  # whatever the terminal's encoding
        return
    click.echo(logs.safe(f"row {event_id}: {row['action']} {row['index_name']}/{row['document_id']}, {row['state']}"))
    for name, value in row.items():
        if value is not None:
            click.echo(logs.safe(f"  {name:<18}{iso(value) if name.endswith('_at') else value}"))
    if document:
        click.echo(logs.safe(f"  {'document':<18}{document}"))
    click.echo("history:")
    for step in steps:
        until = "" if step.until is None else f", until {iso(step.until)}"
        error = "" if step.error_type is None else f": {step.error_type}: {step.error}"
        click.echo(logs.safe(f"  {iso(step.at) or 'now':<26}{step.text}{until}{error}"))


def _missing(event_id: int, removed: Step | None) -> str:
    if removed is None:
        return f"row {event_id} does not exist; finished rows are removed after OUTBOX_RETENTION_HOURS"
    return f"row {event_id} does not exist: {removed.text} at {iso(removed.at)}"


@click.command(name="settings")
@json_option
def settings_(as_json: bool) -> None:
    """List every setting with its default and what it means.

    \b
    Examples:
      outbox-relay settings
      outbox-relay settings --json
    """
    rows = [
        {"variable": variable(name), "default": default_text(info.default), "meaning": info.description}
        for name, info in Settings.model_fields.items()
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        click.echo(f"{row['variable']} (default: {row['default']})\n    {row['meaning']}")


def iso(milliseconds: int | None) -> str | None:
    """An instant of the tables as people write it, in UTC."""
    if milliseconds is None:
        return None
    return moment(milliseconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def default_text(value: Any) -> str:
    """A default as it is written in the environment."""
    return "none" if value is None or value == () else str(value).lower() if isinstance(value, bool) else str(value)


def _read(document: str | None) -> Any:
    """What another program wrote may be no JSON."""
    try:
        return documents.read_exactly(document or "null")
    except ValueError:
        return document


commands = [status, show, settings_]

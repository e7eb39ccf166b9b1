"""What is as it should be, what is not, and what to do about it. Changes nothing."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from outbox import logs, schema
from outbox.destinations import misled
from outbox.destinations.base import FOREVER, Destination
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError, DatabaseUnavailable, DestinationError, FailedOver
from outbox.maintenance.growth import DEFAULT, Limits, Measured, growth
from outbox.mappings import IndexDrift, drift
from outbox.store import by_index, conflicts, jobs, pauses, verifications, versions
from outbox.store.dialect import Finding as Finding
from outbox.store.dialect import finding
from outbox.store.drift import DriftKind, needs_somebody
from outbox.store.models import now_ms
from outbox.store.pauses import Pause
from outbox.store.store import Store, database_name, dialect_of
from outbox.triggers import installer as database_triggers
from outbox.triggers.sqlite import UNSEEN_KEY, UNSEEN_KEY_REMEDY

SILENT_MS = 30_000
CLOCK_MS = 5_000
_SUPPORTED = {
    "elasticsearch": (re.compile(r"8\.(19|[2-9]\d)\.|9\."), "use Elasticsearch 8.19 or newer 8.x, or 9.x"),
    "opensearch": (re.compile(r"2\.(19|[2-9]\d)\.|3\."), "use OpenSearch 2.19 or newer 2.x, or 3.x"),
}
"""Each product that a cluster may be: the versions that are known, and what to do about another."""
_UNITS_MS = {"nanos": 1e-6, "micros": 1e-3, "ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def database(engine: Engine, *, silent_ms: int = SILENT_MS, limits: Limits = DEFAULT) -> list[Finding]:
    """The file, the tables in it, how full they are, and whether a relay works on them.

    Pass an engine that `outbox.sqlite.prepare` has not touched: a prepared one switches the file to WAL, and the
    journal is always found to be right. A relay without a heartbeat for `silent_ms` counts as gone.
    """
    found = dialect_of(engine).findings(engine)
    if found[-1].name == "database":  # it cannot be read
        return found
    try:
        schema.require_head(engine)
        revision = schema.revision(engine)
        at = f"outbox tables at revision {revision}" if revision else "outbox tables, made by other migrations"
        found.append(Finding("schema", "ok", at))
        return found + _rows(engine, silent_ms, limits)
    except ConfigurationError as error:
        what, _, remedy = str(error).rpartition(": ")
        return [*found, Finding("schema", "fail", what, remedy)]
    except DatabaseUnavailable as error:
        return [
            *found,
            Finding("tables", "fail", str(error), "see which process keeps the database locked, then check again"),
        ]


def _rows(engine: Engine, silent_ms: int, limits: Limits) -> list[Finding]:
    store = Store(engine)
    try:
        now, counts, oldest = now_ms(), store.counts(), store.oldest_unfinished()
        paused, relays, wal_bytes = pauses.current(store.run), store.relays(), store.sizes().log
        verification = verifications.last(store)
        failed_over = versions.failed_over(store)
        reindexes = [(job, jobs.is_abandoned(store, job, now)) for job in jobs.open_jobs(store)]
    finally:
        store.close()
    age = 0.0 if oldest is None else max(0, now - oldest) / 1000
    queue, rows, wal = growth(Measured(age, sum(counts.values()), wal_bytes), limits)
    waiting = logs.rows(counts["pending"] + counts["claimed"], "waits", "wait")
    return [
        finding("rows", not rows.over, f"{rows.found}, {counts['done']:,} of them done", rows.remedy, "warn"),
        finding("queue", not queue.over, f"{waiting}, the oldest for {age:,.0f} s", queue.remedy, "warn"),
        finding(wal.name, not wal.over, wal.found, wal.remedy, "warn"),
        finding(
            "dead rows",
            not counts["dead"],
            f"{counts['dead']:,}",
            "see 'outbox-relay dead list', then 'outbox-relay dead retry' or 'outbox-relay dead discard'",
            "warn",
        ),
        *_failed_over(failed_over),
        *_pauses(paused),
        _verification(verification, now),
        *_relays(relays, now, silent_ms),
        *(
            finding(
                "reindex",
                not abandoned,
                f"{job}, {'left unfinished' if abandoned else job.lease_holder}, at step '{job.phase}'",
                f"run 'outbox-relay reindex --resume', or 'outbox-relay reindex --cancel {job.id}'",
                "warn",
            )
            for job, abandoned in reindexes
        ),
    ]


def _failed_over(error: FailedOver | None) -> list[Finding]:
    what, _, remedy = str(error or "").rpartition("; ")
    return [Finding("failover", "fail", what, remedy)] if error else []


def _pauses(paused: Sequence[Pause]) -> list[Finding]:
    """What operators have paused, one finding for each."""
    return [
        Finding(
            "pause",
            "warn",
            f"{'' if each.is_of_all else f'{each.what} is '}paused by {each.by}: {each.reason}",
            f"run '{each.remedy}' once the reason no longer holds",
        )
        for each in paused
    ] or [Finding("pause", "ok", "not paused")]


def _verification(last: dict[str, Any] | None, now: int) -> Finding:
    """Whether index and database were the same when they were compared last."""
    if last is None:
        return Finding(
            "verification", "ok", "none so far: 'outbox-relay verify' compares the entities with their indexes"
        )
    days, hours = divmod(max(0, now - last["finished_at"]) // 3_600_000, 24)
    when = f"{days:,} d ago" if days else f"{hours} h ago"
    if last["error"]:
        return Finding(
            "verification", "warn", f"the last, {when}, did not finish: {last['error']}", "run 'outbox-relay verify'"
        )
    drift = {kind: last[kind] for kind in DriftKind if last[kind]}
    whole = "" if last["sample"] == 1 and last["tenant_id"] is None else ", of a part"
    found = ", ".join(f"{number:,} {kind}" for kind, number in drift.items()) or "no drift"
    repaired = f", {logs.rows(last['repaired'])} written to repair it" if last["repaired"] else ""
    return finding(
        "verification",
        not needs_somebody(sum(drift.values()), last["repaired"]),
        f"the last, {when}{whole}: {last['documents']:,} documents, {found}{repaired}",
        "run 'outbox-relay verify' to see what differs, then 'outbox-relay verify --repair'",
        "warn",
    )


def _relays(relays: Sequence[dict[str, Any]], now: int, silent_ms: int) -> list[Finding]:
    alive = [relay for relay in relays if now - relay["heartbeat_at"] < silent_ms]
    silent = len(relays) - len(alive)
    gone = f", {silent} listed without a sign of life" if silent else ""
    ahead = max((relay["heartbeat_at"] - now for relay in relays), default=0)
    return [
        finding("relays", bool(alive), f"{len(alive)} running{gone}", "run 'outbox-relay run'", "warn"),
        *(
            Finding(
                "waiting",
                "warn",
                f"relay {relay['id']} waits for {breaker['index'] or 'the destination'}: {breaker['reason']}",
                "fix what the reason names; the relay resumes by itself",
            )
            for relay in alive
            for breaker in relay["breakers"]
        ),
        finding(
            "clock",
            ahead <= CLOCK_MS,
            f"the last heartbeat is {ahead / 1000:,.0f} s in the future" if ahead > CLOCK_MS else "not set back",
            "the clock was set back: let NTP set it",
            "warn",
        ),
    ]


def engines(registry: EntityRegistry | None) -> list[Finding]:
    """Whether the engines of captured sessions are prepared; nothing where it is not known which ones they use."""
    found = sorted(registry.engines() if registry else (), key=str)
    wanting = [database_name(each) for each in found if not dialect_of(each).is_prepared(each)]
    if not found:
        return []
    return [
        finding(
            "engine",
            not wanting,
            f"that of {', '.join(wanting)} is not prepared" if wanting else "prepared",
            "call outbox.sqlite.prepare(engine) in the application, once, before its first connection",
            "warn",
        )
    ]


def triggers(engine: Engine, registry: EntityRegistry | None) -> list[Finding]:
    """Whether the triggers that were once installed are still there, and as the registry says.

    Nothing where none were installed, or the database cannot be read: `database` says so.
    """
    try:
        with engine.execution_options(outbox_begin="DEFERRED").connect() as connection:
            if not database_triggers.installed(connection):
                return []
            if registry is None:
                remedy = "set OUTBOX_ENTITIES here as well, so that they can be compared with the registry"
                return [Finding("triggers", "warn", "triggers are installed, of an unknown registry", remedy)]
            installed = database_triggers.status(connection, registry)
            unseen = database_triggers.unseen_keys(connection, registry)
    except ConfigurationError as error:
        return [
            Finding("triggers", "fail", str(error), "leave that entity to the capture of sessions, or move its table")
        ]
    except DBAPIError:
        return []
    wrong = [each for each in installed if each.state != "ok"]
    first = f", e.g. {wrong[0].name} on {wrong[0].table} is {wrong[0].state}: {wrong[0].detail}" if wrong else ""
    return [
        finding(
            "triggers",
            not wrong,
            f"{len(installed) - len(wrong):,} of {len(installed):,} are as the registry says{first}",
            "run 'outbox-relay triggers install', and again after each migration that rebuilds a table",
        ),
        *(
            Finding(
                "unique key",
                "warn",
                f"{each} {UNSEEN_KEY}",
                UNSEEN_KEY_REMEDY,
            )
            for each in unseen
        ),
    ]


def destination(to: Destination, *, at: str = "") -> list[Finding]:
    """Whether the search engine answers, is one we know, and is healthy. `at`: its address, for the message."""
    try:
        health = to.health()
    except DestinationError as error:
        remedy = (
            "check OUTBOX_DESTINATION, and OUTBOX_ELASTICSEARCH_URL or OUTBOX_OPENSEARCH_URL with its credentials, or "
            "OUTBOX_EMBEDDED_PATH"
        )
        return [Finding("destination", "fail", f"{error} ({at})" if at else str(error), remedy)]
    product = f"{health.product} {health.version}"
    if health.product == "embedded":
        return [Finding("destination", "ok", product), Finding("file", "ok", health.status)]
    known, remedy = _SUPPORTED[health.product]
    red = health.status == "red"
    return [
        finding("destination", known.match(health.version) is not None, product, remedy),
        finding("cluster", not red, f"status {health.status}", "some shards are away: see GET _cluster/health"),
    ]


def newer_indexes(store: Store, to: Destination) -> list[str]:
    """Indexes that this database has filled, and whose newest documents it has never sent.

    So it is an older file than the one that they were filled from last, such as a backup, and draws versions once more.
    Raises `DestinationError`.
    """
    newest = {name: to.newest_version(target) for name, target in versions.filled_indexes(store).items()}
    # Asked last: they rise.
    return sorted(name for name, held in newest.items() if versions.was_never_drawn(store, held))


def indexes(engine: Engine, to: Destination, gc_deletes: str, registry: EntityRegistry | None = None) -> list[Finding]:
    """Each index that rows go to. Nothing when the tables cannot be read: `database` says so.

    With the registry, only an index of an entity is said to be made anew from the database where it is lost.
    """
    try:
        schema.require_head(engine)
        store = Store(engine)
        try:
            targets = store.targets()
            kept = {name: old for name in targets if (old := jobs.kept_index(store, name))}
            held = {each.index: each for each in conflicts.held_by_others(store)}
            newer = _newer(store, to)
        finally:
            store.close()
    except (ConfigurationError, DatabaseUnavailable):
        return []
    chosen = {name: _chosen(registry, name) for name in targets}
    found = [
        _held(held[name]) if name in held else _index(to, name, target, gc_deletes, kept.get(name), chosen[name])
        for name, target in sorted(targets.items())
    ]
    found += [_shared(name, targets[name], others) for name, others in sorted(by_index.sharing(targets).items())]
    for name, target in sorted(targets.items()):
        found += _gives_back(to, name, target)
        if registry is not None and any(entity.skip_unchanged for entity in registry.of_index(name)):
            found += _skips_nothing(to, name, target)
    return newer + found


def _newer(store: Store, to: Destination) -> list[Finding]:
    try:
        newer = newer_indexes(store, to)
    except DestinationError:
        return []  # `_index` says which
    found = f"the database is older than index {', '.join(newer)}, which holds documents that it has never sent"
    remedy = "run 'outbox-relay epoch advance' before a relay delivers"
    return [Finding("restored", "fail", found, remedy)] if newer else []


def _held(by_others: conflicts.Held) -> Finding:
    """Rows wait since the index holds versions of others."""
    what, _, _ = by_others.reason.partition(";")
    waiting = logs.rows(by_others.rows, "waits", "wait")
    remedy = "run 'outbox-relay epoch advance': its rows are newer then, and a relay delivers them by itself"
    return Finding(f"index {by_others.index}", "fail", f"{waiting}: {what}", remedy)


def _shared(name: str, target: str, others: Sequence[str]) -> Finding:
    """A rebuild or a repair of one name would remove the documents of the other."""
    found = f"its rows go to {target}, as those of {', '.join(others)} do: neither can be rebuilt without the other's"
    remedy = f"make an index for {name} alone, move its alias there, and run 'outbox-relay epoch advance'"
    return Finding(f"index {name}", "fail", found, f"{remedy}, then 'outbox-relay reindex --all'")


def _chosen(registry: EntityRegistry | None, name: str) -> str | None:
    """The option of `reindex` that chooses an index; None where it has no entity."""
    if registry is None:
        return "--all"
    entities = registry.of_index(name)
    return f"--entity {shlex.quote(entities[0].name)}" if entities else None


def _index(
    to: Destination, name: str, target: str, gc_deletes: str, kept: tuple[str, int] | None, chosen: str | None
) -> Finding:
    title = f"index {name}"
    try:
        facts = to.inspect_index(name, target)
    except DestinationError as error:
        return Finding(title, "fail", str(error), "check that the configured user may see this index")
    if facts.readers != (target,):
        others = ", ".join(facts.readers) or "nothing"
        wrong = f"its readers get {others}" if facts.exists else "which is missing"
        remedy = misled.remedy(name, target, exists=facts.exists, readers=facts.readers)
        if not facts.readers and chosen is None:
            remedy = f"restore it from a snapshot, or create it with alias {name}: it has no registered entity"
        elif kept and facts.readers in ((), kept[:1]) and to.inspect_index(name, kept[0]).exists:
            missed = f"refused {logs.rows(kept[1])}" if kept[1] else "missed nothing"
            remedy = f"run 'outbox-relay reindex {chosen} --rollback': {kept[0]}, which was kept, has {missed}"
        return Finding(title, "fail", f"its rows go to {target}, {wrong}", f"{remedy}; its rows wait until then")
    if _milliseconds(facts.gc_deletes) < _milliseconds(gc_deletes):
        return Finding(
            title,
            "fail",
            f"{target} forgets deletes after {facts.gc_deletes}, OUTBOX_GC_DELETES says {gc_deletes}",
            f'PUT {target}/_settings {{"index.gc_deletes": "{gc_deletes}"}}',
        )
    remembered = "good" if facts.gc_deletes == FOREVER else facts.gc_deletes
    return Finding(title, "ok", f"goes to {target}, remembers deletes for {remembered}")


def mappings(engine: Engine, to: Destination, registry: EntityRegistry | None) -> list[Finding]:
    """Each index of an entity that has mappings or settings other than the registered ones.

    Nothing of an index that is not compared, see `outbox.mappings.drift`: `indexes` and `database` say why.
    """
    if registry is None:
        return []
    store = Store(engine)
    try:
        schema.require_head(engine)
        return [_drifted(each, registry) for each in drift(store, to, registry) if each.differences]
    except (ConfigurationError, DatabaseUnavailable):
        return []
    except DestinationError as error:
        return [Finding("mappings", "warn", f"not compared: {error}", "check that the configured user may see them")]
    finally:
        store.close()


def _drifted(of: IndexDrift, registry: EntityRegistry) -> Finding:
    options = registry.index_options(of.index) or ({}, {})
    missing = any(each.held is None for each in of.differences)
    refused = missing and options[0].get("dynamic") == "strict"  # documents with a field that the index lacks
    return Finding(f"index {of.index}", "fail" if refused else "warn", of.summary, of.remedy)


def _gives_back(to: Destination, name: str, target: str) -> list[Finding]:
    """What an index does not give back as it was sent: no verification sees it, and a partial update would lose it."""
    try:
        kept = to.kept(target)
    except DestinationError:
        return []  # `_index` says which
    title = f"index {name}"
    if kept.lost:
        found = f"{kept.lost}: verify cannot compare that, and partial updates are dead as source_missing"
        remedy = "send full documents, or rebuild it with mappings whose _source is complete"
        return [Finding(title, "warn", found, remedy)]
    if kept.changed:
        found = f"{kept.changed}: verify compares ids and versions alone, partial updates go on from what it gives back"
        remedy = "change nothing if that is meant; otherwise " + (
            "rebuild it with a stored _source"
            if kept.synthetic
            else f'PUT {target}/_settings {{"index.default_pipeline": null, "index.final_pipeline": null}}'
        )
        return [Finding(title, "warn", found, remedy)]
    return []


def _skips_nothing(to: Destination, name: str, target: str) -> list[Finding]:
    """Why no document of an index is left out, although an entity of it has `skip_unchanged`."""
    try:
        why = to.kept(target).uncertain
    except DestinationError:
        return []
    found = f"{why}: all of its documents are written, in spite of skip_unchanged"
    remedy = "take skip_unchanged off its entities, or rebuild it with mappings that give all of a document back"
    return [Finding(f"index {name}", "warn", found, remedy)] if why else []


def _milliseconds(duration: str) -> float:
    """A duration as Elasticsearch writes it; 0 for one that remembers nothing (-1)."""
    if duration == FOREVER:
        return math.inf
    parts = re.fullmatch(r"(\d+)(nanos|micros|ms|s|m|h|d)", duration)
    return int(parts[1]) * _UNITS_MS[parts[2]] if parts else 0

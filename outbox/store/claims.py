"""What a relay does with rows: claim them, load what they say, and record what became of each, or give it back."""

from __future__ import annotations

import json
import re
import secrets
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from outbox.store.malformed import NUMBER, TEXT, TEXT_OR_NULL, well_formed
from outbox.store.models import (
    FRESH,
    HELD,
    LATENCIES,
    LATENCY_BOUNDS_MS,
    POISON,
    RELAY_DIED,
    TENANT,
    UNANSWERED,
    WAITING,
    Event,
    State,
    Transition,
)
from outbox.store.store import Store, printable

_CLAIMED = ", ".join("c.deliveries + 1" if name == "deliveries" else f"c.{name}" for name in Event._fields)
_TYPES = (NUMBER, *3 * (TEXT,), *2 * (TEXT_OR_NULL,), *3 * (NUMBER,))  # of the fields of an Event


@dataclass(frozen=True, slots=True)
class Claim:
    """Rows that are this relay's to deliver, until `lease_expires_at`, as long as they carry `token`."""

    token: str
    events: tuple[Event, ...]
    epoch: int
    targets: Mapping[str, str]
    lease_expires_at: int
    lone: bool = False  # one row, which got no answer time and again
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # further physical indexes, of a reindex


# -- claiming ---------------------------------------------------------------------------------------------------


def claim(
    store: Store,
    *,
    relay: int,
    now: int,
    lease_ms: int,
    longest_wait: int,
    rows: int,
    bytes_: int,
    leave_out: Iterable[str] = (),
    only: str | None = None,
    tenants_out: Iterable[str] = (),
    tenant_rows: int | None = None,
    lone_after: int = 10,
    lone: bool = True,
) -> Claim | None:
    """Take up to `rows` due rows (about `bytes_` of documents), in order and without a gap for each document.

    Tenants and indexes share a batch evenly, so that a backlog of one does not starve the others. `leave_out` and
    `only` name indexes; `tenants_out` tenants, and `tenant_rows` is the most fresh rows of one. A row that was
    delivered `lone_after` times and got no answer is claimed alone, and before the others, the one that waits
    longest first; without `lone` it is passed over.
    None when nothing could be claimed, or the outbox is paused. Raises `SchemaError` as `Store.pin` says, and
    `MalformedRows`.
    """
    store.require_pinned()
    if not _anything_due(store, now, longest_wait):
        return None
    while True:
        lanes = fresh_lanes(store, leave_out, only, tenants_out)
        with store.write(durable=True):
            store.require_pinned()  # no migration can come between this and the claim
            control = store.control()
            if control.paused_at is not None:
                return None
            candidates = _due(store, lanes, now, longest_wait, rows, leave_out, only, tenants_out, tenant_rows)
            chosen, suspect, blocked = _choose(candidates, bytes_, lone_after)
            if blocked:
                _park(store, blocked, now, longest_wait)
            if suspect and lone:
                return replace(_take(store, (suspect,), control.epoch, relay, now, lease_ms), lone=True)
            if chosen:
                return _take(store, chosen, control.epoch, relay, now, lease_ms)
        if not blocked:
            return None


def _anything_due(store: Store, now: int, longest_wait: int) -> bool:
    """A look that takes no lock."""
    return bool(
        store.run(
            f"SELECT EXISTS (SELECT 1 FROM outbox_events INDEXED BY ix_outbox_events_fresh WHERE {FRESH})"
            f" OR EXISTS (SELECT 1 FROM outbox_events INDEXED BY ix_outbox_events_waiting WHERE {WAITING}"
            " AND (available_at <= ? OR available_at > ?))",
            now,
            now + longest_wait,
        ).scalar_one()
    )


def fresh_lanes(
    store: Store, leave_out: Iterable[str] = (), only: str | None = None, tenants_out: Iterable[str] = ()
) -> list[tuple[str, str]]:
    """Who has fresh rows: (index, tenant), whoever waits longest first. Takes no lock: two index seeks a lane.

    Raises `MalformedRows`.
    """
    after = f"SELECT n.id FROM outbox_events AS n INDEXED BY ix_outbox_events_fresh WHERE {_of('n', FRESH)}"
    order = f"ORDER BY n.index_name, {_of('n', TENANT)}, n.id LIMIT 1"
    lanes = store.run(
        f"""
        WITH RECURSIVE head (id) AS (  -- the oldest row of each lane, lane by lane as they stand in the index
            SELECT ({after} {order})
            UNION ALL
            SELECT coalesce(
                ({after} AND n.index_name = h.index_name AND {_of("n", TENANT)} > {_of("h", TENANT)} {order}),
                ({after} AND n.index_name > h.index_name {order}))
            FROM head JOIN outbox_events AS h ON h.id = head.id
        )
        SELECT h.index_name, {_of("h", TENANT)} FROM head JOIN outbox_events AS h ON h.id = head.id
        WHERE h.index_name NOT IN (SELECT value FROM json_each(:left_out))
        AND (:only IS NULL OR h.index_name = :only) ORDER BY h.id
        """,
        {"left_out": json.dumps(sorted(leave_out)), "only": only},
    )
    left_out = set(tenants_out)
    return [
        (index_name, tenant) for index_name, tenant in well_formed(store, lanes, (TEXT, TEXT)) if tenant not in left_out
    ]


def _fresh(store: Store, lanes: Sequence[tuple[str, str]], rows: int, tenant_rows: int | None) -> list[int]:
    """Up to `rows` fresh rows: an even share for each lane; what some leave of theirs goes to the others."""
    most = rows if tenant_rows is None else tenant_rows
    share = min(most, max(1, rows // max(1, len(lanes))))
    found = _heads(store, lanes[:rows], share)
    hungry = [lane for lane, ids in found.items() if len(ids) == share]
    left = rows - sum(map(len, found.values()))
    if left >= len(hungry) > 0:
        found |= _heads(store, hungry, min(most, share + left // len(hungry)))
    return [id_ for ids in found.values() for id_ in ids]


def _heads(store: Store, lanes: Sequence[tuple[str, str]], share: int) -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = {}
    for index_name, tenant, id_ in store.run(
        f"""
        SELECT f.index_name, {_of("f", TENANT)}, f.id
        FROM json_each(:lanes) AS lane JOIN outbox_events AS f ON f.id IN (
            SELECT id FROM outbox_events INDEXED BY ix_outbox_events_fresh WHERE {FRESH}
            AND index_name = json_extract(lane.value, '$[0]') AND {TENANT} = json_extract(lane.value, '$[1]')
            ORDER BY id LIMIT :share)
        """,
        {"lanes": json.dumps(lanes), "share": share},
    ).fetchall():
        found.setdefault((index_name, tenant), []).append(id_)
    return found


def _due(
    store: Store,
    lanes: Sequence[tuple[str, str]],
    now: int,
    longest_wait: int,
    rows: int,
    leave_out: Iterable[str],
    only: str | None,
    tenants_out: Iterable[str],
    tenant_rows: int | None,
) -> Sequence[Any]:
    """Candidates in the order of their ids: each as it is once claimed, with what `_choose` has to know of it.

    `behind` is the nearest earlier unfinished row of its document.
    """
    waiting = [
        row[0]
        for row in store.run(
            f"""
            SELECT id FROM outbox_events INDEXED BY ix_outbox_events_waiting
            WHERE {WAITING} AND (available_at <= :now OR available_at > :too_far)
            AND index_name NOT IN (SELECT value FROM json_each(:left_out))
            AND (:only IS NULL OR index_name = :only)
            AND {TENANT} NOT IN (SELECT value FROM json_each(:tenants_out))
            ORDER BY available_at, id LIMIT :rows
            """,
            {
                "tenants_out": json.dumps(list(tenants_out)),
                "now": now,
                "too_far": now + longest_wait,
                "left_out": json.dumps(sorted(leave_out)),
                "only": only,
                "rows": rows,
            },
        )
    ]
    fresh = _fresh(store, lanes, max(rows - len(waiting), rows // 2), tenant_rows)
    candidates = store.run(
        f"""
        SELECT {_CLAIMED}, c.error_type, coalesce(CAST(c.available_at AS INTEGER), 0),
               coalesce(CAST(c.document_bytes AS INTEGER),
                        (SELECT length(CAST(d.document AS BLOB)) FROM outbox_documents d WHERE d.event_id = c.id),
                        0) AS bytes,
               (SELECT max(h.id) FROM outbox_events AS h INDEXED BY ix_outbox_events_held
                WHERE ({_of("h", HELD)})
                AND h.index_name = c.index_name AND h.document_id = c.document_id AND h.id < c.id) AS behind
        FROM outbox_events AS c WHERE c.id IN (SELECT value FROM json_each(:ids)) ORDER BY c.id
        """,
        {"ids": json.dumps(fresh + waiting[: rows - len(fresh)])},
    )
    return well_formed(store, candidates, _TYPES)


def _choose(candidates: Sequence[Any], bytes_: int, lone_after: int) -> tuple[list[Event], Event | None, list[int]]:
    """Of candidates, in the order of their ids: those to claim together, the one to claim alone instead, and those
    that wait behind another row."""
    chosen: list[Event] = []
    suspects: list[tuple[int, Event]] = []
    taken: set[int] = set()
    blocked: list[int] = []
    blocked_documents: set[tuple[str, str]] = set()
    size, width = 0, len(Event._fields)
    for row in candidates:
        event = Event._make(row[:width])
        error_type, available_at, row_bytes, behind = row[width:]
        document = (event.index_name, event.document_id)
        if document in blocked_documents or (behind is not None and behind not in taken):
            blocked_documents.add(document)
            blocked.append(event.id)
            continue
        if event.deliveries > lone_after and error_type in (UNANSWERED, RELAY_DIED, POISON):
            suspects.append((available_at, event))
            continue
        if chosen and size + row_bytes > bytes_:
            break
        chosen.append(event)
        taken.add(event.id)
        size += row_bytes
    return chosen, min(suspects)[1] if suspects else None, blocked


def _park(store: Store, blocked: Sequence[int], now: int, longest_wait: int) -> None:
    """Rows behind an unfinished one take over its time: otherwise they fill every look and starve others."""
    store.run(
        f"""
        UPDATE outbox_events SET available_at = coalesce((
            SELECT max(:soonest, min(:latest, iif(h.state = 'claimed', h.lease_expires_at, h.available_at)))
            FROM outbox_events AS h INDEXED BY ix_outbox_events_held
            WHERE ({_of("h", HELD)}) AND h.index_name = outbox_events.index_name
            AND h.document_id = outbox_events.document_id AND h.id < outbox_events.id
            ORDER BY h.id LIMIT 1), :soonest)
        WHERE id IN (SELECT value FROM json_each(:ids))
        """,
        {"ids": json.dumps(blocked), "soonest": now + 1, "latest": now + longest_wait},
    )


def _take(store: Store, events: Sequence[Event], epoch: int, relay: int, now: int, lease_ms: int) -> Claim:
    token, expires = secrets.token_hex(8), now + lease_ms
    store.run(
        "UPDATE outbox_events SET state = 'claimed', claim_token = ?, claimed_by = ?, lease_expires_at = ?,"
        " deliveries = deliveries + 1 WHERE id IN (SELECT value FROM json_each(?))",
        token,
        relay,
        expires,
        json.dumps([event.id for event in events]),
    )
    return Claim(token, tuple(events), epoch, store.targets(), expires, copies=store.copies())


# -- what is claimed --------------------------------------------------------------------------------------------


def load(store: Store, claim: Claim) -> dict[int, bytes]:
    """The documents of a claim by event id: UTF-8 text as it was stored. Takes no lock."""
    ids = json.dumps([event.id for event in claim.events])
    return {
        row[0]: row[1]
        for row in store.run(
            "SELECT event_id, CAST(document AS BLOB) FROM outbox_documents"
            " WHERE event_id IN (SELECT value FROM json_each(?))",
            ids,
        ).fetchall()
    }


def renew(store: Store, claim: Claim, ids: Sequence[int], expires: int) -> Claim | None:
    """Extend the lease of the rows. None if one of them is no longer this claim's: nothing may be sent then."""
    with store.write(durable=False):
        renewed = store.run(
            "UPDATE outbox_events SET lease_expires_at = ?"
            " WHERE id IN (SELECT value FROM json_each(?)) AND claim_token = ?",
            expires,
            json.dumps(list(ids)),
            claim.token,
        ).rowcount
    return replace(claim, lease_expires_at=expires) if renewed == len(ids) else None


def release(store: Store, claim: Claim, ids: Sequence[int], now: int, *, undelivered: bool) -> int:
    """Give rows back at once, attempts unchanged. `undelivered`: nothing was sent, the delivery does not count."""
    with store.write(durable=False):
        return int(
            store.run(
                "UPDATE outbox_events SET state = 'pending', available_at = ?, claim_token = NULL,"
                " claimed_by = NULL, lease_expires_at = NULL, deliveries = deliveries - ?"
                " WHERE id IN (SELECT value FROM json_each(?)) AND claim_token = ?",
                now,
                int(undelivered),
                json.dumps(list(ids)),
                claim.token,
            ).rowcount
        )


# -- recording --------------------------------------------------------------------------------------------------


def record(store: Store, claim: Claim, transitions: Sequence[Transition], now: int) -> list[Transition]:
    """Write what became of rows of a claim, but only where the claim still holds.

    A row whose `claim_token` changed meanwhile (its lease expired and another relay took it) is left alone and
    counted in `lost_claims`: whoever holds it now decides. Returns the transitions of such rows.
    """
    same: dict[tuple[Any, ...], list[Transition]] = defaultdict(list)
    for transition in transitions:
        same[transition[1:]].append(transition)
    with store.write(durable=False):
        lost = _lost(store, claim.token, [transition.event.id for transition in transitions])
        for group in same.values():
            _move(store, claim.token, group, now)
        _release_followers(store, transitions, now)
        _count(store, transitions, lost, now)
    return [transition for transition in transitions if transition.event.id in lost] if lost else []


def _lost(store: Store, token: str, ids: Sequence[int]) -> set[int]:
    """Those of the rows that are no longer this claim's."""
    found = store.run(
        "SELECT value FROM json_each(?) WHERE (SELECT claim_token FROM outbox_events WHERE id = value) IS NOT ?",
        json.dumps(ids),
        token,
    )
    return {row[0] for row in found}


def _move(store: Store, token: str, group: Sequence[Transition], now: int) -> None:
    to = group[0]
    finished = to.state in (State.DONE, State.DEAD)
    parameters = {
        "state": to.state.value,
        "outcome": to.result.value if to.result else None,
        "attempts": to.attempts,
        "available_at": None if finished else to.available_at,
        "finished_at": now if finished else None,
        "error_type": to.error_type,
        "error": printable(to.error),
        "unsent": int(to.unsent),
        "ids": json.dumps([transition.event.id for transition in group]),
        "token": token,
    }
    store.run(
        """
        UPDATE outbox_events SET state = :state, outcome = :outcome, attempts = :attempts,
               available_at = :available_at, finished_at = :finished_at, claim_token = NULL, claimed_by = NULL,
               lease_expires_at = NULL, error_type = coalesce(:error_type, error_type),
               error = coalesce(:error, error), deliveries = deliveries - :unsent
        WHERE id IN (SELECT value FROM json_each(:ids)) AND claim_token = :token
        """,
        parameters,
    )


def _release_followers(store: Store, transitions: Sequence[Transition], now: int) -> None:
    """Wake the rows that were parked behind documents that are now settled: the next batch of each."""
    if not store.run(
        f"SELECT EXISTS (SELECT 1 FROM outbox_events INDEXED BY ix_outbox_events_waiting WHERE {WAITING}"
        " AND available_at > ?)",
        now,
    ).scalar_one():
        return
    waiting = {_document(transition) for transition in transitions if transition.state is State.PENDING}
    settled = {_document(transition) for transition in transitions} - waiting
    for index_name, document_id in settled:
        store.run(
            f"""
            UPDATE outbox_events SET available_at = :now WHERE id IN (
                SELECT w.id FROM outbox_events AS w INDEXED BY ix_outbox_events_held
                WHERE ({_of("w", HELD)}) AND w.index_name = :index AND w.document_id = :document
                AND w.state = 'pending' ORDER BY w.id LIMIT 1000)
            """,
            {"now": now, "index": index_name, "document": document_id},
        )


def _count(store: Store, transitions: Sequence[Transition], lost: Container[int], now: int) -> None:
    counts: dict[tuple[str, str, str, str], dict[str, int]] = {}
    for transition in transitions:
        event, state = transition.event, transition.state
        key = (event.index_name, event.entity or "", event.tenant_id or "", event.action)
        count = counts.setdefault(key, defaultdict(int))
        if event.id in lost:
            count["lost_claims"] += 1
        elif state is State.DONE:
            latency = max(0, now - event.created_at)
            count["done"] += 1
            count["latency_sum_ms"] += latency
            if transition.result == "superseded":
                count["superseded"] += 1
            if latency <= LATENCY_BOUNDS_MS[-1]:
                count[LATENCIES[bisect_left(LATENCY_BOUNDS_MS, latency)]] += 1
        elif state is State.DEAD:
            count["dead"] += 1
        elif transition.attempts > event.attempts:
            count["retried"] += 1
    minute = now - now % 60_000
    for key, count in counts.items():
        if count:
            columns = list(count)
            added = ", ".join(f"{column} = {column} + excluded.{column}" for column in columns)
            store.run(
                f"INSERT INTO outbox_stats (minute, index_name, entity, tenant_id, action, {', '.join(columns)})"
                f" VALUES ({', '.join('?' * (5 + len(columns)))}) ON CONFLICT DO UPDATE SET {added}",
                minute,
                *key,
                *count.values(),
            )


def _document(transition: Transition) -> tuple[str, str]:
    return transition.event.index_name, transition.event.document_id


def _of(alias: str, condition: str) -> str:
    """A condition of `models` on the columns of `alias`."""
    return re.sub(r"\b(state|available_at|tenant_id)\b", rf"{alias}.\1", condition)

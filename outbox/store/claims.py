"""What a relay does with rows until they are delivered: claim them, load what they say, renew the lease, or release."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final

from outbox.store import late, pauses, versions
from outbox.store.due import ClaimRequest, Found, look
from outbox.store.models import (
    Event,
    unfinished,
)
from outbox.store.store import Store, narrowed

GIVEN_BACK: Final = "version = CASE WHEN deliveries > :unsent THEN version END, deliveries = deliveries - :unsent"
"""Of a row that goes back to pending: a delivery that was `unsent` does not count, and the index has nothing of it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Rows that are this relay's to deliver, until `lease_expires_at`, as long as they carry `token`.

    `version` is higher than that of every claim before.
    """

    token: str
    events: tuple[Event, ...]
    version: int
    targets: Mapping[str, str]
    lease_expires_at: int
    lone: bool = False  # one row, which got no answer time and again
    more: bool = True  # others may be due, for which it has no room or whose turn it was not
    dual_writes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # further physical indexes, of a reindex


# -- claiming ---------------------------------------------------------------------------------------------------


def claim(store: Store, request: ClaimRequest) -> Claim | None:
    """Take up to `rows` due rows (about `bytes_` of documents), in order and without a gap for each document.

    Tenants and indexes share a batch evenly, its rows and its bytes, so that a backlog of one does not starve others.
    None when nothing could be claimed, the outbox is paused, or other things are paused than the request says.
    Raises `SchemaError` as `Store.pin` says, and `MalformedRows`.
    """
    if any(each.is_of_all for each in request.pauses):  # not one look at the write lock, while the table may be held
        return None
    while True:
        with _undisturbed(store):
            found = look(store, request)
            if found.blocked and _is_allowed(store, request):
                for ids in store.in_steps(found.blocked):
                    _park(store, ids, request)
            claimed = _take(store, found, request) if found.events else None
        if claimed:
            store.flush()  # what the destination has must not be lost here: its version would be drawn again
            return replace(claimed, more=found.more or len(claimed.events) < len(found.events))
        if not found.any or not _is_allowed(store, request):
            return None


def _undisturbed(store: Store) -> AbstractContextManager[None]:
    """Around a look for rows and their claim: one transaction where no application has to wait for it. Relays that look
    at the same rows at the same time claim each other's, and deliver less the more they are."""
    return nullcontext() if store.dialect.ids_follow_commits else store.write(durable=False, alone=True)


def _is_allowed(store: Store, request: ClaimRequest) -> bool:
    """Whether what is paused is still what the request says."""
    return pauses.current(store.run) == request.pauses


def any_unfinished(store: Store, index: str | None = None) -> bool:
    """Whether a row, of the index if one is given, is pending or claimed. Looks at one of them."""
    condition, given = narrowed(index_name=index)
    return bool(
        store.run(
            f"SELECT EXISTS (SELECT 1 FROM outbox_events {store.dialect.indexed('held')}"
            f" WHERE ({unfinished()}) AND {condition})",
            given,
        ).scalar_one()
    )


def _park(store: Store, blocked: Sequence[int], request: ClaimRequest) -> None:
    """Rows behind an unfinished one take over its time: otherwise they fill every look and starve others.

    A fresh one, of another lane, has no time: they wait as long as any row may, or until its end wakes them. Those
    behind one that was finished after the look are due at once: nothing would wake them later.
    """
    dialect = store.dialect
    until = "coalesce(CASE WHEN h.state = 'claimed' THEN h.lease_expires_at ELSE h.available_at END, :latest)"
    with store.write(durable=False, alone=True):
        store.run(
            f"""
            UPDATE outbox_events SET available_at = coalesce((
                SELECT {dialect.greatest(":soonest", dialect.least(":latest", until))}
                FROM outbox_events AS h {dialect.indexed("held")}
                WHERE ({unfinished("h")}) AND h.index_name = outbox_events.index_name
                AND h.document_id = outbox_events.document_id AND {late.waits_for(store, "h", "outbox_events")}
                ORDER BY h.id LIMIT 1), :now)
            WHERE id {dialect.among("ids")} AND state = 'pending'
            AND (available_at IS NULL OR available_at <= :now OR available_at > :latest)  -- else another has done it
            """,
            ids=blocked,
            now=request.now,
            soonest=request.now + 1,
            latest=request.now + request.longest_wait,
        )


def _take(store: Store, found: Found, request: ClaimRequest) -> Claim | None:
    """Claim what was found, in steps, up to the first that does not hold any more. None if that is the first one."""
    token, expires = secrets.token_hex(8), request.now + request.lease_ms
    claim: Claim | None = None
    first = late.first_ids(found.events)
    # Of a document only the first row can have made it by its upsert; and the next one must not be taken for applied
    # when that one is delivered alone.
    kept, given = "coalesce(version, :version)", dict[str, list[int]]()
    if len(first) < len(found.events):
        given["first"] = list(first.values())
        kept = f"CASE WHEN id {store.dialect.among('first')} THEN {kept} ELSE version END"
    for events in store.in_steps(found.events):
        ids = [event.id for event in events]
        with store.write(durable=False, alone=True):
            if not _is_allowed(store, request):
                break
            if found.state is None or store.dialect.state(store.run) != found.state:
                store.require_pinned()  # no migration can come between this and the claim
                if not _holds(store, events, ids, token):
                    break
            # No other claim by now: drawn before, it could be lower than that of a claim which had rows meanwhile.
            version = versions.draw(store)
            store.run(
                "UPDATE outbox_events SET state = 'claimed', claim_token = :token, claimed_by = :relay,"
                f" lease_expires_at = :expires, deliveries = deliveries + 1, version = {kept}"
                f" WHERE id {store.dialect.among('ids')}",
                token=token,
                relay=request.relay,
                expires=expires,
                version=version,
                ids=ids,
                **given,
            )
            # Where rows go can change between two steps: the last one decides, as if all had been claimed by it.
            taken = (*claim.events, *events) if claim else tuple(events)
            targets, others = store.routes()
            claim = Claim(token, taken, version, targets, expires, found.lone, dual_writes=others)
    return claim


def _holds(store: Store, events: Sequence[Event], ids: Sequence[int], token: str) -> bool:
    """Whether rows are pending as they were when they were looked at, and none has come before them since.

    One that was claimed and given back meanwhile has been delivered once more, or is as it was.
    """
    dialect = store.dialect
    pending = f"SELECT deliveries FROM outbox_events WHERE id {dialect.among('ids')} AND state = 'pending'"
    # The nearest is enough: if it is among the rows, its own is asked for as well.
    nearest = (
        f"SELECT max(e.id) FROM outbox_events AS e {dialect.indexed('held')} WHERE ({unfinished('e')})"
        " AND e.index_name = c.index_name AND e.document_id = c.document_id AND e.id < c.id"
    )
    return bool(
        store.run(
            f"""
            SELECT (SELECT count(*) = :rows AND sum(deliveries) = :deliveries FROM ({pending}) AS pending)
            AND NOT EXISTS (
                SELECT 1 FROM outbox_events AS c JOIN outbox_events AS h ON h.id = ({nearest})
                WHERE c.id {dialect.among("ids")}
                AND h.id {dialect.outside("ids")} AND coalesce(h.claim_token, '') <> :token)
            """,
            ids=ids,
            rows=len(ids),
            deliveries=sum(event.deliveries - 1 for event in events),
            token=token,
        ).scalar_one()
    )


# -- what is claimed --------------------------------------------------------------------------------------------


def versions_for(store: Store, claim: Claim, rows: Sequence[Event]) -> list[int] | None:
    """A new version for each row of a claim, in their order: to be sent one by one, after they were sent together.

    None if one of them is no longer this claim's: the version could be higher than that of a claim which has it since.
    """
    held = f"SELECT count(*) FROM outbox_events WHERE id {store.dialect.among('ids')} AND claim_token = :token"
    with store.write(durable=True, alone=True):
        if store.run(held, ids=[row.id for row in rows], token=claim.token).scalar_one() < len(rows):
            return None
        last = versions.draw(store, len(rows))
    return list(range(last - len(rows) + 1, last + 1))


def note_version(store: Store, claim: Claim, row: Event, version: int) -> bool:
    """Have on disk that the index may have a row from this version on, before it is sent by itself: as `claim` does of
    the first row of a document. False if it is no longer this claim's: nothing may be sent then."""
    with store.write(durable=True):
        noted = store.run(
            "UPDATE outbox_events SET version = coalesce(version, :version) WHERE id = :id AND claim_token = :token",
            version=version,
            id=row.id,
            token=claim.token,
        ).rowcount
    return noted == 1


def load(store: Store, claim: Claim) -> dict[int, bytes]:
    """The documents of a claim by event id: UTF-8 text as it was stored. Takes no lock."""
    dialect = store.dialect
    found = store.run(
        f"SELECT event_id, {dialect.as_bytes('document')} FROM outbox_documents WHERE event_id {dialect.among('ids')}",
        ids=[event.id for event in claim.events],
    )
    return {row[0]: row[1] for row in found}


def renew(store: Store, claim: Claim, ids: Sequence[int], expires: int) -> Claim | None:
    """Extend the lease of the rows. None if one of them is no longer this claim's: nothing may be sent then."""
    with store.write(durable=False):
        renewed = store.run(
            "UPDATE outbox_events SET lease_expires_at = :expires"
            f" WHERE id {store.dialect.among('ids')} AND claim_token = :token",
            expires=expires,
            ids=list(ids),
            token=claim.token,
        ).rowcount
    return replace(claim, lease_expires_at=expires) if renewed == len(ids) else None


def release(store: Store, claim: Claim, ids: Sequence[int], now: int, *, undelivered: bool) -> int:
    """Give rows back at once, attempts unchanged. `undelivered`: nothing was sent, the delivery does not count.

    Returns how many were still this claim's.
    """
    with store.write(durable=False):
        return store.run(
            "UPDATE outbox_events SET state = 'pending', available_at = :now, claim_token = NULL,"
            f" claimed_by = NULL, lease_expires_at = NULL, {GIVEN_BACK}"
            f" WHERE id {store.dialect.among('ids')} AND claim_token = :token",
            now=now,
            unsent=int(undelivered),
            ids=list(ids),
            token=claim.token,
        ).rowcount

"""What a relay does with rows until they are delivered: claim them, load what they say, renew the lease, or release."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from outbox.store import pauses
from outbox.store.malformed import NUMBER, NUMBER_OR_NULL, TEXT, TEXT_OR_NULL, well_formed
from outbox.store.models import (
    POISON,
    RELAY_DIED,
    UNANSWERED,
    Action,
    Event,
    fresh,
    tenant,
    unfinished,
    waiting,
)
from outbox.store.pauses import Pause
from outbox.store.shares import Shares
from outbox.store.store import Store, narrowed

_CLAIMED = ", ".join("c.deliveries + 1" if name == "deliveries" else f"c.{name}" for name in Event._fields)
_ACTION, _INDEX, _TENANT = map(Event._fields.index, ("action", "index_name", "tenant_id"))
_WIDTH = len(Event._fields)
_ERROR, _, _BYTES, _BEHIND = range(_WIDTH, _WIDTH + 4)  # after the fields of an Event, see `_due`
REFRESH: Final = Action.REFRESH  # to look it up in its class costs ten times as much, at each row
_TYPES = (NUMBER, *3 * (TEXT,), *2 * (TEXT_OR_NULL,), *3 * (NUMBER,), NUMBER_OR_NULL)  # of the fields of an Event

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


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a relay can work on. Instants and spans in milliseconds.

    `longest_wait`: a row that is to wait longer was written before the clock was set back, and is due. `leave_out` and
    `only` name indexes; `tenants_out` tenants, `lanes_out` those of an index as (index, tenant), and `tenant_rows` is
    the most fresh rows of one tenant. `pauses`: all that is paused, which these leave out. `expected`: bytes of a
    document that the relay has to make, `most`: bytes of all documents, both by index. A row that was delivered
    `lone_after` times and got no answer is claimed alone, and before the others, the one that waits longest first;
    with `lone_last` after the others, and without `lone` it is passed over.
    """

    relay: int
    now: int
    lease_ms: int
    longest_wait: int
    rows: int
    bytes_: int
    leave_out: Collection[str] = ()
    only: str | None = None
    tenants_out: Collection[str] = ()
    lanes_out: Collection[tuple[str, str]] = ()
    pauses: tuple[Pause, ...] = ()
    tenant_rows: int | None = None
    expected: Mapping[str, int] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)
    lone_after: int = 10
    lone: bool = True
    lone_last: bool = False

    @property
    def leaves_out_none(self) -> bool:
        """Whether it leaves out none of the rows that are due, but for their number."""
        some = self.leave_out or self.only or self.tenants_out or self.lanes_out or self.tenant_rows
        return not some


# -- claiming ---------------------------------------------------------------------------------------------------


def claim(store: Store, request: ClaimRequest) -> Claim | None:
    """Take up to `rows` due rows (about `bytes_` of documents), in order and without a gap for each document.

    Tenants and indexes share a batch evenly, its rows and its bytes, so that a backlog of one does not starve others.
    None when nothing could be claimed, the outbox is paused, or other things are paused than the request says.
    Raises `SchemaError` as `Store.pin` says, and `MalformedRows`.
    """
    store.require_pinned()
    if any(each.is_of_all for each in request.pauses):  # not one look at the write lock, while the table may be held
        return None
    while (found := _look(store, request)).any:
        if found.blocked and _is_allowed(store, request):
            for ids in store.in_steps(found.blocked):
                _park(store, ids, request)
        if found.events and (claimed := _take(store, found, request)):
            return replace(claimed, more=found.more or len(claimed.events) < len(found.events))
        if not _is_allowed(store, request):
            break
    return None


def _is_allowed(store: Store, request: ClaimRequest) -> bool:
    """Whether what is paused is still what the request says."""
    return pauses.current(store.run) == request.pauses


class _Found(NamedTuple):
    """Of the rows that are due, in the order of their ids: those to claim, and the ids of those that wait.

    `lone`: the one to claim got no answer time and again. `more`: others may be due.
    """

    events: Sequence[Event]
    blocked: Sequence[int]
    lone: bool = False
    more: bool = True
    state: int | None = None  # of the database before the look, see `Dialect.state`

    @property
    def any(self) -> bool:
        return bool(self.events or self.blocked)


def _look(store: Store, request: ClaimRequest) -> _Found:
    """What could be claimed. Takes no lock: to ask under it whether that still holds takes far less time."""
    state = store.dialect.state(store.run)
    lanes = fresh_lanes(store, request.leave_out, request.only, request.tenants_out, request.lanes_out)
    candidates = _due(store, request, lanes)
    found = _choose(candidates, request)
    # Fewer than half of an even share, of which `_fresh` has at least half: no lane was cut, and no retry left out.
    few = 2 * max(1, len(lanes)) * len(candidates) < request.rows
    took_all = few and request.leaves_out_none and len(found.events) + len(found.blocked) == len(candidates)
    return found._replace(more=not took_all, state=state)


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


def fresh_lanes(
    store: Store,
    leave_out: Collection[str] = (),
    only: str | None = None,
    tenants_out: Collection[str] = (),
    lanes_out: Collection[tuple[str, str]] = (),
) -> list[tuple[str, str]]:
    """Which lanes have fresh rows: (index, tenant), the one that waits longest first. Takes no lock: two index seeks
    a lane. `leave_out`, `only`, `tenants_out`, `lanes_out`: as in `ClaimRequest`.

    Raises `MalformedRows`.
    """
    after = f"SELECT n.id FROM outbox_events AS n {store.dialect.indexed('fresh')} WHERE {fresh('n')}"
    order = f"ORDER BY n.index_name, {tenant('n')}, n.id LIMIT 1"
    lanes = well_formed(
        store,
        (TEXT, TEXT),
        f"""
        WITH RECURSIVE head (id) AS (  -- the oldest row of each lane, lane by lane in the order of the index
            SELECT ({after} {order})
            UNION ALL
            SELECT coalesce(
                ({after} AND n.index_name = h.index_name AND {tenant("n")} > {tenant("h")} {order}),
                ({after} AND n.index_name > h.index_name {order}))
            FROM head JOIN outbox_events AS h ON h.id = head.id
        )
        SELECT h.index_name, {tenant("h")} FROM head JOIN outbox_events AS h ON h.id = head.id
        WHERE h.index_name {store.dialect.outside("leave_out")} {"" if only is None else "AND h.index_name = :only"}
        ORDER BY h.id
        """,
        leave_out=list(leave_out),
        only=only,
    )
    without = set(tenants_out)
    return [lane for lane in lanes if lane[1] not in without and lane not in lanes_out]


def _fresh(store: Store, request: ClaimRequest, lanes: Sequence[tuple[str, str]], rows: int) -> list[int]:
    """Up to `rows` fresh rows: an even share for each lane; what some leave of theirs goes to the others."""
    most = rows if request.tenant_rows is None else request.tenant_rows
    share = min(most, max(1, rows // max(1, len(lanes))))
    found = _heads(store, lanes[:rows], share)
    hungry = [lane for lane, ids in found.items() if len(ids) == share]
    left = rows - sum(map(len, found.values()))
    if left >= len(hungry) > 0:
        found |= _heads(store, hungry, min(most, share + left // len(hungry)))
    return [id_ for ids in found.values() for id_ in ids]


def _heads(store: Store, lanes: Sequence[tuple[str, str]], share: int) -> dict[tuple[str, str], list[int]]:
    """The ids of the first `share` rows of each lane."""
    found: list[list[int]] = [[] for _ in lanes]
    for at, id_ in store.run(
        f"""
        SELECT lane.at, f.id
        FROM {store.dialect.table("lanes", at="BIGINT", index_name="TEXT", tenant="TEXT")} AS lane
        JOIN outbox_events AS f ON f.id IN (
            SELECT n.id FROM outbox_events AS n {store.dialect.indexed("fresh")} WHERE {fresh("n")}
            AND n.index_name = lane.index_name AND {tenant("n")} = lane.tenant
            ORDER BY n.id LIMIT :share)
        """,
        lanes=[(at, *lane) for at, lane in enumerate(lanes)],
        share=share,
    ):
        found[at].append(id_)
    return {lane: ids for lane, ids in zip(lanes, found, strict=True) if ids}


def _due(store: Store, request: ClaimRequest, lanes: Sequence[tuple[str, str]]) -> Sequence[Any]:
    """Candidates in the order of their ids: each as it is once claimed, with what `_choose` has to know of it.

    `behind` is the nearest earlier unfinished row of its document.
    """
    dialect, rows = store.dialect, request.rows
    retries = [
        row[0]
        for row in store.run(
            f"""
            SELECT id FROM outbox_events {dialect.indexed("waiting")}
            WHERE {waiting()} AND (available_at <= :now OR available_at > :too_far)
            AND index_name {dialect.outside("leave_out")} {"" if request.only is None else "AND index_name = :only"}
            AND {tenant()} {dialect.outside("tenants_out")}
            AND (index_name, {tenant()}) NOT IN (
                SELECT index_name, tenant FROM {dialect.table("lanes_out", index_name="TEXT", tenant="TEXT")} AS l)
            ORDER BY available_at, id LIMIT :rows
            """,
            now=request.now,
            too_far=request.now + request.longest_wait,
            leave_out=list(request.leave_out),
            only=request.only,
            tenants_out=list(request.tenants_out),
            lanes_out=list(request.lanes_out),
            rows=rows,
        )
    ]
    if not (retries or lanes):
        return ()
    first = _fresh(store, request, lanes, max(rows - len(retries), rows // 2)) if lanes else []
    return well_formed(
        store,
        _TYPES,
        f"""
        SELECT {_CLAIMED}, c.error_type, coalesce(CAST(c.available_at AS BIGINT), 0),
               coalesce(CAST(c.document_bytes AS BIGINT),
                        (SELECT length({dialect.as_bytes("d.document")}) FROM outbox_documents d
                         WHERE d.event_id = c.id),
                        0) AS bytes,
               (SELECT max(h.id) FROM outbox_events AS h {dialect.indexed("held")}
                WHERE ({unfinished("h")})
                AND h.index_name = c.index_name AND h.document_id = c.document_id AND h.id < c.id) AS behind
        FROM outbox_events AS c WHERE c.id {dialect.among("ids")} ORDER BY c.id {dialect.locked(skip=True)}
        """,
        ids=first + retries[: rows - len(first)],
    )


def _choose(candidates: Sequence[Any], request: ClaimRequest) -> _Found:
    """What to do with candidates, in the order of their ids."""
    sizes = [request.expected.get(row[_INDEX], 0) if row[_ACTION] == REFRESH else row[_BYTES] for row in candidates]
    shares = Shares([(row[_INDEX], row[_TENANT]) for row in candidates], sizes, request.bytes_, request.most)
    if not shares.limited and all(row[_BEHIND] is None and row[_ERROR] is None for row in candidates):
        return _Found([tuple.__new__(Event, row[:_WIDTH]) for row in candidates], ())  # as nearly always
    chosen: list[Event] = []
    suspects: list[tuple[int, Event]] = []
    taken: set[int] = set()
    blocked: list[int] = []
    blocked_documents: set[tuple[str, str]] = set()
    passed_over: set[tuple[str, str]] = set()  # documents for which there is no room
    for at, row in enumerate(candidates):
        event = Event._make(row[:_WIDTH])
        error_type, available_at, _, behind = row[_WIDTH:]
        document = (event.index_name, event.document_id)
        if document in passed_over:
            continue
        if document in blocked_documents or (behind is not None and behind not in taken):
            blocked_documents.add(document)
            blocked.append(event.id)
            continue
        if event.deliveries > request.lone_after and error_type in (UNANSWERED, RELAY_DIED, POISON):
            suspects.append((available_at, event))
            continue
        if not shares.take(at, first=not chosen):
            passed_over.add(document)
            continue
        chosen.append(event)
        taken.add(event.id)
    if suspects and request.lone and not (chosen and request.lone_last):
        return _Found([min(suspects)[1]], blocked, lone=True)
    return _Found(chosen, blocked)


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
                AND h.document_id = outbox_events.document_id AND h.id < outbox_events.id
                ORDER BY h.id LIMIT 1), :now)
            WHERE id {dialect.among("ids")} AND state = 'pending'
            """,
            ids=blocked,
            now=request.now,
            soonest=request.now + 1,
            latest=request.now + request.longest_wait,
        )


def _take(store: Store, found: _Found, request: ClaimRequest) -> Claim | None:
    """Claim what was found, in steps, up to the first that does not hold any more. None if that is the first one."""
    token, expires = secrets.token_hex(8), request.now + request.lease_ms
    claim: Claim | None = None
    for events in store.in_steps(found.events):
        ids = [event.id for event in events]
        with store.write(durable=False, alone=True):
            store.require_pinned()  # no migration can come between this and the claim
            if not _is_allowed(store, request):
                break
            same = found.state is not None and store.dialect.state(store.run) == found.state
            if not same and not _holds(store, events, ids, token):
                break
            # The rows are locked by now: drawn before, it could be lower than that of a claim which had them meanwhile.
            version = store.draw_version()
            store.run(
                "UPDATE outbox_events SET state = 'claimed', claim_token = :token, claimed_by = :relay,"
                " lease_expires_at = :expires, deliveries = deliveries + 1, version = coalesce(version, :version)"
                f" WHERE id {store.dialect.among('ids')}",
                token=token,
                relay=request.relay,
                expires=expires,
                version=version,
                ids=ids,
            )
            # Where rows go can change between two steps: the last one decides, as if all had been claimed by it.
            taken = (*claim.events, *events) if claim else tuple(events)
            targets, others = store.routes()
            claim = Claim(token, taken, version, targets, expires, found.lone, dual_writes=others)
    if claim:
        store.flush()  # what the destination has must not be lost here: its version would be drawn again
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
            SELECT (SELECT count(*) = :rows AND sum(deliveries) = :deliveries
                    FROM ({pending} {dialect.locked()}) AS pending)
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


def versions_for(store: Store, rows: Sequence[Event]) -> list[int]:
    """A new version for each row of a claim, in their order: to be sent one by one, after they were sent together."""
    with store.write(durable=True):
        last = store.draw_version(len(rows))
    return list(range(last - len(rows) + 1, last + 1))


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

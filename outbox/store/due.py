"""Which rows could be claimed now: in order, without a gap for each document, an even share for each lane."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from outbox.store import late
from outbox.store.floor import Floor
from outbox.store.malformed import NUMBER, NUMBER_OR_NULL, TEXT, TEXT_OR_NULL, well_formed
from outbox.store.models import POISON, RELAY_DIED, UNANSWERED, Action, Event, fresh, tenant, waiting
from outbox.store.pauses import Pause
from outbox.store.shares import Shares
from outbox.store.store import Store

_CLAIMED = ", ".join("c.deliveries + 1" if name == "deliveries" else f"c.{name}" for name in Event._fields)
_ACTION, _INDEX, _TENANT = map(Event._fields.index, ("action", "index_name", "tenant_id"))
_WIDTH = len(Event._fields)
_ERROR, _, _BYTES, _AWAITED = range(_WIDTH, _WIDTH + 4)  # after the fields of an Event, see `_due`
REFRESH: Final = Action.REFRESH  # to look it up in its class costs ten times as much, at each row
_TYPES = (NUMBER, *3 * (TEXT,), *2 * (TEXT_OR_NULL,), *3 * (NUMBER,), NUMBER_OR_NULL)  # of the fields of an Event


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a relay can work on. Instants and spans in milliseconds.

    `longest_wait`: a row that is to wait longer was written before the clock was set back, and is due. `leave_out` and
    `only` name indexes; `tenants_out` tenants, `lanes_out` those of an index as (index, tenant), and `tenant_rows` is
    the most fresh rows of one tenant. `pauses`: all that is paused, which these leave out. `expected`: bytes of a
    document that the relay has to make, `most`: bytes of all documents, both by index. A row that was delivered
    `lone_after` times and got no answer is claimed alone, and before the others, the one that waits longest first;
    with `lone_last` after the others, and without `lone` it is passed over. `floor`: of a relay that looks again and
    again.
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
    floor: Floor | None = None

    @property
    def leaves_out_none(self) -> bool:
        """Whether it leaves out none of the rows that are due, but for their number."""
        some = self.leave_out or self.only or self.tenants_out or self.lanes_out or self.tenant_rows
        return not some


class Found(NamedTuple):
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


def look(store: Store, request: ClaimRequest) -> Found:
    """What could be claimed. Takes no lock: to ask under it whether that still holds takes far less time.

    Raises `SchemaError` as `Store.pin` says, and `MalformedRows`.
    """
    state = store.dialect.state(store.run)
    store.require_pinned()
    since = request.floor.begin() if request.floor else 0
    lanes = fresh_lanes(store, request.leave_out, request.only, request.tenants_out, request.lanes_out, since)
    candidates = _due(store, request, lanes, since)
    found = choose(candidates, request)
    # Fewer than half of an even share, of which `_fresh` has at least half: no lane was cut, and no retry left out.
    few = 2 * max(1, len(lanes)) * len(candidates) < request.rows
    looked_at_all = request.leaves_out_none and (request.floor is None or request.floor.is_full)
    took_all = few and looked_at_all and len(found.events) + len(found.blocked) == len(candidates)
    return found._replace(more=not took_all, state=state)


def fresh_lanes(
    store: Store,
    leave_out: Collection[str] = (),
    only: str | None = None,
    tenants_out: Collection[str] = (),
    lanes_out: Collection[tuple[str, str]] = (),
    since: int = 0,
) -> list[tuple[str, str]]:
    """Which lanes have fresh rows: (index, tenant), the one that waits longest first. Takes no lock: two index seeks
    a lane. `leave_out`, `only`, `tenants_out`, `lanes_out`: as in `ClaimRequest`; `since`: from that id on.

    Raises `MalformedRows`.
    """
    after = f"SELECT n.id FROM outbox_events AS n {store.dialect.indexed('fresh')} WHERE {_fresh_since('n')}"
    order = f"ORDER BY n.index_name, {tenant('n')}, n.id LIMIT 1"
    head = store.dialect.looked_up("h", "head.id")
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
            FROM head {head}
        )
        SELECT h.index_name, {tenant("h")} FROM head {head}
        WHERE h.index_name {store.dialect.outside("leave_out")} {"" if only is None else "AND h.index_name = :only"}
        ORDER BY h.id
        """,
        leave_out=list(leave_out),
        only=only,
        since=since,
    )
    without = set(tenants_out)
    return [lane for lane in lanes if lane[1] not in without and lane not in lanes_out]


def _fresh_since(of: str) -> str:
    return f"{fresh(of)} AND {of}.id >= :since"


def _fresh(store: Store, request: ClaimRequest, lanes: Sequence[tuple[str, str]], rows: int, since: int) -> list[int]:
    """Up to `rows` fresh rows: an even share for each lane; what some leave of theirs goes to the others."""
    most = rows if request.tenant_rows is None else request.tenant_rows
    share = min(most, max(1, rows // max(1, len(lanes))))
    found = _heads(store, lanes[:rows], share, since)
    hungry = [lane for lane, ids in found.items() if len(ids) == share]
    left = rows - sum(map(len, found.values()))
    if left >= len(hungry) > 0:
        found |= _heads(store, hungry, min(most, share + left // len(hungry)), since)
    return [id_ for ids in found.values() for id_ in ids]


def _heads(store: Store, lanes: Sequence[tuple[str, str]], share: int, since: int) -> dict[tuple[str, str], list[int]]:
    """The ids of the first `share` rows of each lane, from `since` on."""
    found: dict[tuple[str, str], list[int]] = {}
    first = (
        f"SELECT n.id FROM outbox_events AS n {store.dialect.indexed('fresh')} WHERE {_fresh_since('n')}"
        f" AND n.index_name = lane.index_name AND {tenant('n')} = lane.tenant ORDER BY n.id LIMIT :share"
    )
    for place, id_ in store.run(
        f"""
        SELECT lane.place, f.id
        FROM {store.dialect.table("lanes", index_name="TEXT", tenant="TEXT")} AS lane
        {store.dialect.of_each("f", first)}
        """,
        lanes=lanes,
        share=share,
        since=since,
    ):
        found.setdefault(lanes[place - 1], []).append(id_)
    return found


def _due(store: Store, request: ClaimRequest, lanes: Sequence[tuple[str, str]], since: int) -> Sequence[Any]:
    """Candidates in the order of their ids: each as it is once claimed, with what `choose` has to know of it.

    `awaited`: see `late.awaited`.
    """
    dialect, rows = store.dialect, request.rows
    retries = _retries(store, request)
    if not (retries or lanes):
        return ()
    first = _fresh(store, request, lanes, max(rows - len(retries), rows // 2), since) if lanes else []
    if request.floor:
        request.floor.end(first)
    return well_formed(
        store,
        _TYPES,
        f"""
        SELECT {_CLAIMED}, c.error_type, coalesce(CAST(c.available_at AS BIGINT), 0),
               coalesce(CAST(c.document_bytes AS BIGINT),
                        (SELECT length({dialect.as_bytes("d.document")}) FROM outbox_documents d
                         WHERE d.event_id = c.id),
                        0) AS bytes,
               {late.awaited(store, "c")} AS awaited
        FROM outbox_events AS c WHERE c.id {dialect.among("ids")} ORDER BY c.id
        """,
        ids=first + retries[: rows - len(first)],
    )


def _retries(store: Store, request: ClaimRequest) -> list[int]:
    """The ids of up to `rows` rows whose time has come, and of those that would wait too long, in the order of time."""
    dialect = store.dialect
    lanes = dialect.table("lanes_out", index_name="TEXT", tenant="TEXT")
    due, too_late = (
        # Each by itself: neither reads the rows in between, or sorts what it reads.
        f"""
        SELECT * FROM (
            SELECT id, available_at FROM outbox_events {dialect.indexed("waiting")} WHERE {waiting()} AND {condition}
            AND index_name {dialect.outside("leave_out")} {"" if request.only is None else "AND index_name = :only"}
            AND {tenant()} {dialect.outside("tenants_out")}
            AND (index_name, {tenant()}) NOT IN (SELECT index_name, tenant FROM {lanes} AS l)
            ORDER BY available_at, id LIMIT :rows) AS {name}
        """
        for name, condition in (("due", "available_at <= :now"), ("too_late", "available_at > :too_far"))
    )
    found = store.run(
        f"SELECT id FROM ({due} UNION ALL {too_late}) AS either ORDER BY available_at, id LIMIT :rows",
        now=request.now,
        too_far=request.now + request.longest_wait,
        leave_out=list(request.leave_out),
        only=request.only,
        tenants_out=list(request.tenants_out),
        lanes_out=list(request.lanes_out),
        rows=request.rows,
    )
    return [row[0] for row in found]


def choose(candidates: Sequence[Any], request: ClaimRequest) -> Found:
    """What to do with candidates, in the order of their ids."""
    sizes = [request.expected.get(row[_INDEX], 0) if row[_ACTION] == REFRESH else row[_BYTES] for row in candidates]
    shares = Shares([(row[_INDEX], row[_TENANT]) for row in candidates], sizes, request.bytes_, request.most)
    in_order = all(row[_AWAITED] is None and row[_ERROR] is None for row in candidates)
    if in_order and not shares.limited:
        return Found([tuple.__new__(Event, row[:_WIDTH]) for row in candidates], ())  # as nearly always
    chosen: list[Event] = []
    suspects: list[tuple[int, Event]] = []
    taken: set[int] = set()
    blocked: list[int] = []
    blocked_documents: set[tuple[str, str]] = set()
    passed_over: set[tuple[str, str]] = set()  # documents for which there is no room
    for at, row in enumerate(candidates):
        event = Event._make(row[:_WIDTH])
        error_type, available_at, _, awaited = row[_WIDTH:]
        document = (event.index_name, event.document_id)
        if document in passed_over:
            continue
        if document in blocked_documents or (awaited is not None and awaited not in taken):
            blocked_documents.add(document)
            blocked.append(event.id)
            continue
        if event.deliveries > request.lone_after and error_type in (UNANSWERED, RELAY_DIED, POISON):
            if awaited is None:
                suspects.append((available_at, event))
            else:  # it would be claimed alone, before the row of its document that is about to be taken
                passed_over.add(document)
            continue
        if not shares.take(at, first=not chosen):
            passed_over.add(document)
            continue
        chosen.append(event)
        taken.add(event.id)
    if suspects and request.lone and not (chosen and request.lone_last):
        return Found([min(suspects)[1]], blocked, lone=True)
    return Found(chosen, blocked)

"""What a relay records: what became of each row of a claim, and how many ended in which way."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from typing import Any, Final

from outbox.store import failures
from outbox.store.claims import GIVEN_BACK, Claim
from outbox.store.models import (
    LATENCIES,
    LATENCY_BOUNDS_MS,
    UNEXPLAINED,
    Result,
    State,
    Transition,
    unfinished,
    waiting,
)
from outbox.store.store import Store, printable
from outbox.store.upkeep import COUNTED_BY, add_to_stats

# To look a member up in its class costs ten times as much, at each row.
_DONE: Final = State.DONE
_DEAD: Final = State.DEAD
_UNCHANGED: Final = Result.UNCHANGED
_SUPERSEDED: Final = Result.SUPERSEDED


def record(store: Store, claim: Claim, transitions: Sequence[Transition], now: int) -> list[Transition]:
    """Write what became of rows of a claim, but only where the claim still holds; in one transaction.

    A row whose `claim_token` changed meanwhile (its lease expired and another relay took it) is left alone and
    counted in `lost_claims`: the relay that holds it now decides. Returns the transitions of such rows.
    """
    same: dict[tuple[Any, ...], list[Transition]] = defaultdict(list)
    for transition in transitions:
        same[transition[1:]].append(transition)
    counts, kept = _counts(transitions, (), now), set[int]()
    with store.write(durable=False):
        store.dialect.recording(store.run)
        for to, group in same.items():  # nearly all; no claim has to wait for these
            if to[0] is _DONE:
                kept.update(_move(store, claim.token, group, now))
        store.take_turn()  # a claim beside it would park rows behind those that end here
        for to, group in same.items():
            if to[0] is not _DONE:
                if failed := [transition.event.id for transition in group if transition.is_failure]:
                    _note_failure(store, claim.token, group[0], failed, now)
                kept.update(_move(store, claim.token, group, now))
        _release_followers(store, transitions, now)
        lost = [transition for transition in transitions if transition.event.id not in kept]
        if lost:
            counts = _counts(transitions, {transition.event.id for transition in lost}, now)
        _add(store, counts, now)
    return lost


def _note_failure(store: Store, token: str, to: Transition, ids: Sequence[int], now: int) -> None:
    failures.record(
        store,
        f"e.id {store.dialect.among('ids')} AND e.claim_token = :token",
        {"ids": ids, "token": token},
        became=to.state,
        error_type=to.error_type,
        error=to.error,
        error_field=to.error_field,
        now=now,
    )


def _move(store: Store, token: str, group: Sequence[Transition], now: int) -> Iterator[int]:
    """Returns the ids of those rows that were still this claim's."""
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
        "error_field": to.error_field,
        "unsent": int(to.unsent),
        "version": to.version,
        "ids": [transition.event.id for transition in group],
        "token": token,
    }
    said = ", error_type = :error_type, error = coalesce(:error, error), error_field = :error_field"
    sent = "version = coalesce(:version, version), deliveries = deliveries - :unsent" if finished else GIVEN_BACK
    if not finished and to.error_type == UNEXPLAINED:
        # The document there is of others, above all that was sent for the row: it would be taken for the row's own.
        sent = "version = NULL, deliveries = deliveries - :unsent"
    moved = store.run(
        f"""
        UPDATE outbox_events SET state = :state, outcome = :outcome, attempts = :attempts,
               available_at = :available_at, finished_at = :finished_at, claim_token = NULL, claimed_by = NULL,
               lease_expires_at = NULL, {sent}{said if to.error_type else ""}
        WHERE id {store.dialect.among("ids")} AND claim_token = :token RETURNING id
        """,
        parameters,
    )
    return (row[0] for row in moved)


def _release_followers(store: Store, transitions: Sequence[Transition], now: int) -> None:
    """Wake the rows that were parked behind documents that are now settled: the next batch of each."""
    if not store.run(
        f"SELECT EXISTS (SELECT 1 FROM outbox_events {store.dialect.indexed('waiting')} WHERE {waiting()}"
        " AND available_at > :now)",
        now=now,
    ).scalar_one():
        return
    unsettled = {_document(transition) for transition in transitions if transition.state is State.PENDING}
    settled = {_document(transition) for transition in transitions} - unsettled
    next_ones = (
        f"SELECT n.id FROM outbox_events AS n {store.dialect.indexed('held')} WHERE ({unfinished('n')})"
        " AND n.index_name = d.index_name AND n.document_id = d.document_id ORDER BY n.id LIMIT 1000"
    )
    store.run(
        f"""
        UPDATE outbox_events SET available_at = :now WHERE {waiting()} AND id IN (
            SELECT f.id FROM {store.dialect.table("settled", index_name="TEXT", document_id="TEXT")} AS d
            {store.dialect.of_each("f", next_ones)})
        """,
        now=now,
        settled=list(settled),
    )


_Counts = dict[tuple[str, str, str, str], dict[str, int]]  # by index, entity, tenant and action


def _counts(transitions: Sequence[Transition], lost: Container[int], now: int) -> _Counts:
    counts: _Counts = defaultdict(lambda: defaultdict(int))
    latencies: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for transition in transitions:
        event, state, result = transition.event, transition.state, transition.result
        action = _UNCHANGED.value if result is _UNCHANGED else event.action
        key = (event.index_name, event.entity or "", event.tenant_id or "", action)
        if event.id in lost:
            counts[key]["lost_claims"] += 1
        elif state is _DONE:
            latencies[key].append(max(0, now - event.created_at))
            if result is _SUPERSEDED:
                counts[key]["superseded"] += 1
        elif state is _DEAD:
            counts[key]["dead"] += 1
        elif transition.attempts > event.attempts:
            counts[key]["retried"] += 1
    for key, each in latencies.items():
        counts[key] |= {"done": len(each), "latency_sum_ms": sum(each), **_histogram(each)}
    return counts


def _histogram(latencies: list[int]) -> dict[str, int]:
    """How many are in each step up to a bound, of the steps that have some."""
    latencies.sort()
    ends = [bisect_right(latencies, bound) for bound in LATENCY_BOUNDS_MS]
    steps = zip(LATENCIES, ends, (0, *ends), strict=False)
    return {name: end - start for name, end, start in steps if end > start}


def _add(store: Store, counts: _Counts, now: int) -> None:
    minute = now - now % 60_000
    for (index_name, entity, tenant_id, action), count in counts.items():
        if count:
            counters = ", ".join(count)
            values = ", ".join(f":{name}" for name in count)
            store.run(
                f"INSERT INTO outbox_stats (minute, {COUNTED_BY}, {counters})"
                f" VALUES (:minute, :index_name, :entity, :tenant_id, :action, {values}) {add_to_stats(tuple(count))}",
                minute=minute,
                index_name=index_name,
                entity=entity,
                tenant_id=tenant_id,
                action=action,
                **count,
            )


def _document(transition: Transition) -> tuple[str, str]:
    return transition.event.index_name, transition.event.document_id

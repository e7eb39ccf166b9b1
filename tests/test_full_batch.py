"""What is done at once for a batch of which nothing has to be known row by row gives what is done row by row."""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine

from outbox import sqlite
from outbox.store import claims, due, operators, outcomes, pauses
from outbox.store.dialect import Run
from outbox.store.due import ClaimRequest
from outbox.store.models import LATENCIES, LATENCY_BOUNDS_MS, Event, Result, State, Transition
from outbox.store.sqlite.dialect import SQLite
from outbox.store.store import Store
from tests.support.outbox import Outbox

NOW = 1_700_000_000_000
REQUEST = ClaimRequest(relay=1, now=NOW, lease_ms=60_000, longest_wait=60_000, rows=100, bytes_=1_000)


def candidates() -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """As `due` finds them."""
    row = st.fixed_dictionaries(
        {
            "action": st.sampled_from(["index", "refresh", "delete"]),
            "index": st.sampled_from(["a", "b"]),
            "document": st.sampled_from(["1", "2", "3", "4", "5", "6"]),
            "tenant": st.sampled_from([None, "t"]),
            "deliveries": st.sampled_from([1, 1, 1, 12]),
            "error": st.sampled_from([None, None, None, "unanswered", "mapper"]),
            "bytes": st.sampled_from([0, 1, 90, 600]),
            "awaited": st.sampled_from([None, None, None, None, 1, 2, 9]),
        }
    )
    return st.lists(row, max_size=8).map(
        lambda rows: [
            (
                *(id_, row["action"], row["index"], row["document"], row["tenant"], None, 0, row["deliveries"]),
                *(NOW, None, row["error"], 0, row["bytes"], row["awaited"]),
            )
            for id_, row in enumerate(rows, 1)
        ]
    )


@given(candidates(), st.sampled_from([{}, {"a": 500}]))
def test_any_batch_is_chosen_alike_whether_or_not_bytes_are_counted(
    found: list[tuple[Any, ...]], expected: dict[str, int]
) -> None:
    request = replace(REQUEST, expected=expected)
    counting = replace(request, most={"of no row": 1})  # then nothing is taken for granted
    assert _chosen(due.choose(found, request)) == _chosen(due.choose(found, counting))


def _chosen(found: due.Found) -> tuple[Any, ...]:
    return list(found.events), list(found.blocked), found.lone


class Forgetful(SQLite):
    """It cannot say whether others have written."""

    def state(self, run: Run) -> int | None:  # noqa: ARG002
        return None


class Interrupted(Store):
    """`meanwhile` is called before its next write transaction, once."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    @contextmanager
    def write(self, *, durable: bool, alone: bool = False) -> Iterator[None]:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        with super().write(durable=durable, alone=alone):
            yield


Act = Callable[[Outbox], object]


def _another_claims(outbox: Outbox) -> claims.Claim | None:
    return claims.claim(outbox.store(), replace(REQUEST, relay=2, rows=2))


def _another_delivers(outbox: Outbox) -> None:
    if claim := _another_claims(outbox):
        done = [Transition(each, State.DONE, Result.APPLIED) for each in claim.events]
        outcomes.record(outbox.store(), claim, done, NOW)


def _another_fails(outbox: Outbox) -> None:
    if claim := _another_claims(outbox):
        later = [Transition(each, State.PENDING, None, NOW, 1, "mapper", "x") for each in claim.events]
        outcomes.record(outbox.store(), claim, later, NOW)


ACTS: dict[str, Act] = {
    "nothing": lambda _: None,
    "a row is written": lambda outbox: outbox.update("a", "1", {"n": 1}),
    "another relay claims": _another_claims,
    "another relay delivers": _another_delivers,
    "another relay fails": _another_fails,
    "a row dies": lambda outbox: outbox.raw(
        "UPDATE outbox_events SET state = 'dead', finished_at = 1, error_type = 'x', attempts = 1"
        " WHERE id = (SELECT min(id) FROM outbox_events WHERE state = 'pending')"
    ),
    "an operator retries": lambda outbox: operators.retry_dead(
        outbox.store(), [row["id"] for row in outbox.dead()], NOW
    ),
    "an operator pauses": lambda outbox: pauses.pause(outbox.store(), "an incident", "ops", NOW, index="b"),
}


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("123")), min_size=1, max_size=6),
    st.lists(st.sampled_from(sorted(ACTS)), max_size=3),
    st.lists(st.sampled_from(sorted(ACTS)), min_size=1, max_size=2),
)
def test_any_claim_is_the_same_whether_or_not_it_is_known_that_nobody_has_written(
    upgraded: Path, rows: list[tuple[str, str]], before: list[str], meanwhile: list[str]
) -> None:
    knowing, asking = (_claimed(upgraded, dialect, rows, before, meanwhile) for dialect in (SQLite(), Forgetful()))
    assert knowing == asking


def _claimed(
    upgraded: Path, dialect: SQLite, rows: list[tuple[str, str]], before: list[str], meanwhile: list[str]
) -> Any:
    """What a claim takes beside others, and what the table says after it."""
    with tempfile.TemporaryDirectory() as directory:
        engine = create_engine(f"sqlite:///{shutil.copy(upgraded, directory)}")
        sqlite.prepare(engine)
        outbox = Outbox(engine)
        for index, document in rows:
            outbox.update(index, document, {"n": 0})
        for act in before:
            ACTS[act](outbox)
        store = Interrupted(engine)
        store.dialect = dialect
        store.meanwhile = lambda: [ACTS[act](outbox) for act in meanwhile]
        claim = claims.claim(store, REQUEST)
        found = store.run(
            "SELECT id, state, deliveries, attempts, version, available_at FROM outbox_events ORDER BY id"
        )
        store.close()
        outbox.close()
        engine.dispose()
        taken = [event._replace(created_at=NOW) for event in claim.events] if claim else []
        return taken, claim and claim.version, list(found)


@pytest.mark.sqlite
def test_claim_beside_which_nobody_writes_is_not_looked_at_again(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.index_many("contacts", [(f"c{n}", {}) for n in range(5)])
    store = outbox.store()
    asked: list[str] = []
    run = store.run

    def noted(sql: str, *given: Any, **named: Any) -> Any:
        asked.append(sql)
        return run(sql, *given, **named)

    monkeypatch.setattr(store, "run", noted)
    claim = claims.claim(store, replace(REQUEST, now=NOW * 2))
    assert claim is not None
    begun = next(at for at, sql in enumerate(asked) if "UPDATE outbox_control" in sql)
    assert not [sql for sql in asked[:begun] if "sum(deliveries)" in sql]


transitions = st.lists(
    st.builds(
        lambda tenant, age, state, result, attempts: Transition(
            Event(0, "index", "a", "1", tenant, None, 0, 1, NOW - age), state, result, attempts=attempts
        ),
        st.sampled_from([None, "t"]),
        st.one_of(st.sampled_from(LATENCY_BOUNDS_MS), st.integers(-5, 70_000)),
        st.sampled_from([State.DONE, State.DONE, State.DEAD, State.PENDING]),
        st.sampled_from([Result.APPLIED, Result.SUPERSEDED, Result.UNCHANGED]),
        st.sampled_from([0, 1]),
    ),
    max_size=30,
).map(lambda each: [one._replace(event=one.event._replace(id=at)) for at, one in enumerate(each)])


@given(transitions, st.sets(st.integers(0, 30), max_size=3))
def test_any_outcomes_are_counted_as_one_by_one(given_: list[Transition], lost: set[int]) -> None:
    counted: dict[tuple[str, str, str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for each in given_:
        event = each.event
        action = "unchanged" if each.result is Result.UNCHANGED else event.action
        count = counted[event.index_name, "", event.tenant_id or "", action]
        if event.id in lost:
            count["lost_claims"] += 1
        elif each.state is State.DONE:
            latency = max(0, NOW - event.created_at)
            count["done"] += 1
            count["latency_sum_ms"] += latency
            count["superseded"] += each.result is Result.SUPERSEDED
            for bound, name in zip(LATENCY_BOUNDS_MS, LATENCIES, strict=True):
                if latency <= bound:
                    count[name] += 1
                    break
        elif each.state is State.DEAD:
            count["dead"] += 1
        else:
            count["retried"] += each.attempts > 0
    found = outcomes._counts(given_, lost, NOW)
    assert _nonzero(found) == _nonzero(counted)


def _nonzero(counts: Any) -> dict[Any, dict[str, int]]:
    cleaned = {key: {name: number for name, number in count.items() if number} for key, count in counts.items()}
    return {key: count for key, count in cleaned.items() if count}

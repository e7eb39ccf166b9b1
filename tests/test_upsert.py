"""Partial updates with `upsert`: what rows say, in whatever claims they come, and what relays that know none do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from outbox import InvalidDocument, OutboxRepository
from outbox.destinations.base import Destination, Outcome, OutcomeKind
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.relay import plan
from outbox.store import claims, upkeep
from outbox.store.models import Action, Event, now_ms
from tests.support.outbox import Outbox

NEW = {"views": 1, "name": "Ada"}


@pytest.fixture
def destination(tmp_path: Any) -> Iterator[Destination]:
    made = EmbeddedDestination(tmp_path / "search.db")
    yield made
    made.close()


def upsert(outbox: Outbox, document_id: str, changes: dict[str, Any], document: dict[str, Any]) -> int:
    return outbox.update("notes", document_id, changes, upsert=document)


def held(destination: Destination, *document_ids: str) -> dict[str, Any]:
    found = destination.read("notes-000001", document_ids)
    return {each: stored.source for each, stored in found.items()}


def test_upsert_makes_the_document_once_and_is_merged_from_then_on(outbox: Outbox, destination: Destination) -> None:
    first = upsert(outbox, "d1", {"views": 2}, NEW)
    outbox.drain(destination)
    assert (held(destination, "d1"), outbox.outcome(first)) == ({"d1": NEW}, "applied")
    upsert(outbox, "d1", {"views": 2}, NEW)
    outbox.drain(destination)
    assert held(destination, "d1") == {"d1": {"views": 2, "name": "Ada"}}


def test_rows_of_a_document_in_one_claim_come_to_the_same_as_one_by_one(
    outbox: Outbox, destination: Destination
) -> None:
    missing = [upsert(outbox, "missing", {"views": at}, NEW) for at in (2, 3)]
    outbox.index("notes", "whole", {"views": 0})
    upsert(outbox, "whole", {"views": 2}, NEW)
    outbox.index("notes", "deleted", {"views": 0, "old": True})
    outbox.delete("notes", "deleted")
    upsert(outbox, "deleted", {"views": 2}, NEW)
    outbox.update("notes", "deleted", {"more": 1})
    early = outbox.update("notes", "early", {"more": 1})
    late = upsert(outbox, "early", {"views": 2}, NEW)
    outbox.drain(destination)
    assert held(destination, "missing", "whole", "deleted", "early") == {
        "missing": {"views": 3, "name": "Ada"},
        "whole": {"views": 2},
        "deleted": {**NEW, "more": 1},
        "early": NEW,
    }
    assert [outbox.outcome(row) for row in missing] == ["coalesced", "applied"]
    assert (outbox.row(early)["error_type"], outbox.outcome(late)) == ("document_missing", "applied")


def test_upsert_applied_by_a_killed_relay_is_not_changed_by_its_own_row_when_that_comes_with_the_next(
    outbox: Outbox, destination: Destination
) -> None:
    upsert(outbox, "d1", {"views": 2}, NEW)
    destination.ensure_index("notes")
    dying, now = outbox.store(), now_ms()
    dying.register_index("notes", "notes-000001", found=False)
    asked = claims.ClaimRequest(relay=3, now=now, lease_ms=1_000, longest_wait=1_000, rows=4, bytes_=10**6)
    claim = claims.claim(dying, asked)
    assert claim is not None
    folds = plan.fold(claim.events, claims.load(dying, claim), claim.targets, claim.version)
    assert destination.apply([fold.operation for fold in folds]) == [Outcome(OutcomeKind.APPLIED)]
    outbox.update("notes", "d1", {"more": 1})
    upkeep.reap(dying, now + 60_000, 1_000)
    outbox.drain(destination, now + 120_000)
    assert held(destination, "d1") == {"d1": {**NEW, "more": 1}}
    assert outbox.counts()["done"] == 2


def test_upsert_sent_by_itself_behind_a_refused_row_and_applied_by_a_killed_relay_is_not_changed_by_its_own_row(
    outbox: Outbox, destination: Destination
) -> None:
    outbox.update("notes", "d1", {"more": 1})  # there is no document: the two are refused together, and sent alone
    row, killed = upsert(outbox, "d1", {"views": 2}, NEW), outbox.relay(destination, 1)
    now = now_ms()
    request = killed._next_request(now)
    while request:
        answer = killed._send(request)
        if [fold.events[0].id for fold in request.folds] == [row]:
            break  # the relay is killed before it records that
        killed._following += killed._settle(answer, now)
        request = killed._next_following(now)
    assert (outbox.state(row), held(destination, "d1")) == ("claimed", {"d1": NEW})
    upkeep.reap(outbox.store(), now + 61_000, 60_000)
    outbox.drain(destination, now + 61_000)
    assert (outbox.outcome(row), held(destination, "d1")) == ("applied", {"d1": NEW})


def test_row_holds_the_changes_and_the_upsert_as_a_list_that_another_language_can_write(
    outbox: Outbox, destination: Destination
) -> None:
    row = upsert(outbox, "d1", {"views": 2}, NEW)
    assert json.loads(outbox.row(row)["document"]) == [{"views": 2}, NEW]
    assert outbox.row(row)["document_bytes"] == len(outbox.row(row)["document"])
    outbox.raw("INSERT INTO outbox_events (action, index_name, document_id) VALUES ('update', 'notes', 'd2')")
    outbox.raw("INSERT INTO outbox_documents VALUES (:id, :text)", id=row + 1, text=' [ {"views": 2}, {"a": 1.10} ] ')
    outbox.drain(destination)
    assert destination.read_texts("notes-000001", ["d2"]) == {"d2": b'{"a":1.10}'}


@pytest.mark.parametrize("text", ["[]", "[{}]", "[{},{},{}]", "[1,{}]", "[{},1]", '[{},{"a":"\\ud800"}]', "[", "{}]"])
def test_list_that_is_no_pair_of_objects_is_dead_and_says_so(
    outbox: Outbox, destination: Destination, text: str
) -> None:
    outbox.index("notes", "d1", {"views": 0})
    outbox.drain(destination)
    for row, document_id in ((2, "d1"), (3, "d1"), (4, "d2")):
        outbox.raw(
            "INSERT INTO outbox_events (action, index_name, document_id) VALUES ('update', 'notes', :id)",
            id=document_id,
        )
        outbox.raw("INSERT INTO outbox_documents VALUES (:row, :text)", row=row, text=text)
    outbox.drain(destination)
    faults = [outbox.row(row)["error_type"] for row in (2, 3, 4)]
    assert faults[:2] == ["illegal_document", "illegal_document"]
    assert faults[2] in ("illegal_document", "document_missing")
    assert held(destination, "d1", "d2") == {"d1": {"views": 0}}


def test_relay_that_knows_no_upserts_refuses_the_row_instead_of_applying_one_half(
    outbox: Outbox, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.index("notes", "d1", {"views": 0})
    rows = [upsert(outbox, "d1", {"views": 2}, NEW), upsert(outbox, "d2", {"views": 2}, NEW)]
    monkeypatch.setattr("outbox.destinations.merge.split", lambda content: (content, None))  # as in 0.1
    outbox.drain(destination)
    assert held(destination, "d1", "d2") == {"d1": {"views": 0}}
    assert [outbox.state(row) for row in rows] == ["dead", "dead"]


def test_upsert_is_checked_as_every_document_is_and_lets_the_changes_be_empty(
    outbox: Outbox, destination: Destination
) -> None:
    with outbox.sessions.begin() as session:
        repository = OutboxRepository(session)
        with pytest.raises(InvalidDocument, match="is nan"):
            repository.update("notes", "d1", {}, upsert={"n": float("nan")})
        with pytest.raises(InvalidDocument, match="must be a mapping"):
            repository.update("notes", "d1", {"n": 1}, upsert=[1])  # type: ignore[arg-type]
    upsert(outbox, "d1", {}, NEW)
    outbox.drain(destination)
    upsert(outbox, "d1", {}, {"other": 1})
    outbox.drain(destination)
    assert held(destination, "d1") == {"d1": NEW}


def test_fold_says_from_which_version_on_the_index_may_hold_each_upsert() -> None:
    events = [Event(at, Action.UPDATE, "notes", "d1", None, None, 0, 1, 0, at) for at in (5, 6)]
    (fold,) = plan.fold(events, {5: b'{"n":1}', 6: b'[{"n":2},{"m":1.10}]'}, {"notes": "notes-000001"}, 3)
    assert fold.operation.patches == (b'{"n":1}', b'{"n":2}')
    assert [tuple(each) for each in fold.operation.upserts] == [(1, b'{"m":1.10}', 6)]

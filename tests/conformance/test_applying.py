"""What every destination promises of `apply`: versions, partial updates, several callers at once."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from outbox.destinations.base import Outcome, OutcomeKind
from tests.conformance.conftest import Opener
from tests.conformance.index import APPLIED, CONFLICT, REJECTED, Index, kinds
from tests.support import LIMIT_S

# -- the version rule -------------------------------------------------------------------------------------------------


def test_higher_version_replaces_and_no_other_does(index: Index) -> None:
    assert index.one(index.put("c1", 5, {"n": 5})) == Outcome(APPLIED)
    for version in (5, 4, 1):
        outcome = index.one(index.put("c1", version, {"n": version}))
        assert (outcome.kind, outcome.version) == (CONFLICT, 5)
    assert index.holds("c1") == {"c1": (5, {"n": 5})}
    assert index.one(index.put("c1", 6, {"m": 6})) == Outcome(APPLIED)
    assert index.holds("c1") == {"c1": (6, {"m": 6})}


def test_versions_of_an_outbox_are_kept_to_the_last_digit(index: Index) -> None:
    highest = 9_000_000 * 10**12 + 999_999_999_999
    assert index.one(index.put("c1", highest, {})) == Outcome(APPLIED)
    outcome = index.one(index.put("c1", highest - 1, {}))
    assert (outcome.kind, outcome.version) == (CONFLICT, highest)


def test_redelivery_of_a_batch_changes_nothing_and_reports_its_own_versions(index: Index) -> None:
    index.one(index.put("gone", 1, {}))
    batch = [
        index.put("c1", 2, {"n": 1}),
        index.delete("gone", 3),
        index.delete("never", 4),
        index.put("c2", 5, {"n": 2}),
    ]
    assert kinds(index.apply(*batch)) == [APPLIED] * 4
    again = index.apply(*batch)
    assert [(outcome.kind, outcome.version) for outcome in again] == [(CONFLICT, version) for version in (2, 3, 4, 5)]
    assert index.holds("c1", "c2", "gone", "never") == {"c1": (2, {"n": 1}), "c2": (5, {"n": 2})}


def test_delete_is_remembered_against_what_comes_late(index: Index) -> None:
    index.one(index.put("c1", 1, {"n": 1}))
    assert index.one(index.delete("c1", 3)) == Outcome(APPLIED)
    assert index.holds("c1") == {}
    late = index.one(index.put("c1", 2, {"n": 2}))
    assert (late.kind, late.version) == (CONFLICT, 3)
    assert index.holds("c1") == {}
    assert index.one(index.put("c1", 4, {"n": 4})) == Outcome(APPLIED)
    late = index.one(index.delete("c1", 3))
    assert (late.kind, late.version) == (CONFLICT, 4)
    assert index.holds("c1") == {"c1": (4, {"n": 4})}


def test_delete_of_what_was_never_there_is_applied_and_remembered(index: Index) -> None:
    assert index.one(index.delete("c1", 5)) == Outcome(APPLIED)
    late = index.one(index.put("c1", 4, {}))
    assert (late.kind, late.version) == (CONFLICT, 5)
    assert index.one(index.delete("c1", 6)) == Outcome(APPLIED)
    assert index.one(index.put("c1", 7, {})) == Outcome(APPLIED)


# -- partial updates --------------------------------------------------------------------------------------------------


def test_patches_are_merged_one_after_another_into_what_is_held(index: Index) -> None:
    index.one(index.put("c1", 1, {"name": "Ada", "address": {"city": "London", "zip": "W1"}, "tags": ["a", "b"]}))
    changes = [{"address": {"zip": None, "street": "x"}}, {"tags": ["c"], "a": 5}, {"a": {"y": 2}}]
    assert index.one(index.patch("c1", 2, *changes)) == Outcome(APPLIED)
    merged = {
        "name": "Ada",
        "address": {"city": "London", "zip": None, "street": "x"},
        "tags": ["c"],
        "a": {"y": 2},
    }
    assert index.holds("c1") == {"c1": (2, merged)}


def test_patch_of_a_missing_or_deleted_document_is_rejected(index: Index) -> None:
    index.apply(index.put("deleted", 1, {}), index.delete("never", 1))
    index.one(index.delete("deleted", 2))
    outcomes = index.apply(index.patch("missing", 9, {"a": 1}), index.patch("deleted", 9, {}), index.patch("never", 9))
    # Without a patch it is a delete.
    assert [(outcome.kind, outcome.error_type) for outcome in outcomes] == [
        (REJECTED, "document_missing"), (REJECTED, "document_missing"), (APPLIED, None)
    ]  # fmt: skip
    assert index.holds("missing", "deleted", "never") == {}


def test_patch_that_is_not_newer_is_a_conflict(index: Index) -> None:
    index.one(index.put("c1", 5, {"n": 5}))
    for version in (5, 4):
        outcome = index.one(index.patch("c1", version, {"n": 1, "m": 1}))
        assert (outcome.kind, outcome.version) == (CONFLICT, 5)
    assert index.holds("c1") == {"c1": (5, {"n": 5})}


def test_numbers_survive_a_patch_of_their_neighbour(index: Index) -> None:
    document = {"big": 2**63 - 1, "small": -(2**63), "half": 0.5, "tenth": 0.1, "whole": 1.0, "exact": 1e-7}
    index.one(index.put("c1", 1, document))
    index.one(index.patch("c1", 2, {"more": 1}))
    assert index.holds("c1") == {"c1": (2, {**document, "more": 1})}


def test_patch_and_full_document_of_others_go_together(index: Index) -> None:
    index.apply(index.put("c1", 1, {"a": 1}), index.put("c2", 2, {"a": 2}))
    batch = [
        index.patch("c1", 3, {"b": 1}),
        index.put("c3", 4, {"a": 3}),
        index.patch("missing", 5, {}),
        index.delete("c2", 6),
    ]
    assert kinds(index.apply(*batch)) == [APPLIED, APPLIED, REJECTED, APPLIED]
    assert index.holds("c1", "c2", "c3", "missing") == {"c1": (3, {"a": 1, "b": 1}), "c3": (4, {"a": 3})}


# -- several at once --------------------------------------------------------------------------------------------------


def test_second_instance_sees_and_respects_what_the_first_applied(index: Index, opener: Opener) -> None:
    index.one(index.put("c1", 5, {"n": 5}))
    second = Index(opener(), index.name)
    assert second.holds("c1") == {"c1": (5, {"n": 5})}
    assert second.one(second.put("c1", 4, {})).version == 5
    assert second.one(second.put("c1", 6, {"n": 6})) == Outcome(APPLIED)
    assert index.holds("c1") == {"c1": (6, {"n": 6})}
    second.destination.close()


def _write_versions(opener: Opener, name: str, first: int) -> None:
    index = Index(opener(), name)
    for version in range(first, 60, 3):
        outcomes = index.apply(*(index.put(f"c{n}", version, {"version": version}) for n in range(20)))
        assert set(kinds(outcomes)) <= {APPLIED, CONFLICT}, outcomes
    index.destination.close()


@pytest.mark.slow
def test_processes_that_write_the_same_documents_leave_the_highest_versions(index: Index, opener: Opener) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_versions, args=(opener, index.name, first)) for first in (1, 2, 3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT_S)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    ids = [f"c{n}" for n in range(20)]
    assert index.holds(*ids) == {each: (59, {"version": 59}) for each in ids}


def test_threads_share_one_instance(index: Index) -> None:
    def write(thread: int) -> list[OutcomeKind]:
        return kinds(
            outcome
            for at in range(10)
            for outcome in index.apply(*(index.put(f"{thread}-{at}-{n}", 1, {}) for n in range(10)))
        )

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(4))) == [[APPLIED] * 100] * 4
    ids = [f"{thread}-{at}-{n}" for thread in range(4) for at in range(10) for n in range(10)]
    assert set(index.holds(*ids)) == set(ids)


def test_thousand_documents_in_one_apply_are_answered_in_their_order(typed: Index) -> None:
    def document(n: int) -> dict[str, Any]:
        return {"age": "bad" if n % 100 == 7 else n, "text": "x" * 700}

    outcomes = typed.apply(*(typed.put(f"c{n}", n + 1, document(n)) for n in range(1_000)))
    assert [at for at, outcome in enumerate(outcomes) if outcome.kind is REJECTED] == list(range(7, 1_000, 100))
    assert kinds(outcomes).count(APPLIED) == 990
    assert len(typed.holds(*(f"c{n}" for n in range(1_000)))) == 990


def test_nothing_to_apply_is_answered_with_nothing(index: Index) -> None:
    assert index.apply() == []

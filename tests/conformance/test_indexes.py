"""What every destination promises of indexes and their names, also while one is rebuilt."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest

from outbox.destinations.base import FOREVER, Destination, Operation, OutcomeKind
from outbox.errors import DestinationError
from tests.conformance.conftest import Opener
from tests.conformance.index import APPLIED, CONFLICT, REJECTED, Index, kinds
from tests.support import LIMIT_S

# -- indexes ----------------------------------------------------------------------------------------------------------


def test_missing_index_is_blocked_and_not_made_by_what_is_sent_to_it(index: Index, name: str) -> None:
    missing = Index(index.destination, f"{name}-missing")
    outcomes = index.apply(
        index.put("c1", 1, {}), missing.put("c1", 2, {}), missing.delete("c2", 3), index.put("c2", 4, {})
    )
    assert kinds(outcomes) == [APPLIED, OutcomeKind.BLOCKED, OutcomeKind.BLOCKED, APPLIED]
    assert {outcome.error_type for outcome in outcomes[1:3]} == {"index_not_found_exception"}
    assert missing.one(missing.patch("c1", 5, {"a": 1})).kind is OutcomeKind.BLOCKED
    facts = index.destination.inspect_index(missing.name, missing.target)
    assert (facts.exists, facts.readers) == (False, ())


def test_index_that_its_readers_do_not_reach_is_blocked(index: Index, name: str) -> None:
    stray = Operation(f"{name}-other", index.target, "c1", 1, b"{}")
    (outcome,) = index.destination.apply([stray])
    assert (outcome.kind, outcome.error_type) == (OutcomeKind.BLOCKED, "alias_not_found_exception")


def test_ensure_index_creates_once_and_uses_what_is_there(destination: Destination, name: str) -> None:
    assert (
        destination.ensure_index(name, {"dynamic": "strict", "properties": {"age": {"type": "long"}}})
        == f"{name}-000001"
    )
    assert destination.ensure_index(name) == f"{name}-000001"
    assert destination.ensure_index(name, {"properties": {"name": {"type": "text"}}}) == f"{name}-000001"
    index = Index(destination, name)
    assert index.one(index.put("c1", 1, {"name": "Ada"})).kind is REJECTED  # the first mappings stay


def test_settings_are_taken_when_the_index_is_created(destination: Destination, name: str) -> None:
    assert destination.ensure_index(name, settings={"index.refresh_interval": "5s"}) == f"{name}-000001"
    assert destination.inspect_index(name, f"{name}-000001").exists


def test_concrete_index_of_that_name_is_used_as_it_is(destination: Destination, name: str) -> None:
    concrete = destination.ensure_index(name)
    assert destination.ensure_index(concrete) == concrete
    (outcome,) = destination.apply([Operation(concrete, concrete, "c1", 1, b'{"n":1}')])
    assert outcome.kind is APPLIED
    assert set(destination.read(concrete, ["c1"])) == {"c1"}


def test_physical_name_that_something_else_has_is_refused(destination: Destination, name: str) -> None:
    destination.ensure_index(f"{name}-000001")  # an alias that has the name which the index of `name` would have
    with pytest.raises(DestinationError, match=f"{name}-000001 cannot be created"):
        destination.ensure_index(name)


def test_two_that_ensure_an_index_at_once_get_the_same(opener: Opener, name: str) -> None:
    both = [opener(), opener()]
    names = [f"{name}-{n}" for n in range(4)]
    start = threading.Barrier(2)

    def ensure(destination: Destination) -> list[str]:
        start.wait(LIMIT_S)
        return [destination.ensure_index(each) for each in names]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ensure, both)) == [[f"{each}-000001" for each in names]] * 2
    for destination in both:
        destination.close()


def test_inspection_tells_where_readers_go_and_how_long_deletes_are_remembered(index: Index) -> None:
    facts = index.destination.inspect_index(index.name, index.target)
    assert (facts.exists, facts.readers) == (True, (index.target,))
    assert facts.gc_deletes == FOREVER or re.fullmatch(r"\d+(ms|s|m|h|d)", facts.gc_deletes)


# -- rebuilding an index ----------------------------------------------------------------------------------------------


def test_operation_that_may_meet_its_own_version_replaces_that_and_nothing_newer(index: Index) -> None:
    index.apply(index.put("same", 5, {"n": 1}), index.put("newer", 6, {"n": 1}), index.put("gone", 4, {}))
    index.one(index.delete("gone", 6))
    batch = [index.put("same", 5, {"n": 2}), index.put("newer", 5, {"n": 2}), index.put("gone", 5, {})]
    outcomes = index.apply(*(replace(operation, or_equal=True) for operation in batch))
    assert [(outcome.kind, outcome.version) for outcome in outcomes] == [(APPLIED, None), (CONFLICT, 6), (CONFLICT, 6)]
    assert index.holds("same", "newer", "gone") == {"same": (5, {"n": 2}), "newer": (6, {"n": 1})}
    batch = [index.delete("same", 5), index.delete("newer", 5)]
    outcomes = index.apply(*(replace(operation, or_equal=True) for operation in batch))
    assert kinds(outcomes) == [APPLIED, CONFLICT]
    assert index.holds("same", "newer") == {"newer": (6, {"n": 1})}
    assert index.one(index.put("same", 5, {})).version == 5  # its delete is remembered
    assert index.one(replace(index.put("same", 5, {}), or_equal=True)).kind is APPLIED


def test_index_that_is_filled_before_readers_reach_it(index: Index, name: str) -> None:
    destination, new = index.destination, f"{name}-000002"
    index.one(index.put("c1", 1, {"name": "Ada"}))
    mappings = {"dynamic": "strict", "properties": {"name": {"type": "text"}}}
    destination.create_index(new, mappings, {"number_of_replicas": 0, "index": {"refresh_interval": "7s"}})
    assert kinds(destination.apply([Operation(new, new, "c1", 1, b'{"name":"Grace"}')])) == [APPLIED]
    assert kinds(destination.apply([Operation(new, new, "c2", 1, b'{"age":1}')])) == [REJECTED]  # its own mappings
    destination.refresh(name)
    assert (index.found("ada"), index.found("grace")) == (["c1"], [])
    destination.finish_index(new, {"number_of_replicas": 0, "index": {"refresh_interval": "7s"}})
    destination.swap(name, index.target, new)
    assert (index.found("ada"), index.found("grace")) == ([], ["c1"])
    assert destination.inspect_index(name, new).readers == (new,)
    destination.drop_index(index.target)
    assert not destination.inspect_index(name, index.target).exists
    assert (index.found("ada"), index.found("grace"), destination.count(name)) == ([], ["c1"], 1)


def test_index_of_a_name_that_is_taken_is_not_created(index: Index) -> None:
    index.one(index.put("c1", 1, {}))
    for taken in (index.name, index.target):
        with pytest.raises(DestinationError, match=f"{taken} cannot be created"):
            index.destination.create_index(taken, {}, {})
    assert index.holds("c1") == {"c1": (1, {})}


def test_swap_that_comes_late_changes_nothing(index: Index, name: str) -> None:
    destination, second, third = index.destination, f"{name}-000002", f"{name}-000003"
    for target in (second, third):
        destination.create_index(target, {}, {})
    destination.swap(name, index.target, second)
    for old, new in ((index.target, second), (index.target, third), (second, f"{name}-missing")):
        with pytest.raises(DestinationError, match=f"alias {name} cannot be moved"):
            destination.swap(name, old, new)
        assert destination.inspect_index(name, second).readers == (second,)
    destination.drop_index(index.target)
    with pytest.raises(DestinationError):
        destination.swap(name, index.target, third)
    assert destination.inspect_index(name, second).readers == (second,)


def test_concrete_index_of_the_name_gives_way_to_an_alias_only_when_told(index: Index, name: str) -> None:
    destination, concrete, new = index.destination, index.target, f"{name}-new"
    destination.create_index(new, {}, {})
    destination.apply([Operation(new, new, "c1", 1, b'{"name":"Grace"}')])
    destination.finish_index(new, {})
    with pytest.raises(DestinationError):
        destination.swap(concrete, concrete, new)
    destination.swap(concrete, concrete, new, adopt=True)
    assert destination.inspect_index(concrete, new).readers == (new,)
    assert [hit.document_id for hit in destination.search(concrete, "grace")] == ["c1"]


def test_dropping_what_is_not_there_is_fine_and_an_alias_is_no_index(index: Index, name: str) -> None:
    index.destination.drop_index(f"{name}-missing")
    index.one(index.put("c1", 1, {}))
    with suppress(DestinationError):
        index.destination.drop_index(name)
    assert index.holds("c1") == {"c1": (1, {})}

"""What every destination promises to those that read it: by id, page by page, by a search."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from outbox.destinations.base import Destination, Listed, Outcome
from outbox.errors import DestinationError, IndexMissing
from tests.conformance.index import APPLIED, MAPPINGS, Index

# -- looking ----------------------------------------------------------------------------------------------------------


def test_read_sees_what_was_applied_before_any_refresh_and_leaves_out_what_is_not_there(index: Index) -> None:
    index.apply(index.put("c1", 1, {"n": 1}), index.put("c2", 2, {}))
    index.one(index.delete("c2", 3))
    assert index.holds("c1", "c2", "c3") == {"c1": (1, {"n": 1})}
    assert index.holds() == {}
    assert set(index.destination.read(index.name, ["c1"])) == {"c1"}  # by alias


def test_read_keeps_numbers_exact(index: Index) -> None:
    document = {"exact": 2**63 - 1, "negative": -(2**63), "float": 0.1, "half": 0.5, "yes": True, "nothing": None}
    index.one(index.put("c1", 1, document))
    ((_, source),) = index.holds("c1").values()
    assert {key: (value, type(value)) for key, value in source.items()} == {
        key: (value, type(value)) for key, value in document.items()
    }


def listed(index: Index, size: int, **options: Any) -> list[dict[str, Listed]]:
    return list(index.destination.pages(index.name, size, **options))


def test_pages_list_each_document_once_with_its_version_and_tenant_and_no_deleted_one(index: Index) -> None:
    index.apply(*(index.put(f"c{n}", n + 1, {"n": n, "tenantId": f"t{n % 2}"}) for n in range(25)))
    index.apply(index.delete("c3", 100), index.put("c4", 101, {"text": "x" * 1_000}))
    pages = listed(index, 10, tenants=True)
    assert [len(page) for page in pages] == [10, 10, 4]
    assert {each: found for page in pages for each, found in page.items()} == {
        "c4": Listed(101, None),
        **{f"c{n}": Listed(n + 1, f"t{n % 2}") for n in range(25) if n not in (3, 4)},
    }
    (page,) = listed(index, 100)
    assert page == {"c4": Listed(101), **{f"c{n}": Listed(n + 1) for n in range(25) if n not in (3, 4)}}


def test_pages_of_one_index_list_nothing_of_another(index: Index, name: str) -> None:
    other = Index(index.destination, f"{name}-other")
    index.destination.ensure_index(other.name)
    index.apply(index.put("c1", 1, {}), other.put("c2", 2, {}))
    assert [set(page) for page in listed(index, 10)] == [{"c1"}]


def test_pages_of_a_missing_or_empty_index_are_none(index: Index, name: str) -> None:
    assert listed(index, 10) == []
    assert list(index.destination.pages(f"{name}-missing", 10)) == []


def test_shares_of_the_pages_have_nothing_in_common_and_are_all_of_it_together(index: Index) -> None:
    index.apply(*(index.put(f"c{n}", 1, {}) for n in range(100)))
    shares = [{each for page in listed(index, 7, share=(part, 4)) for each in page} for part in range(4)]
    assert sum(map(len, shares)) == 100
    assert set.union(*shares) == {f"c{n}" for n in range(100)}
    assert all(5 <= len(share) <= 60 for share in shares)


def test_documents_that_come_and_go_between_pages_keep_no_other_from_being_listed(index: Index) -> None:
    index.apply(*(index.put(f"c{n}", 1, {}) for n in range(30)))
    pages = index.destination.pages(index.name, 10)
    found = set(next(pages))
    gone, *_ = {f"c{n}" for n in range(30)} - found
    index.apply(index.delete(gone, 2), index.put("new", 1, {}))
    for page in pages:
        assert not found & set(page)
        found |= set(page)
    assert found >= {f"c{n}" for n in range(30)} - {gone}


def test_pages_that_are_not_read_to_the_end_leave_the_index_usable(index: Index) -> None:
    index.apply(*(index.put(f"c{n}", 1, {}) for n in range(30)))
    for _ in range(20):
        pages = index.destination.pages(index.name, 10)
        next(pages)
        pages.close()  # type: ignore[attr-defined]
    assert index.one(index.put("c1", 2, {})) == Outcome(APPLIED)


def test_highest_version_of_an_empty_a_missing_and_a_filled_index(index: Index, name: str) -> None:
    assert index.destination.highest_version(name) == 0
    assert index.destination.highest_version(f"{name}-missing") == 0
    index.apply(*(index.put(f"c{n}", 10**12 + n, {}) for n in range(1, 50)))
    assert index.destination.highest_version(name) == 10**12 + 49


def test_newest_version_of_an_empty_a_missing_and_a_filled_index(index: Index, name: str) -> None:
    assert index.destination.newest_version(name) == 0
    assert index.destination.newest_version(f"{name}-missing") == 0
    index.apply(*(index.put(f"c{n}", 10**12 + n, {}) for n in range(1, 50)))
    index.one(index.put("c7", 10**12 + 60, {}))
    assert index.destination.newest_version(name) == 10**12 + 60


def test_well_destination_says_so(index: Index) -> None:
    assert index.destination.ping() is None
    health = index.destination.health()
    assert health.product
    assert re.search(r"\d+\.\d+", health.version)
    assert health.status


@pytest.mark.parametrize(
    "look",
    [
        lambda destination, name: destination.refresh(name),
        lambda destination, name: destination.count(name),
        lambda destination, name: destination.finish_index(name, {}),
        lambda destination, name: destination.search(name, "ada"),
        lambda destination, name: destination.search(name, "ada", tenant="t1"),
    ],
)
def test_missing_index_is_reported_by_every_call_that_reads_it(
    index: Index, name: str, look: Callable[[Destination, str], object]
) -> None:
    with pytest.raises(DestinationError, match=f"{name}-missing"):
        look(index.destination, f"{name}-missing")


def test_search_of_a_missing_index_is_told_from_a_failure(destination: Destination, name: str) -> None:
    with pytest.raises(IndexMissing):  # not even the file of an embedded destination is there
        destination.search(name, "ada", tenant="t1")


# -- search -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def people(index: Index) -> Index:
    people = {
        "ada": {"name": "Ada Lovelace", "about": "wrote the first program for the analytical engine"},
        "babbage": {"name": "Charles Babbage", "about": "designed the analytical engine, a first computer"},
        "grace": {"name": "Grace Hopper", "about": "compilers", "address": {"city": "Arlington"}, "tags": ["navy"]},
        "alan": {"name": "Alan Turing", "about": "computability", "born": 1912},
    }
    index.apply(*(index.put(each, at + 1, document) for at, (each, document) in enumerate(people.items())))
    index.destination.refresh(index.name)
    return index


def test_search_ranks_more_and_rarer_words_higher(people: Index) -> None:
    hits = people.destination.search(people.name, "first program")
    assert [hit.document_id for hit in hits] == ["ada", "babbage"]
    assert hits[0].score > hits[1].score > 0
    assert hits[0].source["name"] == "Ada Lovelace"
    assert people.found("analytical engine", limit=1) in (["ada"], ["babbage"])


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("lovelace", "ada"),
        ("LOVELACE", "ada"),
        ("lovel", "ada"),  # the beginning of a word
        ("analytical engine, a first comp", "babbage"),
        ("hopp", "grace"),
        ("loveleca", "ada"),  # two letters swapped
        ("lovlace", "ada"),  # one is missing
        ("babage", "babbage"),
        ("turingg", "alan"),
        ("arlington", "grace"),  # in an object
        ("navy", "grace"),  # in an array
    ],
)
def test_search_finds_words_their_beginnings_and_misspelt_ones(people: Index, query: str, found: str) -> None:
    assert people.found(query)[:1] == [found]


@pytest.mark.parametrize("query", ["zzzzzz", "", "   ", "?", "* -"])
def test_search_for_nothing_that_is_there_finds_nothing(people: Index, query: str) -> None:
    assert people.found(query) == []


def test_search_finds_a_word_before_its_misspelling(index: Index) -> None:
    index.apply(*(index.put(f"c{n}", n + 1, {"name": "smyth" if n == 3 else "smith"}) for n in range(6)))
    index.destination.refresh(index.name)
    found = index.found("smith", limit=50)
    assert (len(found), found[-1]) == (6, "c3")
    assert len(index.found("smith", limit=2)) == 2


def test_search_finds_the_present_and_not_the_past(people: Index) -> None:
    people.apply(people.put("ada", 10, {"name": "Augusta King"}), people.delete("grace", 11))
    people.destination.refresh(people.name)
    assert people.found("lovelace") == []
    assert people.found("augusta") == ["ada"]
    assert people.found("hopper") == []


@pytest.mark.parametrize("mappings", [None, MAPPINGS], ids=["dynamic", "registered"])
def test_search_of_one_tenant_finds_nothing_of_another(
    destination: Destination, name: str, mappings: dict[str, Any] | None
) -> None:
    destination.ensure_index(name, mappings)
    index = Index(destination, name)
    tenants = ["acme", "acme-2", "ACME", "acme 2", "2"]
    index.apply(
        index.put("of nobody", 1, {"name": "Ada"}),
        *(index.put(tenant, 1, {"name": "Ada", "tenantId": tenant}) for tenant in tenants),
    )
    destination.refresh(name)
    assert set(index.found("ada")) == {*tenants, "of nobody"}
    for tenant in tenants:
        assert index.found("ada", tenant=tenant) == [tenant]
    assert index.found("ada", tenant="nobody") == []
    assert index.found("ada", tenant="") == []

"""What every destination promises to those that search: pages, filters, order, chosen fields and highlights."""

from __future__ import annotations

import dataclasses
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from outbox.destinations.base import Destination, Found
from outbox.errors import DestinationError, InvalidInput
from tests.conformance.index import Index

TYPED = {
    "properties": {
        "name": {"type": "text", "fields": {"keyword": {"type": "keyword"}}},
        "about": {"type": "text"},
        "town": {"type": "keyword"},
        "age": {"type": "long"},
        "height": {"type": "double"},
        "born": {"type": "date"},
        "seen": {"type": "date"},
        "member": {"type": "boolean"},
        "tags": {"type": "keyword"},
        "address": {"properties": {"city": {"type": "keyword"}, "zip": {"type": "integer"}}},
        "parts": {"type": "nested", "properties": {"size": {"type": "long"}}},
    }
}
PEOPLE: dict[str, dict[str, Any]] = {
    "ada": {
        "name": "Ada Lovelace",
        "about": "wrote the first program",
        "town": "London",
        "age": 36,
        "height": 1.65,
        "born": "1815-12-10",
        "seen": "2024-05-01T10:00:00+02:00",
        "member": True,
        "tags": ["poet", "engine"],
        "address": {"city": "London", "zip": 100},
    },
    "charles": {
        "name": "Charles Babbage",
        "about": "designed the first engine",
        "town": "London",
        "age": 79,
        "height": 1.8,
        "born": "1791-12-26",
        "seen": "2024-05-01T09:00:00Z",
        "member": False,
        "tags": ["engine"],
        "address": {"city": "Totnes", "zip": 9},
    },
    "grace": {
        "name": "Grace Hopper",
        "about": "wrote the first compiler",
        "town": "Arlington",
        "age": 85,
        "born": "1906-12-09",
        "seen": "2024-05-02",
        "member": True,
        "tags": [],
        "address": {"city": "Arlington", "zip": 22201},
    },
    "alan": {"name": "Alan Turing", "about": "asked first", "town": "london", "tags": ["poet", "runner"]},
}


def filled(destination: Destination, name: str, mappings: dict[str, Any] | None) -> Index:
    destination.ensure_index(name, mappings)
    index = Index(destination, name)
    index.apply(*(index.put(each, at + 1, document) for at, (each, document) in enumerate(PEOPLE.items())))
    destination.refresh(name)
    return index


@pytest.fixture(params=[TYPED, None], ids=["mapped", "dynamic"])
def people(request: pytest.FixtureRequest, destination: Destination, name: str) -> Index:
    return filled(destination, name, request.param)


@pytest.fixture
def mapped(destination: Destination, name: str) -> Index:
    return filled(destination, name, TYPED)


def test_page_holds_its_hits_and_how_many_there_are_in_all(people: Index) -> None:
    all_of_them = people.found("first", limit=10)
    assert sorted(all_of_them) == ["ada", "alan", "charles", "grace"]
    pages = [people.destination.search(people.name, "first", offset=offset, limit=3) for offset in (0, 3, 6)]
    assert [[hit.document_id for hit in page.hits] for page in pages] == [all_of_them[:3], all_of_them[3:], []]
    assert [page.total for page in pages] == [4, 4, 4]
    assert [len(page) for page in pages] == [3, 1, 0]
    assert people.destination.search(people.name, "first", limit=0) == Found((), 4)
    assert people.destination.search(people.name, "zzzzzz") == Found((), 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pages[0].total = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({"town": "London"}, "ada charles"),
        ({"town": ["london", "Arlington"]}, "alan grace"),
        ({"town": []}, ""),
        ({"town": "Lond"}, ""),
        ({"name": "Ada Lovelace"}, "ada"),
        ({"name": "Ada"}, ""),  # the whole of it, not a word
        ({"age": 36}, "ada"),
        ({"age": [36, 85, 1]}, "ada grace"),
        ({"age": "36"}, "ada"),
        ({"age": {"gte": 36, "lt": 85}}, "ada charles"),
        ({"age": {"gt": 36, "lte": 85}}, "charles grace"),
        ({"age": {"gt": 36.5}}, "charles grace"),
        ({"height": 1.8}, "charles"),
        ({"height": {"lt": 1.7}}, "ada"),
        ({"member": True}, "ada grace"),
        ({"member": False}, "charles"),
        ({"tags": "poet"}, "ada alan"),
        ({"tags": ["engine", "runner"]}, "ada alan charles"),
        ({"tags": "poet", "town": "London"}, "ada"),
        ({"address.city": "Totnes"}, "charles"),
        ({"address.zip": {"gte": 10, "lte": 100}}, "ada"),
        ({"town": {"gte": "B", "lt": "a"}}, "ada charles"),  # by code points, as everywhere
        ({"nothing": "x"}, ""),
        ({"address.nothing": {"gt": 1}}, ""),
    ],
)
def test_filters_narrow_what_is_found(people: Index, where: dict[str, Any], found: str) -> None:
    assert sorted(people.found(None, where=where)) == found.split()
    assert sorted(people.found("first", where=where)) == found.split()
    assert people.destination.search(people.name, None, where=where, limit=1).total == len(found.split())


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({"born": "1815-12-10"}, "ada"),
        ({"born": date(1815, 12, 10)}, "ada"),
        ({"born": {"gte": "1800-01-01"}}, "ada grace"),
        ({"born": {"lte": date(1815, 12, 10)}}, "ada charles"),
        ({"born": {"gt": "1815-12-10"}}, "grace"),
        ({"born": {"lt": "1815-12-10"}}, "charles"),
        ({"seen": "2024-05-01"}, "ada charles"),  # at any time of that day
        ({"seen": {"gt": "2024-05-01"}}, "grace"),  # and after it
        ({"seen": {"lte": "2024-05-01"}}, "ada charles"),
        ({"seen": {"lt": datetime(2024, 5, 1, 9, tzinfo=UTC)}}, "ada"),  # 10:00 in another zone is earlier
        ({"seen": {"gte": "2024-05-01T11:00:00+02:00"}}, "charles grace"),
    ],
)
def test_dates_are_compared_as_moments_and_those_without_a_time_are_whole_days(
    people: Index, where: dict[str, Any], found: str
) -> None:
    assert sorted(people.found(None, where=where)) == found.split()


def test_filters_keep_to_the_tenant(destination: Destination, name: str) -> None:
    destination.ensure_index(name)
    index = Index(destination, name)
    index.apply(
        *(index.put(f"{t}{n}", 1, {"n": n, "name": "Ada", "tenantId": t}) for t in ("t1", "t2") for n in (1, 2))
    )
    destination.refresh(name)
    assert index.found("ada", tenant="t1", where={"n": 2}) == ["t12"]
    assert index.found(None, tenant="t2", sort="-n") == ["t22", "t21"]
    assert destination.search(name, None, tenant="t1", limit=1).total == 2


@pytest.mark.parametrize(
    ("sort", "found"),
    [
        ("age", "ada charles grace alan"),
        ("-age", "grace charles ada alan"),  # without the field: last in either order
        ("town", "grace ada charles alan"),
        (["town", "-age"], "grace charles ada alan"),
        (["-member", "born"], "ada grace charles alan"),
        ("name", "ada alan charles grace"),
        ("-seen", "grace charles ada alan"),
        ("address.zip", "charles ada grace alan"),
        (["tags", "-name"], "charles ada alan grace"),  # of several values the smallest …
        (["-tags", "name"], "alan ada charles grace"),  # … or the largest
        (["nothing", "name"], "ada alan charles grace"),
    ],
)
def test_order_is_that_of_fields(people: Index, sort: str | list[str], found: str) -> None:
    if sort == "town":
        sort = ["town", "name"]
    assert people.found(None, sort=sort) == found.split()
    assert people.found("first", sort=sort) == found.split()
    assert people.found(None, sort=sort, offset=1, limit=2) == found.split()[1:3]


def test_scores_are_there_in_whatever_order(people: Index) -> None:
    assert all(hit.score > 0 for hit in people.destination.search(people.name, "first", sort="name"))
    assert all(hit.score == 0 for hit in people.destination.search(people.name, None, sort="name"))


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        (["name", "address.city"], {"name": "Ada Lovelace", "address": {"city": "London"}}),
        ("address", {"address": {"city": "London", "zip": 100}}),
        (["tags"], {"tags": ["poet", "engine"]}),
        (["nam", "nothing.at.all"], {}),
        ([], {}),
        (None, PEOPLE["ada"]),
    ],
)
def test_chosen_fields_come_back_and_no_others(people: Index, fields: Any, source: dict[str, Any]) -> None:
    (hit,) = people.destination.search(people.name, "lovelace", fields=fields)
    assert hit.source == source


# -- numbers as texts, as a query string has them ---------------------------------------------------------------------

FIGURES = {"properties": {"count": {"type": "long"}, "small": {"type": "integer"}, "price": {"type": "double"}}}


@pytest.fixture
def figures(destination: Destination, name: str) -> Index:
    destination.ensure_index(name, FIGURES)
    index = Index(destination, name)
    index.apply(
        index.put("a", 1, {"count": "36.7", "small": "-2.9", "price": "5"}),
        index.put("b", 2, {"count": 36, "small": -1, "price": 10}),
        index.put("c", 3, {"count": 9007199254740993, "small": "7", "price": 7.5}),
        index.put("d", 4, {"count": -1, "small": "", "price": 19.99}),
    )
    destination.refresh(name)
    return index


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({"price": "19.99"}, "d"),
        ({"price": "19.990"}, "d"),
        ({"price": ["5.0", "1e1"]}, "a b"),
        ({"price": {"gte": "19.99"}}, "d"),
        ({"price": {"gt": "19.99"}}, ""),
        ({"price": {"lte": "7.5"}}, "a c"),
        ({"count": 36}, "a b"),  # without its fraction, as it is indexed
        ({"count": "36.0"}, "a b"),
        ({"count": "36.7"}, ""),
        ({"count": {"gt": "36.5"}}, "c"),
        ({"count": {"lt": 36.5}}, "a b d"),
        ({"count": "9007199254740993"}, "c"),  # more digits than a double has
        ({"count": "9007199254740992"}, ""),
        ({"small": -2}, "a"),
        ({"small": {"lt": -2}}, ""),
        ({"small": " 7 "}, "c"),
    ],
)
def test_number_is_the_same_given_as_a_text(figures: Index, where: dict[str, Any], found: str) -> None:
    assert sorted(figures.found(None, where=where)) == found.split()


@pytest.mark.parametrize(
    ("sort", "found"),
    [("price", "a c b d"), ("-price", "d b c a"), (["count", "price"], "d a b c"), ("-small", "c b a d")],
)
def test_order_of_numbers_is_theirs_whether_documents_have_them_as_numbers_or_as_texts(
    figures: Index, sort: str | list[str], found: str
) -> None:
    assert figures.found(None, sort=sort) == found.split()


@pytest.mark.parametrize("field", ["count", "small", "price"])
@pytest.mark.parametrize("value", ["3_6", "old", "", "0x24"])
def test_text_that_is_no_number_cannot_be_compared_with_one(figures: Index, field: str, value: str) -> None:
    for where in ({field: value}, {field: {"gte": value}}):
        with pytest.raises((InvalidInput, DestinationError)):
            figures.found(None, where=where)


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({"price": "19.99"}, "a"),
        ({"price": "19.990"}, "a"),
        ({"price": {"gte": "19.99"}}, "a"),
        ({"price": {"lt": "19.99"}}, "b"),
        ({"count": "9007199254740993"}, "a"),
        ({"count": "9007199254740992.0"}, "b"),
    ],
)
def test_number_without_a_mapping_is_the_same_given_as_a_text(index: Index, where: dict[str, Any], found: str) -> None:
    index.apply(
        index.put("a", 1, {"price": 19.99, "count": 9007199254740993}),
        index.put("b", 2, {"price": 5.5, "count": 9007199254740992}),
    )
    index.destination.refresh(index.name)
    assert index.found(None, where=where) == found.split()


def test_number_that_is_ignored_because_no_field_holds_it_is_compared_with_none(
    destination: Destination, name: str
) -> None:
    destination.ensure_index(name, {"properties": {"count": {"type": "long", "ignore_malformed": True}}})
    index = Index(destination, name)
    index.apply(*(index.put(f"d{at}", 1, {"count": each}) for at, each in enumerate([1, "1e999999999", 1e30, "x"])))
    destination.refresh(name)
    assert index.found(None, where={"count": {"gte": 0}}) == ["d0"]


# -- highlights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "marked"),
    [
        ("lovelace", "Ada <mark>Lovelace</mark>"),
        ("lovel", "Ada <mark>Lovelace</mark>"),
        ("lovlace", "Ada <mark>Lovelace</mark>"),
        ("lovelace ada", "<mark>Ada</mark> <mark>Lovelace</mark>"),
    ],
)
def test_highlight_marks_words_their_beginnings_and_misspelt_ones(people: Index, words: str, marked: str) -> None:
    (hit,) = people.destination.search(people.name, words, highlight=["name", "about", "nothing"])
    assert hit.highlights == {"name": marked}


def test_highlight_is_safe_html_of_a_passage(index: Index) -> None:
    word = "<script>alert('a' & \"b\")</script>"
    long = f"{'before it ' * 300}here is the needle & more{' after it' * 300}"
    index.apply(index.put("d1", 1, {"name": f"needle {word}", "long": long, "list": ["hay", "a needle", "hay"]}))
    index.destination.refresh(index.name)
    (hit,) = index.destination.search(index.name, "needle", highlight=("name", "long", "list"))
    escaped = "&lt;script&gt;alert(&#x27;a&#x27; &amp; &quot;b&quot;)&lt;/script&gt;"
    assert hit.highlights["name"] == f"<mark>needle</mark> {escaped}"
    assert hit.highlights["list"] == "a <mark>needle</mark>"
    passage = hit.highlights["long"]
    assert "here is the <mark>needle</mark> &amp; more after it" in passage
    assert passage.startswith("…it before it ")
    assert passage.endswith("after it…")
    assert len(passage) < 250


def test_nothing_is_highlighted_unless_asked_or_where_no_words_are(people: Index) -> None:
    assert all(hit.highlights == {} for hit in people.destination.search(people.name, "first"))
    assert all(hit.highlights == {} for hit in people.destination.search(people.name, None, highlight="name"))


# -- what is not indexed ----------------------------------------------------------------------------------------------

KEPT_ALONE = {
    "dynamic": False,
    "properties": {
        "name": {"type": "text"},
        "settings": {"type": "object", "enabled": False},
        "address": {"properties": {"city": {"type": "keyword"}}},
        "extra": {"dynamic": True, "properties": {"zip": {"type": "integer"}}},
        "about": {"type": "text", "index": False, "fields": {"keyword": {"type": "keyword"}}},
        "notes": {"type": "text", "index": False},
        "town": {"type": "keyword", "index": False},
        "age": {"type": "long", "index": False},
        "born": {"type": "date", "index": False},
        "code": {"type": "keyword", "index": False, "doc_values": False},
        "parts": {"type": "nested", "properties": {"label": {"type": "text"}}},
    },
}


@pytest.fixture
def kept(destination: Destination, name: str) -> Index:
    """Fields that are kept in the document and not indexed, beside others that are."""
    destination.ensure_index(name, KEPT_ALONE)
    index = Index(destination, name)
    ada = {
        "name": "Ada",
        "settings": {"theme": "midnight", "sizes": [{"deep": "bottomless"}]},
        "address": {"city": "London", "street": "hillside"},
        "extra": {"zip": 100, "colour": "crimson"},
        "about": "mathematician",
        "notes": "confidential",
        "town": "totnes",
        "age": 36,
        "born": "1815-12-10",
        "code": "cipher",
        "parts": [{"label": "cogwheel"}],
        "unmapped": "forgotten",
        "n": 5,
    }
    grace = {
        "name": "Grace",
        "settings": {"theme": "aurora"},
        "address": {"street": "abbey"},
        "town": "york",
        "unmapped": "almost",
        "n": 1,
    }
    index.apply(index.put("ada", 1, ada), index.put("grace", 2, grace), index.put("alan", 3, {"settings": ["list"]}))
    destination.refresh(name)
    return index


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("midnight bottomless hillside confidential cipher cogwheel forgotten list", ""),
        ("ada", "ada"),
        ("London", "ada"),
        ("crimson", "ada"),
        ("mathematician", "ada"),
        ("totnes", "ada"),
    ],
)
def test_words_of_what_is_not_indexed_find_nothing(kept: Index, words: str, found: str) -> None:
    assert kept.found(words) == found.split()


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({"settings": "list"}, ""),
        ({"settings.theme": "midnight"}, ""),
        ({"settings.theme": {"gte": "a"}}, ""),
        ({"address.street": "hillside"}, ""),
        ({"unmapped": "forgotten"}, ""),
        ({"n": 5}, ""),
        ({"address.city": "London"}, "ada"),
        ({"extra.colour": "crimson"}, "ada"),
        ({"about": "mathematician"}, "ada"),
        ({"town": "totnes"}, "ada"),  # by the values that are kept for the order
        ({"age": {"gte": 36}}, "ada"),
        ({"born": "1815-12-10"}, "ada"),
    ],
)
def test_no_document_passes_a_filter_of_what_is_not_indexed(kept: Index, where: dict[str, Any], found: str) -> None:
    assert kept.found(None, where=where) == found.split()


@pytest.mark.parametrize("sort", ["settings", "settings.theme", "address.street", "unmapped", "n"])
def test_what_is_not_indexed_gives_no_order(kept: Index, sort: str) -> None:
    assert kept.found(None, sort=[sort, "town"]) == ["ada", "grace", "alan"]
    assert kept.found(None, sort=[f"-{sort}", "town"]) == ["ada", "grace", "alan"]


def test_words_of_what_is_not_indexed_are_not_highlighted(kept: Index) -> None:
    words = "ada midnight hillside crimson mathematician confidential forgotten"
    paths = ["name", "settings", "settings.theme", "address.street", "extra.colour", "about", "notes", "unmapped"]
    (hit,) = kept.destination.search(kept.name, words, highlight=paths)
    assert hit.highlights == {"name": "<mark>Ada</mark>", "extra.colour": "<mark>crimson</mark>"}


@pytest.mark.parametrize("options", [{"where": {"code": "cipher"}}, {"sort": "code"}])
def test_field_without_index_and_doc_values_cannot_be_compared(kept: Index, options: dict[str, Any]) -> None:
    with pytest.raises((InvalidInput, DestinationError)):
        kept.found(None, **options)


# -- what cannot be asked ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"where": {"about": "first"}}, "field 'about' is of type text, which can be searched for words alone"),
        ({"sort": "-about"}, "field 'about' is of type text, which can be searched for words alone"),
        ({"where": {"parts.size": 1}}, "field 'parts.size' is part of the nested objects 'parts'"),
        ({"sort": "parts.size"}, "field 'parts.size' is part of the nested objects 'parts'"),
        ({"highlight": "town"}, "field 'town' is not of type text"),
        ({"where": {"age": None}}, "field 'age' cannot be compared with None"),
        ({"where": {"age": [1, None]}}, "field 'age' cannot be compared with None"),
        ({"where": {"age": {"gte": 1, "from": 2}}}, "is no range; use gt, gte, lt, lte"),
        ({"where": {"age": {}}}, "{} is no range; use gt, gte, lt, lte"),
        ({"where": {"age": float("nan")}}, "'age': is nan"),
        ({"where": {"age": {"gt": Decimal("1E+400")}}}, "field 'age' cannot be compared with Decimal"),
        ({"where": {"na*": 1}}, r"'na\*' is no name of a field"),
        ({"where": {"_id": "ada"}}, "'_id' is no name of a field"),
        ({"sort": ["age", 1]}, "1 is no name of a field"),
        ({"fields": ["a,b"]}, "'a,b' is no name of a field"),
        ({"highlight": [""]}, "'' is no name of a field"),
        ({"offset": -1}, "offset -1 must be a whole number of 0 or more"),
        ({"limit": "10"}, "limit '10' must be a whole number of 0 or more"),
        ({"offset": 9_991, "limit": 10}, "beyond the first 10,000 matches"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_the_same_words(mapped: Index, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        mapped.destination.search(mapped.name, "first", **options)


def test_pages_reach_to_the_last_match_that_can_be_asked_for(people: Index) -> None:
    assert people.found("first", offset=9_990, limit=10) == []

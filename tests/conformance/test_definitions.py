"""What an index was made with differs in nothing from what it was made with, and is added to only as it can be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from outbox.destinations.base import Destination
from outbox.destinations.differences import Difference, differences
from outbox.errors import DestinationError, IndexMissing
from tests.conformance.definitions import (
    ADDED,
    ADDED_AT_THE_TOP,
    BROAD,
    KEYWORD,
    REBUILT,
    REBUILT_AT_THE_TOP,
    SETTINGS,
    before_and_after,
)
from tests.conformance.index import Index, kinds

Mappings = dict[str, Any]


def made(destination: Destination, name: str, mappings: Mappings, settings: Mappings | None = None) -> str:
    """An index as a reindex makes it."""
    destination.create_index(name, mappings, settings or {})
    destination.finish_index(name, settings or {})
    return name


def different(destination: Destination, target: str, mappings: Mappings, settings: Mappings | None = None) -> Any:
    return differences(mappings, settings or {}, destination.definition(target, mappings))


def is_embedded(destination: Destination) -> bool:
    return destination.health().product == "embedded"


@pytest.mark.parametrize("mappings", BROAD.values(), ids=BROAD)
def test_index_is_as_it_was_made(destination: Destination, name: str, mappings: Mappings) -> None:
    try:
        target = made(destination, name, mappings)
    except DestinationError as error:
        if destination.health().product == "elasticsearch":
            raise
        pytest.skip(str(error))  # another product, which lacks one of the types
    assert [str(each) for each in different(destination, target, mappings)] == []
    by_first_row = destination.ensure_index(f"{name}-first", mappings)
    assert [str(each) for each in different(destination, by_first_row, mappings)] == []


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_index_has_the_settings_that_it_was_made_with(destination: Destination, name: str, settings: Mappings) -> None:
    mappings = {"properties": {"k": KEYWORD}}
    target = made(destination, name, mappings, settings)
    assert [str(each) for each in different(destination, target, mappings, settings)] == []


def test_what_can_be_added_is(destination: Destination, name: str) -> None:
    before, after = before_and_after(ADDED)
    target = made(destination, name, before)
    found = different(destination, target, after)
    assert [str(each) for each in found if not each.additive] == []
    if not is_embedded(destination):  # which keeps no parameter that is left out
        assert {each.what.partition(".")[0] for each in found} == ADDED.keys()
    for each in found:
        destination.amend_index(target, each.mappings, {})
    assert [str(each) for each in different(destination, target, after)] == []


def test_what_takes_a_rebuild_is_refused(destination: Destination, name: str) -> None:
    if is_embedded(destination):
        pytest.skip("it keeps no parameter that is left out")
    before, after = before_and_after(REBUILT)
    target = made(destination, name, before)
    found = different(destination, target, after)
    assert [str(each) for each in found if each.additive] == []
    assert {each.what.partition(".")[0] for each in found} == REBUILT.keys()
    for field, rule in after["properties"].items():
        if field != "object_enabled":  # is taken, and changes nothing
            with pytest.raises(DestinationError, match=f"index {name} cannot be changed"):
                destination.amend_index(target, {"properties": {field: rule}}, {})
    assert [str(each) for each in different(destination, target, before)] == []


@pytest.mark.parametrize(("before", "after"), [*ADDED_AT_THE_TOP, *REBUILT_AT_THE_TOP], ids=str)
def test_what_is_said_of_the_mappings_as_a_whole(
    destination: Destination, name: str, before: Mappings, after: Mappings
) -> None:
    fields = {"properties": {"k": KEYWORD}}
    target = made(destination, name, before | fields)
    found = different(destination, target, after | fields)
    assert {each.what for each in found} == after.keys()
    assert {each.additive for each in found} == {(before, after) in ADDED_AT_THE_TOP}
    for each in found:
        destination.amend_index(target, each.mappings, {})
    assert different(destination, target, after | fields) == [each for each in found if not each.additive]


def test_type_that_changed_is_refused_and_a_new_field_is_checked(destination: Destination, name: str) -> None:
    target = made(destination, name, {"dynamic": "strict", "properties": {"age": {"type": "long"}}})
    index = Index(destination, name)
    index.target = target
    with pytest.raises(DestinationError, match="cannot be changed"):
        destination.amend_index(target, {"properties": {"age": KEYWORD}}, {})
    destination.amend_index(target, {"properties": {"born": {"type": "date"}}}, {})
    outcomes = index.apply(index.put("a", 1, {"born": "2026-01-01"}), index.put("b", 1, {"born": "soon"}))
    assert [str(each) for each in kinds(outcomes)] == ["applied", "rejected"]


def test_missing_index_has_no_definition(destination: Destination, name: str) -> None:
    destination.ensure_index(f"{name}-other")
    with pytest.raises((IndexMissing, DestinationError), match=name):
        destination.definition(name, {})
    with pytest.raises((IndexMissing, DestinationError), match=name):
        destination.amend_index(name, {"properties": {"k": KEYWORD}}, {})


def test_many_fields_whose_defaults_are_asked_for(destination: Destination, name: str) -> None:
    fields = {f"a_field_with_a_rather_long_name_{n}": {"type": "keyword", "doc_values": True} for n in range(300)}
    mappings = {"properties": fields}
    target = made(destination, name, mappings)
    assert different(destination, target, mappings) == []
    changed = json.loads(json.dumps(mappings).replace("true", "false"))
    if not is_embedded(destination):
        assert len(different(destination, target, changed)) == 300


def test_settings_that_change_in_place_and_those_that_do_not(destination: Destination, name: str) -> None:
    target = made(destination, name, {})
    settings = {"refresh_interval": "9s", "index": {"max_result_window": 5, "codec": "best_compression"}}
    found: list[Difference] = different(destination, target, {}, settings)
    if is_embedded(destination):
        assert found == []  # it has none
        return
    assert {each.what: each.additive for each in found} == {
        "index.refresh_interval": True,
        "index.max_result_window": True,
        "index.codec": False,
    }
    for each in found:
        if each.additive:
            destination.amend_index(target, {}, each.settings)
    assert [str(each) for each in different(destination, target, {}, settings)] == [
        "index.codec is default, registered as best_compression"
    ]
    with pytest.raises(DestinationError, match="cannot be changed"):
        destination.amend_index(target, {}, {"codec": "best_compression"})

"""Mappings made of the types of columns: which, and that no row which the database takes is refused by them."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import pytest
from sqlalchemy.orm import sessionmaker

from outbox import ConfigurationError, DerivedMappings, EntityRegistry, check
from tests.mappings.models import DERIVED, KEYWORD, ON_POSTGRESQL, TEXT, Base, Cat, Dog, Owner, Part, Thing
from tests.support.outbox import Outbox
from tests.support.places import Place


def mappings(fields: list[str], given: Any = "derived", **more: Any) -> dict[str, Any]:
    registry = EntityRegistry()
    registry.add(Thing, index="things", fields=fields, mappings=given, **more)
    options = registry.index_options("things")
    assert options
    return options[0]


@pytest.mark.parametrize("field", DERIVED)
def test_type_of_a_column_has_its_mapping(field: str) -> None:
    assert mappings([field]) == {"dynamic": "strict", "properties": {field: DERIVED[field][0]}}


def test_paths_are_objects_and_the_tenant_is_a_keyword() -> None:
    found = mappings(["id", "owner.name", "owner.since", "parts.label", "parts.price"], tenant="tenant")
    assert found["properties"] == {
        "tenantId": KEYWORD,
        "id": {"type": "long"},
        "owner": {"properties": {"name": TEXT, "since": {"type": "date"}}},
        "parts": {"properties": {"label": TEXT, "price": {"type": "double"}}},
    }


def test_what_is_explicit_comes_first() -> None:
    explicit = {
        "dynamic": False,
        "_meta": {"team": "search"},
        "properties": {
            "id": KEYWORD,
            "text": {"analyzer": "simple", "fields": {"length": {"type": "long"}}},
            "owner.name": {"type": "text"},
            "parts": {"type": "nested", "properties": {"label": {"copy_to": "everything"}}},
            "everything": {"type": "text"},
            "anything": {"type": "flattened"},
        },
    }
    found = mappings(["id", "text", "owner.name", "owner.id", "parts.label", "anything"], DerivedMappings(explicit))
    assert found == {
        "dynamic": False,
        "_meta": {"team": "search"},
        "properties": {
            "id": KEYWORD,
            "text": {**TEXT, "analyzer": "simple", "fields": {**TEXT["fields"], "length": {"type": "long"}}},
            "owner": {"properties": {"name": {"type": "text"}, "id": {"type": "long"}}},
            "parts": {"type": "nested", "properties": {"label": {**TEXT, "copy_to": "everything"}}},
            "everything": {"type": "text"},
            "anything": {"type": "flattened"},
        },
    }


@pytest.mark.parametrize(
    ("field", "what"),
    [("loud", "is no column"), ("quiet", "is no column"), ("json_text", r"is of type JsonText\(\)")],
)
def test_field_whose_type_cannot_be_told_is_refused_with_what_to_write(field: str, what: str) -> None:
    with pytest.raises(
        ConfigurationError, match=f"entity 'things': field '{field}' {what}, so that no mapping"
    ) as error:
        mappings([field])
    written = str(error.value).rpartition("mappings=")[2]
    given = eval(written, {"DerivedMappings": DerivedMappings})
    assert mappings([field], given)["properties"] == {field: KEYWORD}


def test_mappings_of_a_function_or_of_another_word_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="derived from fields, and to_document may make anything"):
        EntityRegistry().add(Thing, index="things", to_document=dict, mappings="derived")
    with pytest.raises(ConfigurationError, match=r"must be a dict, 'derived', or .*, not 'strict'"):
        mappings(["id"], "strict")


def test_entities_that_share_an_index_have_the_fields_of_both() -> None:
    registry = EntityRegistry()
    registry.add(Dog, index="pets", fields=["name", "bark"], name="dogs", mappings="derived")
    registry.add(Cat, index="pets", fields=["name", "lives"], name="cats", mappings="derived")
    options = registry.index_options("pets")
    assert options
    assert options[0]["properties"].keys() == {"name", "bark", "lives"}
    with pytest.raises(ConfigurationError, match="derive field 'age' as long and as text; give both the same"):
        other = EntityRegistry()
        other.add(Dog, index="pets", fields=["age"], name="dogs", mappings="derived")
        other.add(Cat, index="pets", fields=["age"], name="cats", mappings="derived")


def test_every_value_that_the_database_takes_is_delivered(outbox: Outbox, place: Place) -> None:
    Base.metadata.create_all(outbox.engine)
    registry = EntityRegistry()
    fields = [*DERIVED, "owner.name", "owner.since", "parts.label", "parts.price"]
    registry.add(Thing, index="things", fields=fields, tenant="tenant", mappings="derived")
    sessions = registry.capture(sessionmaker(outbox.engine))
    columns = {name: values for name, (_, values) in DERIVED.items() if values}
    if outbox.engine.dialect.name == "postgresql":
        columns |= ON_POSTGRESQL
    rows = [
        {name: value for name, value in zip(columns, row, strict=True) if value is not None}
        for row in zip_longest(*columns.values())
    ]
    with sessions.begin() as session:
        session.add_all(Thing(**row) for row in rows)
        session.add(Thing(owner=Owner(name="Ada"), parts=[Part(label="a", price=1), Part()]))
    relay = outbox.relay(place.destination, registry=registry)
    while relay.run_once():
        pass
    assert [each["error"] for each in outbox.dead()] == []
    assert len(place.documents("things")) == len(rows) + 1
    assert check.mappings(outbox.engine, place.destination, registry) == []

"""Where documents stand: Python and the database make the same place of a row, and no two rows share one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, insert, select

from outbox import EntityRegistry, InvalidName
from outbox.entities import keys
from outbox.entities.entity import Entity
from tests.entities.world import Base, Colour, Contact, Doc, Note, Part, Word

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20)
nasty = st.text(st.sampled_from(["|", "\\", "'", '"', ":", "%", "é", "😀", "a", "1", " "]), min_size=1, max_size=8)
printable = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)


@settings(deadline=None)
@given(st.lists(words | nasty | st.just(""), min_size=1, max_size=4))
def test_any_parts_of_a_key_come_back(parts: list[str]) -> None:
    assert keys.split(keys.join(parts), len(parts)) == parts


@settings(deadline=None)
@given(nasty, st.integers(2, 3))
def test_text_that_is_no_key_is_known_as_such(given_text: str, number: int) -> None:
    parts = keys.split(given_text, number)
    assert parts is None or keys.join(parts) == given_text


@settings(deadline=None)
@given(st.tuples(printable | nasty.filter(str.isprintable), words), st.tuples(printable, words))
def test_prefixed_ids_of_two_tenants_never_meet(one: tuple[str, str], other: tuple[str, str]) -> None:
    places = [
        keys.place("contacts", keys.Tenancy.PREFIXED, tenant, id_text).document_id for tenant, id_text in (one, other)
    ]
    assert (places[0] == places[1]) == (one == other)
    assert [keys.id_text_of(keys.Tenancy.PREFIXED, place) for place in places] == [one[1], other[1]]


@pytest.mark.parametrize("tenancy", ["shared", "prefixed", "index"])
@pytest.mark.parametrize("tenant", ["", "x" * 300, "a\nb", "a\x00"])
def test_illegal_tenant_is_refused_in_every_tenancy(registry: EntityRegistry, tenancy: str, tenant: str) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy=tenancy)
    with pytest.raises(InvalidName, match="tenant id"):
        entity.key_of((1,), tenant)


@pytest.mark.parametrize(
    "tenant", ["*", "a,b", "../x", "<x-{now/d}>", "Acme", "x" * 64, "-a", "_all", ".", "é", "a_b", "a\n"]
)
def test_tenant_that_would_leave_its_index_is_refused(registry: EntityRegistry, tenant: str) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy="index")
    with pytest.raises(InvalidName, match="tenant id"):
        entity.key_of((1,), tenant)
    assert entity.key_of((1,), "acme-1") == ("acme-1_contacts", "1", "acme-1")
    assert not entity.index_names(f"{tenant}_contacts")


@pytest.mark.parametrize("tenancy", ["prefixed", "index"])
def test_row_without_a_tenant_has_no_place_where_the_tenant_is_part_of_it(
    registry: EntityRegistry, tenancy: str
) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy=tenancy)
    with pytest.raises(InvalidName, match="has no tenant"):
        entity.key_of((1,), None)


def test_id_beyond_the_limit_of_elasticsearch_is_refused(registry: EntityRegistry) -> None:
    entity = registry.add(Word, index="words", fields=["text"], tenant="tenant_id", tenancy="prefixed")
    with pytest.raises(InvalidName, match="512"):
        entity.key_of(("x" * 510,), "t1")


@pytest.fixture(scope="module")
def memory() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def both_ways(memory: Connection, entity: Entity, **values: Any) -> None:
    """Python and SQL make the same place of a row, and the place leads back to the row."""
    memory.execute(insert(entity.model), values)
    columns = [entity.index_sql(), entity.document_id_sql(), *(() if entity.tenant is None else (entity.tenant_sql(),))]
    made = memory.execute(select(*columns)).one()
    refused = memory.execute(select(entity.refused_sql()).select_from(entity.model)).scalar_one()
    tenant = values.get("tenant_id")
    identity = tuple(values[name] for name in entity.id_key)
    try:
        place = entity.key_of(identity, tenant)
    except InvalidName as error:
        assert made[0] is None or "tenancy" not in str(error)
        assert refused == 1
    else:
        assert not refused
        assert tuple(made[:2]) == place[:2]
        assert entity.tenant is None or made[2] == place.tenant_id
        assert entity.identity_of(place.document_id) == identity
    finally:
        memory.rollback()


tenants = st.sampled_from(["shared", "prefixed", "index"])
edges = st.sampled_from(["-a", "a-", "-", "x" * 63, "x" * 64, "a_b", "A"])
illegal = st.sampled_from([None, "", "a\nb", "a\x00", "\x7f", "x" * 256, "é" * 255])
made_up = printable | nasty.filter(str.isprintable) | st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True)
tenant_ids = illegal | edges | made_up
uuids = st.uuids()


@settings(deadline=None)
@given(tenancy=tenants, tenant_id=tenant_ids, id_=st.integers(-(2**63), 2**63 - 1))
def test_database_makes_the_place_of_an_integer_key(memory: Connection, tenancy: str, tenant_id: str, id_: int) -> None:
    entity = EntityRegistry().add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy=tenancy)
    both_ways(memory, entity, id=id_, name="Ada", tenant_id=tenant_id, archived=False, count=0)


@settings(deadline=None)
@given(tenancy=tenants, tenant_id=tenant_ids, word=words | nasty)
def test_database_makes_the_place_of_a_text_key(memory: Connection, tenancy: str, tenant_id: str, word: str) -> None:
    entity = EntityRegistry().add(Word, index="words", fields=["text"], tenant="tenant_id", tenancy=tenancy)
    both_ways(memory, entity, text=word, tenant_id=tenant_id)


@settings(deadline=None)
@given(tenancy=tenants, tenant_id=uuids, id_=uuids)
def test_database_makes_the_place_of_a_uuid_key(memory: Connection, tenancy: str, tenant_id: UUID, id_: UUID) -> None:
    entity = EntityRegistry().add(Doc, index="docs", fields=["name"], tenant="tenant_id", tenancy=tenancy)
    both_ways(memory, entity, id=id_, name="x", tenant_id=tenant_id)
    both_ways(memory, EntityRegistry().add(Note, index="notes", fields=["name"]), id=str(id_), name="x")


@settings(deadline=None)
@given(
    tenancy=tenants,
    tenant_id=tenant_ids,
    maker=words | nasty | st.just(""),
    number=st.integers(-(2**63), 2**63 - 1),
    serial=uuids,
    colour=st.sampled_from(Colour),
    sku=nasty.map("SKU-".__add__),
)
def test_database_makes_the_place_of_a_composite_key(memory: Connection, tenancy: str, **values: Any) -> None:
    entity = EntityRegistry().add(Part, index="parts", fields=["sku"], tenant="tenant_id", tenancy=tenancy)
    both_ways(memory, entity, **values)


def test_uuid_is_written_with_dashes(registry: EntityRegistry) -> None:
    entity = registry.add(Doc, index="docs", fields=["name"])
    assert entity.key_of((UUID(int=10),)).document_id == "00000000-0000-0000-0000-00000000000a"

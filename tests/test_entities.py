"""The registry: what it refuses, where documents stand, and what the database says of them."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Enum,
    Float,
    ForeignKey,
    String,
    Table,
    TypeDecorator,
    Uuid,
    create_engine,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column, relationship

from outbox import ConfigurationError, DatabaseUnavailable, EntityRegistry, InvalidName
from outbox.entities import keys, loader
from outbox.entities.entity import Entity
from outbox.entities.loader import Loaded, LoadFailed
from outbox.relay.load import from_database
from outbox.store.models import Event


class Base(DeclarativeBase):
    pass


contact_tags = Table(
    "contact_tags",
    Base.metadata,
    Column("contact_id", ForeignKey("contacts.id"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id"), primary_key=True),
)


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("people.id"))
    owner: Mapped[Person | None] = relationship()


class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str | None]
    notes: Mapped[str | None] = mapped_column(deferred=True)
    archived: Mapped[bool] = mapped_column(default=False)
    count: Mapped[int] = mapped_column(default=0)  # named as a method that SQLAlchemy's rows have
    tenant_id: Mapped[str | None]
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    account: Mapped[Account | None] = relationship()
    tags: Mapped[list[Tag]] = relationship(secondary=contact_tags)
    words: Mapped[list[Word]] = relationship()

    @property
    def shout(self) -> str:
        return self.name.upper()


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Guest(Person):
    room: Mapped[str | None]
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "guest"}


class Engineer(Person):
    __tablename__ = "engineers"
    id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
    language: Mapped[str]
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "engineer"}


class Colour(enum.Enum):
    RED = "#f00"
    BLUE = "#00f"


class Sku(TypeDecorator[int]):
    """Stored as an integer, used as a string with a prefix."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: Any) -> Any:
        return value.removeprefix("SKU-")

    def process_result_value(self, value: Any, _dialect: Any) -> Any:
        return f"SKU-{value}"


class Doc(Base):
    __tablename__ = "docs"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str]
    tenant_id: Mapped[UUID | None]


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[str] = mapped_column(Uuid(as_uuid=False), primary_key=True)
    name: Mapped[str]


class Part(Base):
    __tablename__ = "parts"
    maker: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    serial: Mapped[UUID] = mapped_column(primary_key=True)
    colour: Mapped[Colour] = mapped_column(Enum(Colour), primary_key=True)
    sku: Mapped[str] = mapped_column(Sku, primary_key=True)
    tenant_id: Mapped[str | None]


class Word(Base):
    __tablename__ = "words"
    text: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str | None]
    contact_id: Mapped[int | None] = mapped_column(ForeignKey("contacts.id"))


@pytest.fixture
def database(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    return engine


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    with Session(database) as made:
        yield made


@pytest.fixture
def registry() -> EntityRegistry:
    return EntityRegistry()


def refresh(entity: Entity, *places: tuple[Any, ...] | str, index: str | None = None) -> list[Event]:
    """Rows as a relay claims them; a place is an _id, or index and _id."""
    named = [place if isinstance(place, tuple) else (index or entity.index, place) for place in places]
    return [
        Event(at, "refresh", index_name, document_id, None, entity.name, 0, 1, 0)
        for at, (index_name, document_id) in enumerate(named, 1)
    ]


def loaded(
    registry: EntityRegistry, session: Session, entity: Entity, *places: tuple[Any, ...] | str, index: str | None = None
) -> list[Any]:
    """What the registry says of each place, documents parsed."""
    session.flush()
    events = refresh(entity, *places, index=index)
    found = from_database(session.connection(), registry, events)
    assert list(found) == [each.id for each in events]
    return [parsed(found[each.id]) for each in events]


def parsed(document: Loaded) -> Any:
    return json.loads(document) if isinstance(document, bytes) else document


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """The SELECTs that were executed meanwhile."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith("SELECT"):
            seen.append(sql)

    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


# -- what is refused at registration ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"fields": ["name", "emial"]}, r"no attribute 'emial'; did you mean 'email'\?"),
        ({"fields": ["account.nmae"]}, r"field 'account.nmae': Account has no attribute 'nmae'; did you mean 'name'\?"),
        ({"fields": ["name.first"]}, "Contact.name is no relationship"),
        ({"fields": ["account"]}, r"is a relationship; name fields of it, e.g. account.id"),
        ({"fields": []}, "at least one"),
        ({"fields": "name"}, "list of names"),
        ({}, "either fields or to_document"),
        ({"fields": ["name"], "to_document": dict}, "either fields or to_document"),
        ({"fields": ["name"], "tenant": "tennant_id"}, r"did you mean 'tenant_id'\?"),
        ({"fields": ["name"], "tenant": "account"}, "Contact.account is no column"),
        ({"fields": ["name"], "tenancy": "prefixed"}, "needs tenant="),
        ({"fields": ["name"], "tenancy": "own", "tenant": "tenant_id"}, "'shared', 'prefixed', 'index'"),
        ({"fields": ["name"], "watch": "archived"}, r"watch must be a list of names; use \['archived'\]"),
        ({"fields": ["name"], "watch": ["archive"]}, r"did you mean 'archived'\?"),
        ({"fields": ["name"], "changed_at": "changed"}, "changed_at: Contact has no attribute 'changed'"),
        ({"fields": ["name"], "index": "Contacts"}, "use 'contacts'"),
    ],
)
def test_mistake_in_a_registration_is_named(registry: EntityRegistry, given: dict[str, Any], reason: str) -> None:
    with pytest.raises((ConfigurationError, InvalidName), match=reason):
        registry.add(Contact, **({"index": "contacts"} | given))
    assert len(registry) == 0


@pytest.mark.parametrize("model", [Contact.__table__, "Contact", Contact(name="Ada"), dict])
def test_what_is_no_model_cannot_be_registered(registry: EntityRegistry, model: Any) -> None:
    with pytest.raises(ConfigurationError, match="no mapped class"):
        registry.add(model, index="contacts", fields=["name"])


def test_key_of_a_type_without_a_text_form_is_refused(registry: EntityRegistry) -> None:
    class Other(DeclarativeBase):
        pass

    class Point(Other):
        __tablename__ = "points"
        at: Mapped[float] = mapped_column(Float, primary_key=True)

    with pytest.raises(ConfigurationError, match=r"Point.at is of type Float\(\)"):
        registry.add(Point, index="points", fields=["at"])


def test_two_entities_need_two_names(registry: EntityRegistry) -> None:
    registry.add(Contact, index="contacts", fields=["name"])
    with pytest.raises(ConfigurationError, match="'contacts' is registered already, of Contact; pass name="):
        registry.add(Contact, index="people", fields=["name"])
    registry.add(Contact, index="people", fields=["name"], name="people")
    with pytest.raises(
        ConfigurationError, match=r"no entity 'poeple' is registered; registered are .*; did you mean 'people'\?"
    ):
        registry["poeple"]


def test_two_entities_on_one_index_need_the_same_mappings(registry: EntityRegistry) -> None:
    registry.add(Contact, index="people", fields=["name"], mappings={"dynamic": "strict"})
    with pytest.raises(ConfigurationError, match="share the index 'people', but not its mappings"):
        registry.add(Person, index="people", fields=["name"])
    registry.add(Person, index="people", fields=["name"], mappings={"dynamic": "strict"})
    assert [entity.name for entity in registry.of_index("people")] == ["contacts", "people"]


def test_index_that_a_tenant_could_have_is_refused_to_another_entity(registry: EntityRegistry) -> None:
    registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy="index")
    with pytest.raises(ConfigurationError, match="index of one tenant is the index of the other"):
        registry.add(Tag, index="acme_contacts", fields=["label"])
    registry.add(Tag, index="contacts", fields=["label"])  # no tenant's


def test_index_options_know_the_tenant_field_and_the_indexes_of_tenants(registry: EntityRegistry) -> None:
    registry.add(
        Contact,
        index="contacts",
        fields=["name"],
        tenant="tenant_id",
        tenancy="index",
        mappings={"dynamic": False, "properties": {"name": {"type": "text"}}},
        settings={"number_of_replicas": 0},
    )
    registry.add(Tag, index="tags", fields=["label"])
    options = (
        {"dynamic": False, "properties": {"tenantId": {"type": "keyword"}, "name": {"type": "text"}}},
        {"number_of_replicas": 0},
    )
    assert registry.index_options("t1_contacts") == options
    assert registry.index_options("contacts") is None
    assert registry.index_options("T1_contacts") is None
    assert registry.index_options("a_b_contacts") is None
    assert registry.index_options("tags") == ({}, {})


# -- where documents stand --------------------------------------------------------------------------------------

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
    identity = tuple(values[name] for name in entity.key)
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


# -- loading ----------------------------------------------------------------------------------------------------


def test_only_listed_fields_and_the_tenant_are_sent(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name", "email"], tenant="tenant_id")
    session.add_all([Contact(id=1, name="Ada", tenant_id="t1", notes="secret"), Contact(id=2, name="Bob")])
    assert loaded(registry, session, entity, "1", "2") == [
        {"name": "Ada", "email": None, "tenantId": "t1"},
        {"name": "Bob", "email": None},
    ]


def test_columns_are_read_in_one_query_for_all_rows_and_nothing_else(
    registry: EntityRegistry, session: Session, database: Engine
) -> None:
    contacts = registry.add(Contact, index="contacts", fields=["name"], when=lambda row: not row.archived)
    tags = registry.add(Tag, index="tags", fields=["label"])
    session.add_all([Contact(name="Ada", count=7) for _ in range(50)] + [Tag(label="x") for _ in range(50)])
    session.commit()
    events = refresh(contacts, *map(str, range(1, 51))) + [
        each._replace(id=each.id + 50) for each in refresh(tags, *map(str, range(1, 51)))
    ]
    made: list[Any] = []
    event.listen(Contact, "load", lambda *arguments: made.append(arguments))
    with database.connect() as connection, statements(database) as seen:
        found = from_database(connection, registry, events)
    assert len(found) == 100
    assert all(isinstance(document, bytes) for document in found.values())
    assert len(seen) == 2
    assert made == []


def test_rows_of_one_document_get_the_same_content(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"])
    session.add(Contact(id=1, name="Ada"))
    assert loaded(registry, session, entity, "1", "1", "1") == [{"name": "Ada"}] * 3


def test_row_that_is_not_there_or_excluded_has_no_document(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(
        Contact, index="contacts", fields=["name"], when=lambda row: not row.archived and row.count < 5
    )
    session.add_all(
        [Contact(id=1, name="Ada"), Contact(id=2, name="Bob", archived=True), Contact(id=3, name="C", count=9)]
    )
    assert loaded(registry, session, entity, "1", "2", "3", "4") == [{"name": "Ada"}, None, None, None]


@pytest.mark.parametrize("document_id", ["x", "", "01", " 1", "1 ", "1.0", "9" * 30, "1|2", "½", "1\x00"])
def test_id_that_no_row_has_has_no_document(registry: EntityRegistry, session: Session, document_id: str) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"])
    session.add(Contact(id=1, name="Ada"))
    assert loaded(registry, session, entity, document_id, "1") == [None, {"name": "Ada"}]


@pytest.mark.parametrize(
    ("tenancy", "old", "new"),
    [
        ("prefixed", ("contacts", "2:t1:1"), ("contacts", "2:t2:1")),
        ("index", ("t1_contacts", "1"), ("t2_contacts", "1")),
    ],
)
def test_row_that_changed_tenant_stands_only_under_the_new_one(
    registry: EntityRegistry, session: Session, tenancy: str, old: tuple[str, str], new: tuple[str, str]
) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy=tenancy)
    session.add(Contact(id=1, name="Ada", tenant_id="t1"))
    assert loaded(registry, session, entity, old, new) == [{"name": "Ada", "tenantId": "t1"}, None]
    session.execute(update(Contact).values(tenant_id="t2"))
    assert loaded(registry, session, entity, old, new) == [None, {"name": "Ada", "tenantId": "t2"}]
    session.execute(update(Contact).values(tenant_id="*" * 300))
    assert loaded(registry, session, entity, old, new) == [None, None]


def test_other_tenants_document_is_not_loaded_under_a_shared_suffix(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Word, index="words", fields=["text"], tenant="tenant_id", tenancy="prefixed")
    session.add(Word(text="t1:7", tenant_id="a"))
    assert loaded(registry, session, entity, "1:a:t1:7", "4:a:t1:7", "1:a:7") == [
        {"text": "t1:7", "tenantId": "a"},
        None,
        None,
    ]


def test_paths_lead_through_relationships(registry: EntityRegistry, session: Session, database: Engine) -> None:
    entity = registry.add(
        Contact,
        index="contacts",
        fields=["name", "notes", "account.name", "account.owner.name", "tags.label", "tags.id"],
    )
    owner = Engineer(id=1, name="Grace", language="COBOL")
    tags = [Tag(id=2, label="b"), Tag(id=1, label="a")]
    for at in range(1, 21):
        account = Account(id=at, name=f"Acme {at}", owner=owner)
        session.add(Contact(id=at, name="Ada", notes="n", account=account, tags=tags))
    session.add(Contact(id=21, name="Bob"))
    session.commit()
    with statements(database) as seen:
        documents = loaded(registry, session, entity, *map(str, range(1, 22)))
    assert documents[6] == {
        "name": "Ada",
        "notes": "n",
        "account": {"name": "Acme 7", "owner": {"name": "Grace"}},
        "tags": [{"id": 1, "label": "a"}, {"id": 2, "label": "b"}],
    }
    assert documents[20] == {"name": "Bob", "notes": None, "account": None, "tags": []}
    assert len(seen) == 2  # the objects with what is to-one, and the tags


def test_members_of_a_list_come_in_the_order_of_their_keys(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Contact, index="contacts", fields=["words.text"])
    session.add(Contact(id=1, name="Ada"))
    for word in "bca":
        session.add(Word(text=word, contact_id=1))
        session.flush()
    session.expire_all()
    assert loaded(registry, session, entity, "1") == [{"words": [{"text": "a"}, {"text": "b"}, {"text": "c"}]}]


def test_plain_property_of_the_model_can_be_a_field(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Contact, index="contacts", fields=["shout"])
    session.add(Contact(id=1, name="Ada"))
    assert loaded(registry, session, entity, "1") == [{"shout": "ADA"}]


def test_function_gets_the_object_with_what_the_load_options_bring(
    registry: EntityRegistry, session: Session, database: Engine
) -> None:
    entity = registry.add(
        Contact,
        index="contacts",
        to_document=lambda contact: {"title": f"{contact.name} of {contact.account.name}", "tenantId": "forged"},
        when=lambda contact: contact.account is not None,
        tenant="tenant_id",
        load_options=[joinedload(Contact.account)],
    )
    for at in range(1, 6):
        session.add(Contact(id=at, name="Ada", tenant_id="t1", account=Account(id=at, name="Acme")))
    session.add(Contact(id=6, name="Bob"))
    session.commit()
    with statements(database) as seen:
        documents = loaded(registry, session, entity, *"123456")
    assert documents == [{"title": "Ada of Acme", "tenantId": "t1"}] * 5 + [None]
    assert len(seen) == 1


def test_failure_to_make_a_document_fails_only_that_document(registry: EntityRegistry, session: Session) -> None:
    def make(contact: Contact) -> Any:
        if contact.name == "none":
            return None
        return {"half": 1 / contact.count, "name": contact.name if contact.name != "nan" else float("nan")}

    entity = registry.add(Contact, index="contacts", to_document=make)
    for at, (name, count) in enumerate([("Ada", 1), ("zero", 0), ("nan", 1), ("none", 1), ("Bob", 2)], 1):
        session.add(Contact(id=at, name=name, count=count))
    assert loaded(registry, session, entity, *"12345") == [
        {"half": 1.0, "name": "Ada"},
        LoadFailed("to_document_failed", "ZeroDivisionError: division by zero"),
        LoadFailed(
            "invalid_document",
            "document field 'name': is nan, which JSON cannot express; use None or leave the field out",
        ),
        LoadFailed("invalid_document", "a document must be a mapping, this is None; pass a dict"),
        {"half": 0.5, "name": "Bob"},
    ]


def test_when_that_raises_fails_only_that_document(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"], when=lambda row: row.email.endswith("example"))
    session.add_all([Contact(id=1, name="Ada", email="a@b.example"), Contact(id=2, name="Bob")])
    found = loaded(registry, session, entity, "1", "2")
    assert found[0] == {"name": "Ada"}
    assert found[1].error_type == "when_failed"


@pytest.mark.parametrize("fields", [["name"], ["name", "account.name"]])
def test_text_that_another_program_wrote_in_latin_1_fails_alone(
    registry: EntityRegistry, session: Session, fields: list[str]
) -> None:
    entity = registry.add(Contact, index="contacts", fields=fields)
    session.add_all([Contact(id=at, name="Ada") for at in range(1, 10)])
    session.flush()
    session.execute(text("UPDATE contacts SET name = CAST(x'4dfc6c6c6572' AS TEXT) WHERE id = 4"))
    found = loaded(registry, session, entity, *"123456789")
    assert found[3].error_type == "load_failed"
    assert found[3].error.startswith("OperationalError: Could not decode to UTF-8")
    assert [each["name"] for each in found if each is not found[3]] == ["Ada"] * 8
    rows = loader.page(session.connection(), entity, loader.Part(), None, 100)
    assert [row.document for row in rows if isinstance(row.document, LoadFailed)] == [found[3]]
    assert len(rows) == 9


@pytest.mark.parametrize("fields", [["name", "created"], ["name", "created", "shout"]])
def test_row_that_cannot_be_read_fails_alone(engine: Engine, registry: EntityRegistry, fields: list[str]) -> None:
    class Other(DeclarativeBase):
        pass

    class Event_(Other):
        __tablename__ = "events"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        created: Mapped[datetime]

        @property
        def shout(self) -> str:
            return self.name.upper()

    Other.metadata.create_all(engine)
    entity = registry.add(Event_, index="events", fields=fields)
    with Session(engine) as session:
        for at in range(1, 10):
            created = "yesterday" if at == 4 else "2026-01-02 03:04:05.000000"
            session.execute(text("INSERT INTO events VALUES (:id, 'x', :at)"), {"id": at, "at": created})
        found = loaded(registry, session, entity, *"123456789")
    assert found[3].error_type == "load_failed"
    assert [each["created"] for each in found if each is not found[3]] == ["2026-01-02T03:04:05"] * 8


def test_row_of_an_entity_that_is_not_registered_says_what_to_register(
    registry: EntityRegistry, session: Session
) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"])
    events = [each._replace(entity="contcats") for each in refresh(entity, "1")]
    found = from_database(session.connection(), registry, events)[1]
    assert isinstance(found, LoadFailed)
    assert found.error_type == "unknown_entity"
    assert "did you mean 'contacts'?" in found.error
    assert "add it to the registry" in found.error


def test_table_that_is_missing_is_the_databases_failure_not_the_rows(registry: EntityRegistry, engine: Engine) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"])
    with engine.connect() as connection, pytest.raises(DatabaseUnavailable, match="'contacts' cannot be loaded"):
        from_database(connection, registry, refresh(entity, "1"))


def test_subclass_in_the_same_table_is_told_from_its_siblings(registry: EntityRegistry, session: Session) -> None:
    guests = registry.add(Guest, index="guests", fields=["name", "room"], name="guests")
    people = registry.add(Person, index="people", fields=["name", "kind"])
    session.add_all([Guest(id=1, name="Ada", room="7"), Person(id=2, name="Bob")])
    assert loaded(registry, session, guests, "1", "2") == [{"name": "Ada", "room": "7"}, None]
    assert loaded(registry, session, people, "1", "2") == [
        {"name": "Ada", "kind": "guest"},
        {"name": "Bob", "kind": "person"},
    ]


@pytest.mark.parametrize(
    "given", [{"fields": ["name", "language"]}, {"to_document": lambda e: {"name": e.name, "language": e.language}}]
)
def test_subclass_in_a_table_of_its_own_has_the_fields_of_both(
    registry: EntityRegistry, session: Session, given: dict[str, Any]
) -> None:
    entity = registry.add(Engineer, index="engineers", **given)
    session.add_all([Engineer(id=1, name="Grace", language="COBOL"), Person(id=2, name="Bob")])
    assert loaded(registry, session, entity, "1", "2") == [{"name": "Grace", "language": "COBOL"}, None]


@pytest.mark.parametrize("given", [{"fields": ["sku"]}, {"to_document": lambda part: {"sku": part.sku}}])
def test_row_with_a_composite_key_is_found_by_all_its_parts(
    registry: EntityRegistry, session: Session, given: dict[str, Any]
) -> None:
    entity = registry.add(Part, index="parts", **given)
    identities: list[Sequence[Any]] = [
        ("a|b", 1, UUID(int=1), Colour.RED, "SKU-1"),
        ("a", 1, UUID(int=1), Colour.RED, "SKU-2"),
        ("a|b", 1, UUID(int=1), Colour.BLUE, "SKU-1"),
    ]
    for identity in identities[:2]:
        session.add(Part(**dict(zip(entity.key, identity, strict=True))))
    ids = [entity.key_of(identity).document_id for identity in identities]
    assert ids[0] == "a\\|b|1|00000000-0000-0000-0000-000000000001|RED|1"
    assert loaded(registry, session, entity, *ids, "a|b|1", "\\x|1|a|GREEN|1") == [
        {"sku": "SKU-1"},
        {"sku": "SKU-2"},
        None,
        None,
        None,
    ]


def test_uuid_key_is_found(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Doc, index="docs", fields=["name", "id"], tenant="tenant_id")
    session.add(Doc(id=UUID(int=1), name="x", tenant_id=UUID(int=2)))
    assert loaded(registry, session, entity, str(UUID(int=1)), str(UUID(int=3)), "1" * 32) == [
        {"name": "x", "id": str(UUID(int=1)), "tenantId": str(UUID(int=2))},
        None,
        None,
    ]


def test_ten_thousand_rows_are_one_batch(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Part, index="parts", fields=["number"])
    ids = [entity.key_of(("m", at, UUID(int=at), Colour.RED, "SKU-1")).document_id for at in range(10_000)]
    session.execute(
        insert(Part),
        [
            {"maker": "m", "number": at, "serial": UUID(int=at), "colour": Colour.RED, "sku": "SKU-1"}
            for at in range(10_000)
        ],
    )
    assert [each["number"] for each in loaded(registry, session, entity, *ids)] == list(range(10_000))


def test_two_sessions_with_stale_memory_of_each_other_both_reach_the_index(
    registry: EntityRegistry, database: Engine
) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name", "email"])
    with Session(database, expire_on_commit=False) as one, Session(database, expire_on_commit=False) as two:
        one.add(Contact(id=1, name="Ada", email="old"))
        one.commit()
        theirs = two.get_one(Contact, 1)
        two.commit()
        mine = one.get_one(Contact, 1)
        mine.name = "Grace"
        one.commit()
        theirs.email = "new"
        two.commit()
        assert (mine.email, theirs.name) == ("old", "Ada")
        assert loaded(registry, one, entity, "1") == [{"name": "Grace", "email": "new"}]


def test_loading_leaves_the_callers_transaction_alone(registry: EntityRegistry, database: Engine) -> None:
    fields = registry.add(Contact, index="contacts", fields=["name"])
    objects = registry.add(Contact, index="objects", name="objects", to_document=lambda contact: {"name": contact.name})
    with database.connect() as connection:
        connection.execute(insert(Contact), {"id": 1, "name": "Ada", "archived": False, "count": 0})
        for entity in (fields, objects):
            assert from_database(connection, registry, refresh(entity, "1"))[1] == b'{"name":"Ada"}'
        assert connection.in_transaction()
        connection.rollback()
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for entity in (fields, objects):
            assert from_database(connection, registry, refresh(entity, "1"))[1] is None


def test_registry_needs_neither_relay_nor_elasticsearch() -> None:
    unwanted = ("elasticsearch", "click", "alembic", "loguru")
    code = f"import sys, outbox.entities; print([m for m in {unwanted} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

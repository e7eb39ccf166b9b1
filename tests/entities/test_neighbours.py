"""Which entities may share an index, and what may be an `_id`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

import pytest
from sqlalchemy import Connection, Enum, ForeignKey, Index, String, UniqueConstraint, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox import ConfigurationError, EntityRegistry, InvalidName
from outbox.entities import neighbours
from tests.entities.test_places import both_ways
from tests.entities.world import Colour, Contact, Doc, Engineer, Guest, Note, Part, Person, Tag, Word


class Base(DeclarativeBase):
    pass


class Page(Base):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(unique=True)
    code: Mapped[str]
    number: Mapped[int] = mapped_column(unique=True)
    colour: Mapped[Colour] = mapped_column(Enum(Colour), unique=True)
    maybe: Mapped[str | None] = mapped_column(unique=True)
    one: Mapped[str]
    two: Mapped[str]
    some: Mapped[str]
    weight: Mapped[float] = mapped_column(unique=True)
    tenant_id: Mapped[str | None]
    __table_args__ = (
        UniqueConstraint("one", "two"),
        Index("by_code", "code", unique=True),
        Index("by_some", "some", unique=True, sqlite_where=text("id > 7")),
    )


class Event(Base):
    """With a primary key that has no text form."""

    __tablename__ = "events"
    at: Mapped[datetime] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(ForeignKey("pages.slug"), primary_key=True)
    public: Mapped[str] = mapped_column(String(20), unique=True)


@pytest.mark.parametrize("name", ["slug", "code", "number", "colour", "id"])
def test_unique_column_that_is_never_null_can_be_the_id(registry: EntityRegistry, name: str) -> None:
    assert registry.add(Page, index="pages", fields=["slug"], id=name).id_key == (name,)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("maybe", r"id: Page.maybe may be NULL, .* declare it nullable=False"),
        ("one", r"id: Page.one is not unique by itself, .* declare it unique=True, or name another column"),
        ("some", "not unique by itself"),  # of some rows only
        ("tenant_id", "may be NULL"),
        ("weight", r"weight is of type \w+\(\), which has no text form"),
        ("slog", r"no attribute 'slog'; did you mean 'slug'\?"),
        ("page.slug", "'page.slug' is a path; it takes a column of Page"),
    ],
)
def test_column_that_makes_no_id_is_refused(registry: EntityRegistry, name: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        registry.add(Page, index="pages", fields=["slug"], id=name)


@pytest.mark.parametrize(
    ("prefix", "reason"), [("x" * 101, "longer than 100 bytes"), ("a\x00", "NUL"), (7, "no string; use str")]
)
def test_prefix_that_would_make_illegal_ids_is_refused(registry: EntityRegistry, prefix: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=f"id_prefix.*{reason}"):
        registry.add(Page, index="pages", fields=["slug"], id_prefix=prefix)


def test_primary_key_without_a_text_form_needs_an_id_that_has_one(registry: EntityRegistry) -> None:
    assert registry.add(Event, index="events", fields=["kind"], id="public").key_of(("a",)).document_id == "a"
    registry.add(Person, index="people", fields=["name"])


@pytest.fixture(scope="module")
def memory() -> Any:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.mark.parametrize("tenancy", ["shared", "prefixed", "index"])
@pytest.mark.parametrize("prefix", ["", "page-", "a|b\\", "2:t1:", "é%'"])
@pytest.mark.parametrize(
    ("name", "slug"),
    [("number", "x"), ("colour", "x"), ("id", "x")]
    + [("slug", each) for each in ("about", "a|b", "page-7", "2:t1:7", "", "x" * 513)],
)
def test_database_makes_the_place_of_an_id(memory: Connection, tenancy: str, prefix: str, name: str, slug: str) -> None:
    entity = EntityRegistry().add(
        Page, index="pages", fields=["slug"], id=name, id_prefix=prefix, tenant="tenant_id", tenancy=tenancy
    )
    rest = {"code": "c", "one": "1", "two": "2", "some": "3", "weight": 1.5}
    both_ways(memory, entity, id=1, slug=slug, number=-5, colour=Colour.RED, tenant_id="t1", **rest)
    assert entity.identity_of("other-7") is None or not prefix


def test_id_of_another_spelling_is_none_of_an_entity(registry: EntityRegistry) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"], id_prefix="c-")
    assert entity.identity_of("c-7") == (7,)
    assert [entity.identity_of(each) for each in ("7", "c-07", "c- 7", "c-+7", "c-1_0", "C-7", "c-")] == [None] * 7


PREFIXED = {"tenant": "tenant_id", "tenancy": "prefixed"}
OWN = {"tenant": "tenant_id", "tenancy": "index"}


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ((Contact, {}), (Tag, {}), True),
        ((Contact, {}), (Tag, {"id_prefix": "tag-"}), False),
        ((Contact, {"id_prefix": "t"}), (Tag, {"id_prefix": "tag-"}), False),
        ((Contact, {"id_prefix": "1"}), (Tag, {"id_prefix": "12"}), True),
        ((Word, {}), (Tag, {"id_prefix": "tag-"}), True),
        ((Word, {"id_prefix": "word-"}), (Tag, {"id_prefix": "tag-"}), False),
        ((Word, {"id_prefix": "w"}), (Page, {"id": "slug", "id_prefix": "w-"}), True),
        ((Contact, {}), (Doc, {}), False),  # digits, and UUIDs
        ((Note, {}), (Doc, {}), True),
        ((Note, {}), (Contact, {"id_prefix": "fee-"}), True),
        ((Contact, {}), (Part, {}), False),  # no | in digits
        ((Word, {}), (Part, {}), True),
        ((Contact, PREFIXED), (Tag, {}), False),
        ((Contact, PREFIXED), (Word, {}), True),
        ((Contact, PREFIXED), (Word, {"id_prefix": "2"}), True),
        ((Contact, PREFIXED), (Word, {"id_prefix": "2:t1"}), True),
        ((Contact, PREFIXED), (Word, {"id_prefix": "w:"}), False),
        ((Contact, OWN), (Doc, OWN), False),
        ((Contact, OWN), (Word, OWN), True),
        ((Contact, OWN), (Tag, {}), False),  # no index of both
    ],
)
def test_entities_whose_ids_may_meet_cannot_share_an_index(one: Any, other: Any, meet: bool) -> None:
    for pair in ((one, other), (other, one)):
        registry = EntityRegistry()
        (first, given), (second, options) = pair
        fields = [next(iter(first.__table__.primary_key)).name]
        registry.add(first, index="site", fields=fields, **given)
        if meet:
            with pytest.raises(ConfigurationError, match=r"share the index 'site'.*each an id_prefix, e.g. id_prefix="):
                registry.add(second, index="site", to_document=dict, **options)
        else:
            registry.add(second, index="site", to_document=dict, **options)


def test_classes_of_one_table_share_an_index_and_the_subclass_makes_the_document(registry: EntityRegistry) -> None:
    person = registry.add(Person, index="people", fields=["name"])
    guest = registry.add(Guest, index="people", fields=["name", "room"], name="guests")
    engineer = registry.add(Engineer, index="people", fields=["name", "language"], name="engineers")
    assert registry.of_index("people") == [guest, engineer, person]
    assert neighbours.above(person, registry.of_index("people")) == [guest, engineer]
    with pytest.raises(ConfigurationError, match="would never make a document; give 'people' a when="):
        registry.add(Person, index="people", fields=["id"], name="others")
    with pytest.raises(ConfigurationError, match="id_prefix"):
        registry.add(Tag, index="people", fields=["label"])


def test_classes_with_tables_and_keys_of_their_own_are_no_hierarchy_of_one_table(registry: EntityRegistry) -> None:
    class Ship(Base):
        __tablename__ = "ships"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Ferry(Ship):
        __tablename__ = "ferries"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        __mapper_args__: ClassVar[Any] = {"concrete": True}

    registry.add(Ship, index="ships", fields=["name"])
    with pytest.raises(ConfigurationError, match="id_prefix"):
        registry.add(Ferry, index="ships", fields=["name"])


def test_one_model_is_two_entities_of_an_index_by_when(registry: EntityRegistry) -> None:
    registry.add(Contact, index="people", fields=["name"], name="shown", when=lambda contact: not contact.archived)
    registry.add(Contact, index="people", fields=["name", "email"], name="archived")
    assert [entity.name for entity in registry.of_index("people")] == ["shown", "archived"]
    with pytest.raises(InvalidName, match="use 'people'"):
        registry.add(Tag, index="People", fields=["label"])

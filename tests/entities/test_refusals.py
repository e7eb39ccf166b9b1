"""Fields that no document could hold, or that are named by another name: refused with what to write."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, time, timedelta
from typing import Any

import pytest
from sqlalchemy import Enum, ForeignKey, Interval, LargeBinary, PickleType, TypeDecorator, and_, func, select
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    Composite,
    DeclarativeBase,
    Mapped,
    Session,
    column_property,
    composite,
    mapped_column,
    relationship,
    synonym,
)

from outbox import ConfigurationError, Dependency, EntityRegistry
from tests.entities.world import loaded


class Base(DeclarativeBase):
    pass


class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]
    film_id: Mapped[int] = mapped_column(ForeignKey("films.id"))


class Mark(enum.Enum):
    GOOD = b"\x01"


class Seconds(TypeDecorator[int]):
    """Kept as an interval, read as a number."""

    impl = Interval
    cache_ok = True

    def process_result_value(self, value: Any, _dialect: Any) -> Any:
        return None if value is None else value.total_seconds()


@dataclass
class Size:
    width: int
    height: int


class Film(Base):
    __tablename__ = "films"
    id: Mapped[int] = mapped_column(primary_key=True)
    took: Mapped[timedelta | None]
    poster: Mapped[bytes | None] = mapped_column(LargeBinary)
    mark: Mapped[Mark | None] = mapped_column(Enum(Mark))
    length: Mapped[Any] = mapped_column(Seconds, nullable=True)
    anything: Mapped[Any] = mapped_column(PickleType, nullable=True)
    width: Mapped[int] = mapped_column(default=1)
    height: Mapped[int] = mapped_column(default=1)
    size: Composite[Size] = composite("width", "height")
    tags: Mapped[list[Tag]] = relationship()
    lasted: Mapped[timedelta | None] = synonym("took")
    words: Mapped[list[Tag]] = synonym("tags")
    labels: AssociationProxy[list[str]] = association_proxy("tags", "label")

    def as_text(self) -> str:
        return "film"

    @hybrid_property
    def duration(self) -> timedelta | None:
        return self.took

    @property
    def seconds(self) -> float | None:
        return self.took.total_seconds() if self.took else None


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("labels", "Film.labels is an association proxy; name the path that it leads along, 'tags.label'"),
        ("labels.x", "Film.labels is an association proxy"),
        ("words.label", "field 'words.label': Film.words is a synonym; name 'tags' itself"),
        ("lasted", "field 'lasted' has values of type timedelta, which have no JSON form"),
        ("duration", "field 'duration' has values of type timedelta, which have no JSON form"),
        (
            "took",
            "field 'took' has values of type timedelta, which have no JSON form; make the document by to_document",
        ),
        ("poster", "field 'poster' has values of type bytes"),
        ("mark", r"field 'mark': Mark.GOOD has the value b'\\x01', which has no JSON form"),
        ("size", "field 'size' is a composite; name its parts, 'width', 'height'"),
        ("as_text", "Film.as_text is a method; make the document by to_document"),
    ],
)
def test_field_that_no_document_can_hold_is_refused_by_its_name(field: str, reason: str) -> None:
    registry = EntityRegistry()
    with pytest.raises(ConfigurationError, match=reason):
        registry.add(Film, index="films", fields=["id", field])


def test_association_proxy_is_named_as_such_wherever_an_attribute_is_given() -> None:
    with pytest.raises(ConfigurationError, match=r"watch: Film\.labels is an association proxy.*an attribute of Film"):
        EntityRegistry().add(Film, index="films", fields=["id"], watch=["labels"])
    with pytest.raises(ConfigurationError, match=r"watch: 'tags\.label' is a path; it takes attributes of Film"):
        EntityRegistry().add(Film, index="films", fields=["id"], watch=["tags.label"])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (timedelta(1), "document field 'anything.x.0': is of type timedelta"),
        (b"", "document field 'anything.x.0': is of type bytes"),
        (time(1, tzinfo=UTC), "document field 'anything.x.0': is a time with a time zone"),
        ({1, 2}, "document field 'anything.x.0': is of type set"),
        ({1: 2}, "document field 'anything.x.0': has the key 1"),
    ],
)
def test_value_that_no_document_can_hold_is_named_by_its_field(engine: Any, value: Any, reason: str) -> None:
    Base.metadata.create_all(engine)
    registry = EntityRegistry()
    entity = registry.add(Film, index="films", fields=["anything", "seconds", "length"])
    with Session(engine) as session:
        session.add_all([Film(id=1, anything={"x": [value]}), Film(id=2, anything=7, took=timedelta(seconds=5))])
        session.add(Film(id=3, length=timedelta(seconds=5)))
        failed, fine, decorated = loaded(registry, session, entity, "1", "2", "3")
    assert failed.error_type == "invalid_document"
    assert failed.error.startswith(reason)
    assert fine == {"anything": 7, "seconds": 5.0, "length": None}
    assert decorated["length"] == 5.0


def test_synonym_leads_to_no_dependency() -> None:
    with pytest.raises(ConfigurationError, match=r"depends_on Tag: Film\.words is a synonym; name 'tags' itself"):
        EntityRegistry().add(Film, index="films", to_document=lambda _film: {}, depends_on={Tag: "words"})


class Visit(Base):
    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
    guest_id: Mapped[int]


class Guest(Base):
    __tablename__ = "guests"
    id: Mapped[int] = mapped_column(primary_key=True)
    visits = column_property(select(func.count(Visit.id)).where(Visit.guest_id == id).scalar_subquery())
    times: Mapped[int] = synonym("visits")


class Booking(Base):
    __tablename__ = "bookings"
    id: Mapped[int] = mapped_column(primary_key=True)
    guest_id: Mapped[int] = mapped_column(ForeignKey("guests.id"))
    guest: Mapped[Guest] = relationship()
    regular: Mapped[Guest | None] = relationship(
        primaryjoin=and_(guest_id == Guest.id, Guest.id.in_(select(Visit.guest_id))), viewonly=True
    )


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (Guest, {"fields": ["times"]}, "field 'times' reads the table visits; .*, or make the document by to_document"),
        (Guest, {"watch": ["times"]}, "watch 'visits' reads the table visits; name in depends_on the model of it"),
        (Booking, {"watch": ["regular"]}, "watch 'regular' reads the table visits"),
        (Booking, {"depends_on": {Guest: "regular"}}, "relationship 'regular' reads the table visits"),
        (
            Booking,
            {"depends_on": {Guest: Dependency("guest", watch=["times"])}},
            "depends_on Guest: watch 'times' reads the table visits",
        ),
    ],
)
def test_what_reads_a_table_that_nothing_follows_is_refused_wherever_it_is_named(
    model: type[Any], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        EntityRegistry().add(model, index="guests", **({"fields": ["id"]} | options))

"""Attributes that are columns, or stand for some."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    JSON,
    Column,
    Computed,
    FetchedValue,
    Integer,
    PickleType,
    String,
    Table,
    TypeDecorator,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    column_property,
    composite,
    foreign,
    mapped_column,
    query_expression,
    relationship,
    synonym,
)
from sqlalchemy.orm import registry as mappers

from tests.entities.constructs.made import Constructs, Made, registered

COLUMNS = Constructs()
ONE = "UPDATE it SET name = 'sql' WHERE id = 1"
GONE = "DELETE FROM it WHERE id = 1"


def a_base(*above: type[Any]) -> Any:
    return type("Base", (*above, DeclarativeBase), {})


def changing(model: type[Any], **values: Any) -> Any:
    """A change of row 1 in a session."""

    def change(session: Session) -> None:
        found = session.get_one(model, 1)
        for name, value in values.items():
            setattr(found, name, value)

    return change


def removing(model: type[Any]) -> Any:
    return lambda session: session.delete(session.get_one(model, 1))


@COLUMNS.add("column under another name (`mapped_column('full_name')`, `key=`, `column_prefix`)")
def renamed() -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        __mapper_args__ = {"column_prefix": "_"}
        ident: Mapped[int] = mapped_column("id", primary_key=True)
        title: Mapped[str] = mapped_column("name", key="titled")
        __table_args__ = (Column("more", String),)

    made = It.__table__
    return Made(
        It,
        registered(It, fields=["title", "_more"]),
        lambda session: session.add(It(ident=1, title="a", _more="b")),
        [changing(It, title="c"), changing(It, _more="d"), changing(It, ident=2)],
        [
            update(It).values({It.title: "e"}),
            update(It).values({made.c.more: "f"}),
            update(It).where(It.ident == 2).values(ident=3),
            insert(It).values(ident=4, title="g"),
        ],
        ["UPDATE it SET more = 'h'", ONE.replace("1", "3"), "UPDATE it SET id = 1 WHERE id = 3", GONE],
    )


@COLUMNS.add("synonym")
def synonyms() -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        title = synonym("name")

    return Made(
        It,
        registered(It, fields=["title"]),
        lambda session: session.add(It(id=1, title="a")),
        [changing(It, name="b"), changing(It, title="c")],
        [update(It).values({It.title: "d"}), update(It).values(title="e")],
        [ONE, GONE],
    )


@dataclass
class Point:
    x: int
    y: int


def _with_point(fields: list[str]) -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        x: Mapped[int]
        y: Mapped[int]
        at: Mapped[Point] = composite("x", "y")

    return Made(
        It,
        registered(It, fields=fields),
        lambda session: session.add(It(id=1, at=Point(1, 2))),
        [changing(It, at=Point(2, 2)), changing(It, x=3)],
        [update(It).values({It.at: Point(4, 4)}), update(It).values(y=5)],
        ["UPDATE it SET x = 6", GONE],
    )


@COLUMNS.add("composite, by its parts")
def composites() -> Made:
    return _with_point(["x", "y"])


@COLUMNS.add("composite as a field", refused="field 'at' is a composite; name its parts, 'x', 'y'")
def composite_field() -> Made:
    return _with_point(["at"])


@COLUMNS.add("hybrid property, property of the class", remark="what it reads of other rows: `depends_on`")
def hybrids() -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        first: Mapped[str]
        last: Mapped[str]

        @hybrid_property
        def name(self) -> str:
            return self.first + self.last

        @name.inplace.update_expression
        def _update_name(cls, value: Any) -> Any:
            return [(cls.first, value), (cls.last, "")]

        @property
        def loud(self) -> str:
            return self.first.upper()

    return Made(
        It,
        registered(It, fields=["name", "loud"]),
        lambda session: session.add(It(id=1, first="a", last="b")),
        [changing(It, first="c"), changing(It, last="d")],
        [update(It).values({It.name: "e"}), update(It).values(last="f")],
        ["UPDATE it SET last = 'g'", GONE],
    )


@COLUMNS.add("`column_property` of the row's own columns")
def expressions() -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    It.loud = column_property(func.upper(It.name))
    return Made(
        It,
        registered(It, fields=["loud"]),
        lambda session: session.add(It(id=1, name="a")),
        [changing(It, name="b")],
        [update(It).values(name="c")],
        [ONE, GONE],
    )


def _counting(depends: bool) -> Made:
    base = a_base()

    class Part(base):  # type: ignore[misc]
        __tablename__ = "parts"
        id: Mapped[int] = mapped_column(primary_key=True)
        it_id: Mapped[int]

    class It(base):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)

    It.parts = column_property(select(func.count(Part.id)).where(Part.it_id == It.id).scalar_subquery())
    It.of_parts = relationship(Part, primaryjoin=foreign(Part.it_id) == It.id, viewonly=True)
    options: dict[str, Any] = {"depends_on": {Part: "of_parts"}} if depends else {}
    return Made(
        It,
        registered(It, fields=["id", "parts"], **options),
        lambda session: session.add_all([It(id=1), It(id=2), Part(id=1, it_id=1)]),
        [changing(Part, it_id=2), removing(Part), lambda session: session.add(Part(id=1, it_id=1))],
        [update(Part).values(it_id=2), insert(Part).values(id=2, it_id=1), delete(Part)],
        ["INSERT INTO parts VALUES (1, 1)", "UPDATE parts SET it_id = 2", "DELETE FROM parts", GONE],
    )


@COLUMNS.add(
    "`column_property` of other tables",
    refused="field 'parts' reads the table parts; name in depends_on the model of it and what leads there",
)
def other_tables() -> Made:
    return _counting(depends=False)


@COLUMNS.add("`column_property` of other tables, with `depends_on`")
def other_tables_named() -> Made:
    return _counting(depends=True)


@COLUMNS.add(
    "`query_expression`", refused="field 'sum' is filled by the options of a query; make the document by to_document"
)
def query_expressions() -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        sum: Mapped[int] = query_expression()

    return Made(It, registered(It, fields=["sum"]), lambda session: session.add(It(id=1)))


@COLUMNS.add("deferred column, with `raiseload` as well")
def deferred_columns() -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(deferred=True, deferred_group="texts")
        more: Mapped[str] = mapped_column(deferred=True, deferred_raiseload=True)

        @property
        def loud(self) -> str:
            return self.name.upper()

    return Made(
        It,
        registered(It, fields=["name", "more", "loud"]),
        lambda session: session.add(It(id=1, name="a", more="b")),
        [changing(It, name="c"), changing(It, more="d")],
        [update(It).values(name="e")],
        [ONE, GONE],
    )


@COLUMNS.add("values made by the database: `server_default`, `onupdate`, `FetchedValue`, `Computed`, `version_id_col`")
def made_by_the_database() -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        state: Mapped[str] = mapped_column(server_default=text("'new'"))
        changed: Mapped[str] = mapped_column(default="0", onupdate=func.hex(func.randomblob(4)))
        fetched: Mapped[str | None] = mapped_column(server_onupdate=FetchedValue())
        length: Mapped[int] = mapped_column(Computed("length(name)"))
        revision: Mapped[int] = mapped_column()
        __mapper_args__ = {"version_id_col": revision}

    return Made(
        It,
        registered(It, fields=["state", "changed", "fetched", "length", "revision"]),
        lambda session: session.add(It(id=1, name="a")),
        [changing(It, name="bb")],
        [update(It).values(name="ccc"), insert(It).values(id=2, name="d", revision=1)],
        [ONE, GONE],
    )


@COLUMNS.add("JSON, `MutableDict`, `PickleType`", remark="a change in place counts where SQLAlchemy writes it")
def json_columns() -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[Any] = mapped_column(MutableDict.as_mutable(JSON()))
        plain: Mapped[Any] = mapped_column(JSON(none_as_null=True), nullable=True)
        pickled: Mapped[Any] = mapped_column(PickleType)

    def in_place(session: Session) -> None:
        session.get_one(It, 1).data["b"] = 2

    return Made(
        It,
        registered(It, fields=["data", "plain", "pickled"]),
        lambda session: session.add(It(id=1, data={"a": 1}, plain=[1], pickled=(1, 2))),
        [in_place, changing(It, plain=None), changing(It, pickled=[3])],
        [update(It).values(data={"c": [1]})],
        ["UPDATE it SET data = '{\"d\": null}'", GONE],
    )


class Money(TypeDecorator[Any]):
    """In cents."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: Any) -> Any:
        return None if value is None else int(value * 100)

    def process_result_value(self, value: Any, _dialect: Any) -> Any:
        return None if value is None else Decimal(value) / 100


class Colour(enum.Enum):
    RED = "#f00"
    BLUE = "#00f"


@COLUMNS.add("`TypeDecorator`, enums, dates, UUIDs, decimals")
def types() -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        price: Mapped[Any] = mapped_column(Money)
        colour: Mapped[Colour]
        day: Mapped[date]
        uuid: Mapped[UUID]

    return Made(
        It,
        registered(It, fields=["price", "colour", "day", "uuid"]),
        lambda s: s.add(It(id=1, price=Decimal("1.5"), colour=Colour.RED, day=date(2024, 1, 1), uuid=uuid4())),
        [changing(It, price=Decimal(2)), changing(It, colour=Colour.BLUE), changing(It, uuid=UUID(int=1))],
        [update(It).values(day=date(2025, 1, 1)), update(It).values(price=Decimal(3))],
        ["UPDATE it SET price = 7", GONE],
    )


@COLUMNS.add(
    "`timedelta`, `bytes`, enums of such values",
    refused="field 'took' has values of type timedelta, which have no JSON form; make the document by to_document",
)
def without_json() -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        took: Mapped[timedelta]

    return Made(It, registered(It, fields=["took"]), lambda session: session.add(It(id=1)))


@COLUMNS.add("dataclass mapping (`MappedAsDataclass`)")
def dataclass_mapping() -> Made:
    class It(a_base(MappedAsDataclass)):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(default="a")

    return Made(
        It,
        registered(It, fields=["name"]),
        lambda session: session.add(It(id=1)),
        [changing(It, name="b"), removing(It)],
        [insert(It).values(id=2, name="c"), update(It).values(name="d")],
        [ONE, GONE],
    )


@COLUMNS.add("imperative mapping, `include_properties`, `exclude_properties`")
def imperative() -> Made:
    class It:
        def __init__(self, **values: Any) -> None:
            self.__dict__.setdefault("_values", values)
            for name, value in values.items():
                setattr(self, name, value)

    made = mappers()
    columns = (Column(name, String) for name in ("name", "more", "left_out"))
    table = Table("it", made.metadata, Column("id", Integer, primary_key=True), *columns)
    made.map_imperatively(It, table, exclude_properties=["left_out"], properties={"further": table.c.more})
    return Made(
        made,
        registered(It, fields=["name", "further"], when=lambda it: it.further != "x"),
        lambda session: session.add(It(id=1, name="a", further="b")),
        [changing(It, name="c"), changing(It, further="x"), changing(It, further="d")],
        [update(It).values(further="e")],  # type: ignore[arg-type]
        ["UPDATE it SET more = 'f'", "UPDATE it SET left_out = 'g'", ONE, GONE],
    )

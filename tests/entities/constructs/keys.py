"""Primary keys: those that become an `_id`, and their changes."""

from __future__ import annotations

from datetime import date
from typing import Any
from uuid import UUID

from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table, delete, insert, text, update
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship
from sqlalchemy.orm import registry as mappers

from tests.entities.constructs.columns import Colour, a_base, changing
from tests.entities.constructs.made import Constructs, Made, registered

KEYS = Constructs()


@KEYS.add("natural key and its change, `passive_updates=False`")
def natural_keys() -> Made:
    base = a_base()

    class Part(base):  # type: ignore[misc]
        __tablename__ = "parts"
        id: Mapped[int] = mapped_column(primary_key=True)
        it_code: Mapped[str | None] = mapped_column(ForeignKey("it.code"))

    class It(base):  # type: ignore[misc]
        __tablename__ = "it"
        code: Mapped[str] = mapped_column(primary_key=True)
        parts: Mapped[list[Part]] = relationship(passive_updates=False)

    def rename(session: Session) -> None:
        it = session.get_one(It, "a")
        it.code = "b"

    return Made(
        base,
        registered(It, fields=["code", "parts.id"]),
        lambda session: session.add_all([It(code="a", parts=[Part(id=1)]), It(code="x")]),
        [rename],
        [update(It).where(It.code == "x").values(code="y"), update(Part).values(it_code="y")],
        ["UPDATE it SET code = 'z' WHERE code = 'y'", "UPDATE parts SET it_code = 'z'", "DELETE FROM it"],
    )


@KEYS.add("composite key of an enum, a UUID, text and a number")
def composite_keys() -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        colour: Mapped[Colour] = mapped_column(primary_key=True)
        uuid: Mapped[UUID] = mapped_column(primary_key=True)
        word: Mapped[str] = mapped_column(primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    key = {"colour": Colour.RED, "uuid": UUID(int=1), "word": "a|b", "number": 1}

    def change(session: Session) -> None:
        found = session.get_one(It, tuple(key.values()))
        found.colour, found.word = Colour.BLUE, "\\"

    return Made(
        It,
        registered(It, fields=["name"]),
        lambda session: session.add(It(**key, name="a")),
        [change],
        [update(It).values(number=2), insert(It).values(**key, name="b"), update(It).values(uuid=UUID(int=2))],
        ["UPDATE it SET colour = 'BLUE', word = 'c'", "UPDATE it SET name = 'd'", "DELETE FROM it"],
    )


@KEYS.add(
    "dates, decimals, bytes and others in a key",
    refused="It.day is of type Date(), which has no text form for an _id; integers, strings, enums and UUIDs have one",
)
def other_keys() -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        day: Mapped[date] = mapped_column(primary_key=True)

    return Made(It, registered(It, fields=["day"]), lambda session: session.add(It(day=date(2024, 1, 1))))


@KEYS.add("such keys of the members of a list")
def keys_of_members() -> Made:
    base = a_base()

    class Part(base):  # type: ignore[misc]
        __tablename__ = "parts"
        day: Mapped[date] = mapped_column(primary_key=True)
        colour: Mapped[Colour] = mapped_column(primary_key=True)
        it_id: Mapped[int] = mapped_column(ForeignKey("it.id"))

    class It(base):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        parts: Mapped[list[Part]] = relationship()

    def start(session: Session) -> None:
        session.add(It(id=1, parts=[Part(day=date(2024, 1, at), colour=each) for at in (2, 1) for each in Colour]))

    return Made(
        base,
        registered(It, fields=["parts.day", "parts.colour"]),
        start,
        [lambda session: session.delete(session.get_one(Part, (date(2024, 1, 1), Colour.RED)))],
        [insert(Part).values(day=date(2023, 1, 1), colour=Colour.RED, it_id=1), delete(Part)],
        ["INSERT INTO parts VALUES ('2024-01-03', 'RED', 1)", "DELETE FROM it"],
    )


@KEYS.add("the mapper's own `primary_key` of a table without one")
def mapped_keys() -> Made:
    class It:
        def __init__(self, **values: Any) -> None:
            for name, value in values.items():
                setattr(self, name, value)

    made = mappers()
    table = Table("it", made.metadata, Column("code", String, unique=True), Column("number", Integer))
    made.map_imperatively(It, table, primary_key=[table.c.code])
    return Made(
        made,
        registered(It, fields=["number"]),
        lambda session: session.add(It(code="a", number=1)),
        [lambda session: setattr(session.get_one(It, "a"), "number", 2)],
        [update(It).values(number=3), update(It).values(code="b")],
        ["UPDATE it SET number = 4", "DELETE FROM it"],
    )


@KEYS.add("view or SELECT, with `depends_on`", remark="marked by `info={'is_view': True}`")
def views() -> Made:
    class Page(a_base()):  # type: ignore[misc]
        __tablename__ = "pages"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        public: Mapped[bool]

    columns = (Column("id", Integer, primary_key=True), Column("title", String))

    class Shown(a_base()):  # type: ignore[misc]
        __table__ = Table("shown", MetaData(), *columns, info={"is_view": True})

    def start(session: Session) -> None:
        session.execute(text("CREATE VIEW IF NOT EXISTS shown AS SELECT id, title FROM pages WHERE public"))
        session.add_all([Page(id=at, title="a", public=True) for at in (1, 2)])

    return Made(
        Page,
        registered(Shown, fields=["title"], depends_on={Page: "id"}),
        start,
        [changing(Page, title="b"), changing(Page, public=False), changing(Page, public=True)],
        [update(Page).where(Page.id == 1).values(public=False), insert(Page).values(id=3, title="c", public=True)],
        ["UPDATE pages SET public = NOT public", "UPDATE pages SET id = id + 10", "DELETE FROM pages WHERE id < 12"],
    )

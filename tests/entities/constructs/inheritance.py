"""Hierarchies of classes, and classes that share or lack a table."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Table, insert, join, select, text, update
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.orm import Mapped, Session, column_property, mapped_column

from outbox import EntityRegistry
from tests.entities.constructs.columns import GONE, ONE, a_base, changing, removing
from tests.entities.constructs.made import Constructs, Made, registered

INHERITANCE = Constructs()


def _of_kinds(base: Any, old: Any, new: Any, start: Any) -> Made:
    made = EntityRegistry()
    for model in (base, old, new):
        made.add(model, name=model.__name__.lower(), index=model.__name__.lower(), fields=["name"])
    return Made(
        base,
        made,
        start,
        [changing(base, name="b"), changing(base, kind="new"), changing(base, name="c"), changing(base, kind="old")],
        [update(base).values(kind="new"), update(base), update(base).values(name="d")][::2],
        ["UPDATE it SET kind = 'old'", ONE, "UPDATE it SET kind = 'new', name = 'e'"],
    )


@INHERITANCE.add("single-table inheritance, a change of the discriminator as well")
def single_table() -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "it"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str]

    class Old(It):
        __mapper_args__ = {"polymorphic_identity": "old"}

    class New(It):
        __mapper_args__ = {"polymorphic_identity": "new"}

    return _of_kinds(It, Old, New, lambda session: session.add(Old(id=1, name="a")))


@INHERITANCE.add("joined-table inheritance, a change of the discriminator as well")
def joined_tables() -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "it"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str]

    class Old(It):
        __tablename__ = "olds"
        __mapper_args__ = {"polymorphic_identity": "old"}
        id: Mapped[int] = mapped_column(ForeignKey("it.id"), primary_key=True)

    class New(It):
        __tablename__ = "news"
        __mapper_args__ = {"polymorphic_identity": "new"}
        number: Mapped[int] = mapped_column(ForeignKey("it.id"), primary_key=True)

    def start(session: Session) -> None:
        session.add(Old(id=1, name="a"))
        session.flush()
        session.execute(text("INSERT INTO news VALUES (1)"))

    return _of_kinds(It, Old, New, start)


@INHERITANCE.add(
    "a kind that another table tells (`polymorphic_on`)",
    refused="the table kinds tells which rows are of Boss, so that nothing says when one becomes so or ceases to be; "
    "use It in its place",
)
def told_by_another_table() -> Made:
    base = a_base()

    class Kind(base):  # type: ignore[misc]
        __tablename__ = "kinds"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class It(base):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind_id: Mapped[int] = mapped_column()
        kind = column_property(select(Kind.name).where(Kind.id == kind_id).scalar_subquery())
        __mapper_args__ = {"polymorphic_on": kind}

    class Boss(It):
        __mapper_args__ = {"polymorphic_identity": "boss"}

    return Made(base, registered(Boss, fields=["id"], depends_on={Kind: "kind_id"}), lambda _session: None)


def _concrete(register_base: bool, above: tuple[type[Any], ...] = ()) -> Made:
    class It(*above, a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        __mapper_args__ = {"polymorphic_identity": "it", "concrete": True} if above else {}

    class Sub(It):
        __tablename__ = "subs"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        __mapper_args__ = {"polymorphic_identity": "sub", "concrete": True} if above else {"concrete": True}

    statements: list[Any] = []
    if not above:
        statements = [insert(Sub).values(id=2, name="e"), update(It).values(name="f"), update(Sub).values(name="g")]
    made = registered(It, fields=["name"]) if register_base else EntityRegistry()
    made.add(Sub, index="subs", fields=["name"])
    return Made(
        It,
        made,
        lambda session: session.add_all([It(id=2 if above else 1, name="a"), Sub(id=1, name="b")]),
        [changing(Sub, name="d"), removing(Sub)] if above else [changing(It, name="c"), changing(Sub, name="d")],
        statements,
        [ONE, "UPDATE subs SET name = 'h'", GONE],
    )


@INHERITANCE.add("concrete-table inheritance: each class by itself")
def concrete() -> Made:
    return _concrete(register_base=True)


@INHERITANCE.add("concrete class below a union (`ConcreteBase`)", bulk="SQLAlchemy has no such statement")
def below_a_union() -> Made:
    return _concrete(register_base=False, above=(ConcreteBase,))


@INHERITANCE.add(
    "the union itself (`ConcreteBase`, `AbstractConcreteBase`)",
    refused="It selects from the tables of its subclasses, whose keys may be equal; register each of them instead",
)
def union() -> Made:
    return _concrete(register_base=True, above=(ConcreteBase,))


def _two_classes(base: Any, other: Any) -> Made:
    class It(base):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Slim(other):  # type: ignore[misc]
        __table__ = Table("it", base.metadata, extend_existing=True)
        key = column_property(__table__.c.id)
        label = column_property(__table__.c.name)

    return Made(
        It,
        registered(It, fields=["name"]),
        lambda session: session.add(Slim(key=1, label="a")),
        [changing(Slim, label="b"), changing(It, name="c"), changing(Slim, key=2)],
        [update(Slim).values(label="d"), insert(Slim).values(key=5, label="e")],
        [ONE, GONE],
    )


@INHERITANCE.add("a second class on the same table")
def two_classes() -> Made:
    base = a_base()
    return _two_classes(base, base)


@INHERITANCE.add("a second class on the same `Table` object, of another base or registry")
def two_bases() -> Made:
    return _two_classes(a_base(), a_base())


@INHERITANCE.add(
    "a class on a join of tables",
    triggers="Both is mapped to a join of tables, so triggers cannot follow it",
    remark="with classes on each of them",
)
def on_a_join() -> Made:
    base = a_base()

    class It(base):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Address(base):  # type: ignore[misc]
        __tablename__ = "addresses"
        id: Mapped[int] = mapped_column(primary_key=True)
        it_id: Mapped[int] = mapped_column(ForeignKey("it.id"))
        street: Mapped[str]

    one, other = It.__table__, Address.__table__

    class Both(base):  # type: ignore[misc]
        __table__ = join(one, other)
        id = column_property(one.c.id, other.c.it_id)
        address_id = other.c.id

    return Made(
        It,
        registered(Both, name="both", index="both", fields=["name", "street"]),
        lambda session: session.add(Both(id=1, address_id=1, name="a", street="b")),
        [changing(It, name="c"), changing(Address, street="d")],
        [update(It).values(name="e"), insert(Address).values(id=2, it_id=1, street="f")],
    )

"""A row that becomes one of another kind: the document of the old kind goes, that of the new one comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from sqlalchemy import Engine, ForeignKey, case, delete, insert, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from outbox import EntityRegistry
from outbox.triggers import installer as triggers
from tests.support.following import Following

pytestmark = pytest.mark.filterwarnings("ignore:Flushing object:sqlalchemy.exc.SAWarning")


class Base(DeclarativeBase):
    pass


class Purchase(Base):
    """In one table."""

    __tablename__ = "purchases"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    tenant: Mapped[str] = mapped_column(default="t1")
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "purchase"}


class Cart(Purchase):
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "cart"}


class Order(Purchase):
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "order"}


class Express(Order):
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "express"}


class Person(Base):
    """In tables that are joined."""

    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    tenant: Mapped[str] = mapped_column(default="t1")
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Engineer(Person):
    __tablename__ = "engineers"
    id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
    language: Mapped[str] = mapped_column(default="C")
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "cart"}


class Manager(Person):
    __tablename__ = "managers"
    id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "order"}


class Parcel(Base):
    """Whose kind is a matter of another column."""

    __tablename__ = "parcels"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str | None] = mapped_column()
    name: Mapped[str]
    tenant: Mapped[str] = mapped_column(default="t1")
    __mapper_args__: ClassVar[Any] = {
        "polymorphic_on": case((kind == "order", "ordered"), (kind == "cart", "packed"), else_="other"),
        "polymorphic_identity": "other",
    }


class Packed(Parcel):
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "packed"}


class Ordered(Parcel):
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "ordered"}


class Shelf(Base):
    """That has members of one kind only."""

    __tablename__ = "shelves"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("purchases.id"))
    order: Mapped[Order] = relationship()


HIERARCHIES: dict[str, tuple[Any, Any, Any]] = {
    "one table": (Purchase, Cart, Order),
    "joined tables": (Person, Engineer, Manager),
    "an expression": (Parcel, Packed, Ordered),
}


def _old(session: Session, base: Any, old: Any) -> Any:
    """Row 1, which is of the old kind; of joined tables there is a part for the new kind as well."""
    added = old(id=1, name="x", kind="cart") if old is Packed else old(id=1, name="x")
    session.add(added)
    session.flush()
    if base is Person:
        session.execute(text("INSERT INTO managers (id) VALUES (1)"))
    session.commit()
    return added


def by_attribute(session: Session, _base: Any, old: Any, _new: Any) -> None:
    session.get_one(old, 1).kind = "order"


def by_attribute_and_key(session: Session, base: Any, old: Any, _new: Any) -> None:
    found = session.get_one(old, 1)
    found.kind = "order"
    if base is not Person:
        found.id = 2


def by_update_of_the_base(session: Session, base: Any, _old: Any, _new: Any) -> None:
    session.execute(update(base).where(base.id == 1).values(kind="order"))


def by_update_of_the_old_kind(session: Session, base: Any, old: Any, _new: Any) -> None:
    session.execute(update(base if base is Person else old).where(base.name == "x").values(kind="order"))


def by_many_updates(session: Session, base: Any, _old: Any, _new: Any) -> None:
    session.execute(update(base), [{"id": 1, "kind": "order"}])


def by_another_object(session: Session, base: Any, old: Any, new: Any) -> None:
    session.delete(session.get_one(old, 1))
    if base is Person:
        session.flush()
        session.execute(text("DELETE FROM managers"))
    session.add(new(id=1, name="y", kind="order"))


def by_an_object_of_the_base(session: Session, base: Any, _old: Any, _new: Any) -> None:
    if base is not Person:
        session.execute(delete(base))
        session.add(base(id=1, name="y", kind="order"))


def by_insert(session: Session, base: Any, _old: Any, _new: Any) -> None:
    if base is not Person:
        session.execute(delete(base))
        session.execute(insert(base).values(id=1, name="y", kind="order", tenant="t1"))


def behind_an_object(session: Session, base: Any, old: Any, _new: Any) -> None:
    """It stays of its class, and is changed and written on."""
    found = session.get_one(old, 1)
    session.execute(update(base).values(kind="order").execution_options(synchronize_session=False))
    session.commit()
    found.name = "z"


def and_deleted(session: Session, base: Any, old: Any, _new: Any) -> None:
    found = session.get_one(old, 1)
    session.execute(update(base).values(kind="order").execution_options(synchronize_session=False))
    session.commit()
    if base is Person:
        session.execute(text("DELETE FROM managers"))
    session.delete(found)


CHANGES = [
    by_attribute,
    by_attribute_and_key,
    by_update_of_the_base,
    by_update_of_the_old_kind,
    by_many_updates,
    by_another_object,
    by_an_object_of_the_base,
    by_insert,
    behind_an_object,
    and_deleted,
]


@pytest.fixture
def database(engine: Engine) -> Iterator[Engine]:
    Base.metadata.create_all(engine)
    yield engine


def registered(models: list[Any], index: str | None, tenancy: str, fields: list[str]) -> EntityRegistry:
    made = EntityRegistry()
    for model in models:
        name = model.__name__.lower()
        made.add(model, name=name, index=index or name, fields=fields, tenant="tenant", tenancy=tenancy)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("hierarchy", HIERARCHIES)
@pytest.mark.parametrize(
    ("noted_by", "tenancy"), [("session", "shared"), ("session", "prefixed"), ("triggers", "shared")]
)
def test_row_of_another_kind_leaves_one_index_and_enters_the_other(
    database: Engine, change: Callable[..., None], hierarchy: str, noted_by: str, tenancy: str
) -> None:
    base, old, new = HIERARCHIES[hierarchy]
    for models, index in (([old, new], None), ([new, old], "both"), ([old], None), ([new], None)):
        registry = registered(models, index, tenancy, ["name"])
        with database.begin() as connection:
            triggers.remove(connection)
            if noted_by == "triggers":
                triggers.install(connection, registry)
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(delete(table))
        index_ = Following(database, registry)
        index_.follow()
        index_.index.clear()
        sessions = registry.capture(type("Captured", (Session,), {}))
        with sessions(database, expire_on_commit=False) as session:
            _old(session, base, old)
            assert index_.follow() == index_.rebuilt()
            change(session, base, old, new)
            session.commit()
            assert index_.follow() == index_.rebuilt()
            session.expunge_all()
            session.execute(delete(base) if base is not Person else update(base).values(kind="person"))
            session.commit()
            assert index_.follow() == index_.rebuilt() == {}


@pytest.mark.parametrize("change", [by_attribute, by_update_of_the_old_kind, behind_an_object])
@pytest.mark.parametrize("noted_by", ["session", "triggers"])
def test_path_that_leads_to_one_kind_finds_the_row_that_becomes_one(
    database: Engine, change: Callable[..., None], noted_by: str
) -> None:
    registry = EntityRegistry()
    registry.add(Shelf, index="shelves", fields=["order.name"])
    if noted_by == "triggers":
        with database.begin() as connection:
            triggers.install(connection, registry)
    following = Following(database, registry)
    sessions = registry.capture(type("Captured", (Session,), {}))
    with sessions(database, expire_on_commit=False) as session:
        session.add(Shelf(id=1, order_id=1))
        _old(session, Purchase, Cart)
        assert following.follow() == {("shelves", "1"): {"order": None}}
        change(session, Purchase, Cart, Order)
        session.commit()
        assert following.follow()["shelves", "1"]["order"] is not None
        assert following.index == following.rebuilt()

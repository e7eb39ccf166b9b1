"""Two entities in one index: neither a rebuild nor a comparison of one touches what is the other's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from sqlalchemy import ForeignKey, Update, delete, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from outbox import EntityRegistry
from outbox.reindex.reindexer import reindex
from outbox.verify import Drift, Verification
from tests.support.outbox import Outbox
from tests.support.places import Place


class Base(DeclarativeBase):
    pass


class Page(Base):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(unique=True)
    title: Mapped[str]


class Product(Base):
    __tablename__ = "products"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    room: Mapped[str | None]
    __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Guest(Person):
    __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_identity": "guest"}


class Engineer(Person):
    __tablename__ = "engineers"
    id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
    language: Mapped[str]
    __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_identity": "engineer"}


class World:
    """Pages and products in one index, people of three kinds in another."""

    def __init__(self, outbox: Outbox, place: Place) -> None:
        Base.metadata.create_all(outbox.engine)
        self.outbox, self.place, self.registry = outbox, place, EntityRegistry()
        self.registry.add(Page, index="site", fields=["title"], id="slug", id_prefix="page-")
        self.registry.add(Product, index="site", fields=["title"], id_prefix="product-")
        self.registry.add(Person, index="people", fields=["name"])
        self.registry.add(Guest, index="people", fields=["name", "room"], name="guests")
        self.registry.add(Engineer, index="people", fields=["name", "language"], name="engineers")
        self.sessions = self.registry.capture(sessionmaker(outbox.engine))
        self.store, self.relay = outbox.store(), outbox.relay(place.destination, registry=self.registry)
        self.change(
            lambda session: session.add_all(
                [
                    *(Page(id=at, slug=f"s{at}", title=f"page {at}") for at in range(1, 4)),
                    *(Product(id=at, title=f"product {at}") for at in range(1, 4)),
                    Person(id=1, name="Ada"),
                    Guest(id=2, name="Bob", room="7"),
                    Engineer(id=3, name="Eve", language="Ada"),
                ]
            )
        )

    def change(self, change: Callable[[Session], object]) -> None:
        with self.sessions.begin() as session:
            change(session)
        self.deliver()

    def deliver(self) -> None:
        while self.relay.run_once():
            pass
        assert not self.outbox.dead()

    def rebuild(self, *entities: str, **options: Any) -> None:
        list(reindex(self.store, self.place.destination, self.registry, entities=entities, **options))

    def drifts(self, *entities: str, **options: Any) -> set[tuple[str, str, str]]:
        options = {"patience": 0, "entities": entities, **options}
        found = Verification(self.store, self.place.destination, self.registry, **options).run()
        return {(each.entity, str(each.kind), each.document_id) for each in found if isinstance(each, Drift)}

    def titles(self) -> dict[str, str]:
        return {each: found["title"] for each, found in self.place.documents("site").items()}


@pytest.fixture
def world(outbox: Outbox, place: Place) -> Iterator[World]:
    made = World(outbox, place)
    yield made
    made.store.close()


PAGES = {f"page-s{at}": f"page {at}" for at in range(1, 4)}
PRODUCTS = {f"product-{at}": f"product {at}" for at in range(1, 4)}


def test_rebuild_of_one_entity_leaves_the_documents_of_the_other(world: World) -> None:
    world.rebuild("pages")
    assert world.titles() == PAGES | PRODUCTS
    world.outbox.raw("DELETE FROM pages WHERE id = 1")
    world.outbox.raw("UPDATE pages SET slug = 'moved' WHERE id = 2")
    world.rebuild("products", in_place=True)
    assert world.titles() == {"page-moved": "page 2", "page-s3": "page 3"} | PRODUCTS
    assert world.drifts() == set()


def test_what_is_wrong_is_said_of_the_entity_whose_it_is_and_repaired(world: World) -> None:
    world.outbox.raw("UPDATE pages SET slug = 'moved' WHERE id = 2")
    world.outbox.raw("DELETE FROM products WHERE id = 3")
    world.place.tamper("site", "other-1", {"title": "nobody's"})
    pages = {("pages", "extra", "page-s2"), ("pages", "missing", "page-moved"), ("pages", "extra", "other-1")}
    products = {("products", "extra", "product-3"), ("products", "extra", "other-1")}
    assert world.drifts("pages") == pages
    assert world.drifts("products") == products
    assert {drift[2] for drift in world.drifts(repair=True)} == {drift[2] for drift in pages | products}
    world.deliver()
    assert world.titles() == {"page-s1": "page 1", "page-moved": "page 2", "page-s3": "page 3"} | {
        each: title for each, title in PRODUCTS.items() if each != "product-3"
    }
    assert world.drifts() == set()


def test_row_that_is_of_two_classes_has_the_document_of_the_subclass(world: World) -> None:
    people = {"1": {"name": "Ada"}, "2": {"name": "Bob", "room": "7"}, "3": {"name": "Eve", "language": "Ada"}}
    assert world.place.documents("people") == people
    for entities in (["people"], ["guests"]):
        world.rebuild(*entities)
        assert world.place.documents("people") == people
        assert world.drifts() == set()
    world.rebuild("engineers", in_place=True)
    assert world.place.documents("people") == people
    world.change(lambda session: session.execute(update(Person).values(name=Person.name + "!")))
    assert [each["name"] for each in world.place.documents("people").values()] == ["Ada!", "Bob!", "Eve!"]
    assert world.drifts("people") == world.drifts("guests") == world.drifts() == set()


def test_row_that_becomes_another_class_is_the_document_of_that_one(world: World) -> None:
    world.change(lambda session: session.execute(_became(2, kind="person", name="Bo")))
    world.change(lambda session: session.execute(_became(1, kind="guest", name="Ad", room="8")))
    assert world.place.documents("people") == {
        "1": {"name": "Ad", "room": "8"}, "2": {"name": "Bo"}, "3": {"name": "Eve", "language": "Ada"}
    }  # fmt: skip
    assert world.drifts() == set()


def _became(key: int, **values: Any) -> Update:
    return update(Person).where(Person.id == key).values(**values)


def test_row_of_one_entity_is_never_a_delete_of_another_ones_document(world: World) -> None:
    """As a repair writes it that was decided before the row was there again."""
    with world.outbox.engine.begin() as connection:
        for entity, index, document_id in (("pages", "site", "product-1"), ("guests", "people", "3")):
            connection.execute(
                text(
                    "INSERT INTO outbox_events (action, index_name, document_id, entity, document_bytes, created_at)"
                    " VALUES ('refresh', :index, :id, :entity, 0, 0)"
                ),
                {"index": index, "id": document_id, "entity": entity},
            )
    world.deliver()
    assert world.titles() == PAGES | PRODUCTS
    assert world.drifts() == set()


def _delete_pages(session: Session) -> None:
    for page in session.scalars(select(Page)).all():
        session.delete(page)


def test_deleted_rows_take_their_own_documents_along_only(world: World) -> None:
    world.change(lambda session: session.execute(delete(Product)))
    assert world.titles() == PAGES
    world.change(_delete_pages)
    assert world.titles() == {}
    world.change(lambda session: session.delete(session.get_one(Person, 3)))
    assert set(world.place.documents("people")) == {"1", "2"}

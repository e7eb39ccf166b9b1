"""What `when` may ask of a row: columns, properties, methods, relationships, whatever the fields are."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, event
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.hybrid import hybrid_method, hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    ORMExecuteState,
    Session,
    mapped_column,
    reconstructor,
    relationship,
    with_loader_criteria,
)
from sqlalchemy.orm.attributes import set_committed_value

from outbox import EntityRegistry
from tests.entities.world import loaded, statements


class Base(DeclarativeBase):
    pass


class Site(Base):
    __tablename__ = "sites"
    id: Mapped[int] = mapped_column(primary_key=True)
    open: Mapped[bool]


class Page(Base):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    state: Mapped[str]
    site_id: Mapped[int] = mapped_column(ForeignKey("sites.id"))
    site: Mapped[Site] = relationship()
    site_is_open: AssociationProxy[bool] = association_proxy("site", "open")
    SHOWN = "public"

    @property
    def is_public(self) -> bool:
        return self.state == self.SHOWN

    @cached_property
    def is_public_once(self) -> bool:
        return self.is_public

    @hybrid_property
    def is_public_too(self) -> bool:
        return self.state == "public"

    @hybrid_method
    def has_state(self, state: str) -> bool:
        return self.state == state

    def is_in(self, *states: str) -> bool:
        return self.state in states

    @property
    def is_reachable(self) -> bool:
        return self.is_public and self.site.open


@pytest.fixture
def pages(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        sites = [Site(id=1, open=True), Site(id=2, open=False)]
        session.add_all(sites)
        for at in range(1, 5):
            session.add(Page(id=at, title="t", state="public" if at < 4 else "draft", site=sites[at % 2]))
        session.commit()
    return engine


@pytest.mark.parametrize(
    ("when", "shown"),
    [
        (lambda page: page.state == "public", "123"),
        (lambda page: page.is_public, "123"),
        (lambda page: page.is_public_once, "123"),
        (lambda page: page.is_public_too, "123"),
        (lambda page: page.has_state("public"), "123"),
        (lambda page: page.is_in("public", "new"), "123"),
        (lambda page: page.state == page.SHOWN, "123"),
        (lambda page: page.site.open, "24"),
        (lambda page: page.site_is_open, "24"),
        (lambda page: page.is_reachable, "2"),
        (lambda page: getattr(page, "owner", None) is None, "1234"),
    ],
)
def test_when_asks_the_model_whatever_it_likes(pages: Engine, when: Callable[[Any], bool], shown: str) -> None:
    registry = EntityRegistry()
    entity = registry.add(Page, index="pages", fields=["title"], when=when)
    for _ in range(2):  # objects are built one by one, or all at once
        with Session(pages) as session:
            documents = loaded(registry, session, entity, *"1234")
        assert documents == [{"title": "t"} if at in shown else None for at in "1234"]


class Album(Base):
    __tablename__ = "albums"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    songs: Mapped[list[Song]] = relationship(lazy="joined")

    @property
    def has_songs(self) -> bool:
        return bool(self.songs)


class Song(Base):
    __tablename__ = "songs"
    id: Mapped[int] = mapped_column(primary_key=True)
    album_id: Mapped[int] = mapped_column(ForeignKey("albums.id"))


def test_when_may_ask_a_model_with_a_list_that_is_joined(pages: Engine) -> None:
    registry = EntityRegistry()
    entity = registry.add(Album, index="albums", fields=["title"], when=lambda album: album.has_songs)
    with Session(pages) as session:
        session.add_all([Album(id=1, title="t", songs=[Song(), Song()]), Album(id=2, title="t")])
        for _ in range(2):  # objects are built one by one, or all at once
            assert loaded(registry, session, entity, *"12") == [{"title": "t"}, None]


class Animal(Base):
    __tablename__ = "animals"
    __mapper_args__: dict[str, Any] = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]


class Dog(Animal):
    __mapper_args__: dict[str, Any] = {"polymorphic_identity": "dog"}  # noqa: RUF012


@pytest.mark.parametrize(
    ("when", "shown"),
    [
        (lambda animal: isinstance(animal, Dog), "2"),
        (lambda animal: not isinstance(animal, Dog), "1"),
        (lambda animal: isinstance(animal, Animal), "12"),
    ],
)
def test_class_that_when_asks_for_is_that_of_the_object(pages: Engine, when: Callable[[Any], bool], shown: str) -> None:
    registry = EntityRegistry()
    entity = registry.add(Animal, index="animals", fields=["name"], when=when)
    with Session(pages) as session:
        session.add_all([Animal(id=1, name="x"), Dog(id=2, name="x")])
        session.flush()
        for _ in range(2):  # objects are built one by one, or all at once
            documents = loaded(registry, session, entity, *"12")
            assert documents == [{"name": "x"} if at in shown else None for at in "12"]


@pytest.mark.parametrize("fields", [["title"], ["title", "site.open"]])
def test_criteria_that_an_application_has_on_all_its_sessions_hide_no_row(pages: Engine, fields: list[str]) -> None:
    """Of the tenant of a request, say: no request goes on where a document is made."""
    registry = EntityRegistry()
    entity = registry.add(Page, index="pages", fields=fields, when=lambda page: page.is_public)

    def nothing_of_others(state: ORMExecuteState) -> None:
        state.statement = state.statement.options(with_loader_criteria(Page, Page.title == "mine"))

    event.listen(Session, "do_orm_execute", nothing_of_others)
    try:
        for _ in range(2):
            with Session(pages) as session:
                documents = loaded(registry, session, entity, *"1234")
            assert [document is not None for document in documents] == [True, True, True, False]
    finally:
        event.remove(Session, "do_orm_execute", nothing_of_others)


def test_objects_that_when_asks_for_are_built_in_one_query_from_the_second_batch_on(pages: Engine) -> None:
    registry = EntityRegistry()
    entity = registry.add(Page, index="pages", fields=["title"], when=lambda page: page.is_public)
    with Session(pages) as session:
        loaded(registry, session, entity, *"1234")
        with statements(pages) as seen:
            loaded(registry, session, entity, *"1234")
    assert len(seen) == 1


class Letter(Base):
    __tablename__ = "letters"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    state: Mapped[str] = mapped_column(deferred=True, deferred_raiseload=True)

    @property
    def is_public(self) -> bool:
        return self.state == "public"


@pytest.mark.parametrize(
    "when",
    [
        lambda letter: letter.state == "public",
        lambda letter: letter.is_public,
        lambda letter: bool(letter.metadata) and letter.state == "public",
    ],
)
def test_when_may_ask_for_a_deferred_column_whether_objects_are_built_or_not(
    pages: Engine, when: Callable[[Any], bool]
) -> None:
    registry = EntityRegistry()
    entity = registry.add(Letter, index="letters", fields=["title"], when=when)
    with Session(pages) as session:
        session.add_all([Letter(id=1, title="t", state="public"), Letter(id=2, title="t", state="draft")])
        for _ in range(3):
            assert loaded(registry, session, entity, "1", "2") == [{"title": "t"}, None]


class Memo(Base):
    __tablename__ = "memos"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]

    @reconstructor
    def tidy(self) -> None:
        set_committed_value(self, "title", self.title.strip())

    @property
    def is_named(self) -> bool:
        return bool(self.title)


def test_what_a_class_makes_of_its_objects_as_they_are_loaded_is_the_same_in_each_batch(pages: Engine) -> None:
    registry = EntityRegistry()
    entity = registry.add(Memo, index="memos", fields=["title"], when=lambda memo: memo.is_named)
    with Session(pages) as session:
        session.add_all([Memo(id=1, title=" t "), Memo(id=2, title=" ")])
        for _ in range(2):
            assert loaded(registry, session, entity, "1", "2") == [{"title": "t"}, None]


def test_name_that_the_model_lacks_is_said_of_the_model(pages: Engine) -> None:
    registry = EntityRegistry()
    entity = registry.add(Page, index="pages", fields=["title"], when=lambda page: page.is_pubic)
    with Session(pages) as session:
        (failed,) = loaded(registry, session, entity, "1")
    assert failed == ("when_failed", "AttributeError: 'Page' object has no attribute 'is_pubic'")


def test_transaction_of_the_caller_outlives_the_objects(pages: Engine) -> None:
    registry = EntityRegistry()
    entity = registry.add(Page, index="pages", fields=["title"], when=lambda page: page.is_public)
    with Session(pages) as session:
        session.add(Page(id=9, title="new", state="public", site_id=1))
        assert loaded(registry, session, entity, "9") == [{"title": "new"}]
        session.commit()
        assert session.get(Page, 9) is not None

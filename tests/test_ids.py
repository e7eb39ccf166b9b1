"""Documents under an `_id` of the application's own: whatever changes it, the document moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from sqlalchemy import (
    Computed,
    Engine,
    ForeignKey,
    Identity,
    Text,
    bindparam,
    delete,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from outbox import EntityRegistry, InvalidName, OutboxRepository
from outbox.testing import OutboxTester
from outbox.triggers import installer as triggers


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    pages: Mapped[list[Page]] = relationship(back_populates="author", cascade="all, delete-orphan")


class Page(Base):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(Identity(start=100), primary_key=True)
    slug: Mapped[str] = mapped_column(Text(collation="NOCASE").with_variant(Text(), "postgresql"), unique=True)
    title: Mapped[str]
    hidden: Mapped[str] = mapped_column(default="")
    tenant: Mapped[str] = mapped_column(default="t1")
    author_id: Mapped[int | None] = mapped_column(ForeignKey("authors.id"))
    author: Mapped[Author | None] = relationship(back_populates="pages")


class World:
    """An application, and an index that is held against its tables."""

    def __init__(self, engine: Engine, by: str, tenancy: str) -> None:
        Base.metadata.create_all(engine)
        self.engine, self.tenancy, self.registry = engine, tenancy, EntityRegistry()
        fields = ["title", "author.name"]
        self.registry.add(
            Page, index="pages", fields=fields, id="slug", id_prefix="p/", tenant="tenant", tenancy=tenancy
        )
        self.sessions = self.registry.capture(sessionmaker(engine))
        self.outbox = OutboxTester(engine, self.registry)
        if by == "triggers":
            with engine.begin() as connection:
                triggers.install(connection, self.registry)

    def run(self, change: Callable[[Session], object]) -> None:
        with self.sessions.begin() as session:
            change(session)
        self.check()

    def check(self) -> None:
        self.outbox.drain()
        assert self.held() == self.expected()

    def held(self) -> dict[tuple[str, str], Any]:
        return {
            (name, each): self.outbox.document(name, each)
            for name, target in self.outbox._store.targets().items()
            for page in self.outbox.destination.pages(target, 100)
            for each in page
        }

    def expected(self) -> dict[tuple[str, str], Any]:
        with Session(self.engine) as session:
            return {
                self.place(page): {
                    "title": page.title, "author": page.author and {"name": page.author.name}, "tenantId": page.tenant
                }
                for page in session.scalars(select(Page))
            }  # fmt: skip

    def place(self, page: Page) -> tuple[str, str]:
        index = f"{page.tenant}_pages" if self.tenancy == "index" else "pages"
        return index, f"2:{page.tenant}:p/{page.slug}" if self.tenancy == "prefixed" else f"p/{page.slug}"


@pytest.fixture(params=["shared", "prefixed", "index"])
def tenancy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["capture", "triggers"])
def world(request: pytest.FixtureRequest, engine: Engine, tenancy: str) -> Iterator[World]:
    made = World(engine, request.param, tenancy)
    made.run(_fill)
    assert len(made.held()) == 4
    yield made
    made.outbox.close()


def _fill(session: Session) -> None:
    session.add_all([Author(id=1, name="Ada"), Author(id=2, name="Bob")])
    session.add_all(
        Page(id=at, slug=slug, title=slug, author_id=1) for at, slug in enumerate(("a", "b", "c", "d|e"), 1)
    )


def _set(session: Session, key: int, **values: Any) -> None:
    page = session.get_one(Page, key)
    for name, value in values.items():
        setattr(page, name, value)
    session.flush()


def _swap(session: Session) -> None:
    _set(session, 1, slug="x")
    _set(session, 2, slug="a")
    _set(session, 1, slug="b")


def _take_over(session: Session) -> None:
    session.delete(session.get_one(Page, 1))
    session.flush()
    session.add(Page(id=9, slug="a", title="another"))


def _rolled_back(session: Session) -> None:
    with session.begin_nested() as savepoint:
        _set(session, 1, slug="lost")
        savepoint.rollback()
    _set(session, 1, title="kept")


def _there_and_back(session: Session) -> None:
    _set(session, 1, slug="x")
    _set(session, 1, slug="a", title="back")


def _expired(session: Session) -> None:
    page = session.get_one(Page, 1)
    session.expire(page)
    page.slug = "unread"


def _delete_unread(session: Session) -> None:
    page = session.get_one(Page, 1)
    session.expire(page)
    session.delete(page)


def _orphan(session: Session) -> None:
    author = session.get_one(Author, 1)
    author.pages.pop()
    session.flush()


def _upsert(session: Session) -> None:
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    inserted = dialect.insert(Page).values(id=7, slug="a", title="new")
    session.execute(inserted.on_conflict_do_update(index_elements=["slug"], set_={"title": "newer"}))


CHANGES: dict[str, Callable[[Session], object]] = {
    "set": lambda session: _set(session, 1, slug="new"),
    "set in another case": lambda session: _set(session, 1, slug="A"),
    "set with the tenant": lambda session: _set(session, 1, slug="new", tenant="t2"),
    "set the tenant": lambda session: _set(session, 1, tenant="t2"),
    "set the primary key": lambda session: _set(session, 1, id=77),
    "set unread": _expired,
    "set to what there is": lambda session: _set(session, 1, slug="a"),
    "there and back": _there_and_back,
    "swap": _swap,
    "take over": _take_over,
    "rolled back": _rolled_back,
    "delete": lambda session: session.delete(session.get_one(Page, 4)),
    "delete orphans": _orphan,
    "delete by cascade": lambda session: session.delete(session.get_one(Author, 1)),
    "delete unread": _delete_unread,
    "path": lambda session: setattr(session.get_one(Author, 1), "name", "Grace"),
    "insert": lambda session: session.execute(insert(Page), [{"id": 8, "slug": "h", "title": "8"}]),
    "insert without a key": lambda session: session.execute(insert(Page).values(slug="h", title="8")),
    "update": lambda session: session.execute(update(Page).where(Page.slug == "A").values(slug=Page.slug + "2")),
    "update all": lambda session: session.execute(update(Page).values({Page.slug: func.upper(Page.slug) + "2"})),
    "update many": lambda session: session.execute(update(Page), [{"id": 1, "slug": "x"}, {"id": 2, "slug": "y"}]),
    "update by parameter": lambda session: session.execute(
        update(Page).where(Page.id == bindparam("at")).values(slug="x"), {"at": 1}
    ),
    "update the path": lambda session: session.execute(update(Author).values(name=Author.name + "!")),
    "delete all": lambda session: session.execute(delete(Page)),
    "upsert": _upsert,
}


@pytest.mark.slow
def test_index_holds_what_the_tables_say_whatever_changes_the_id(world: World) -> None:
    for name, change in CHANGES.items():
        print(name)  # shown of what fails
        world.run(change)
        world.run(lambda session: session.execute(update(Page).values(title="more")))
        world.run(lambda session: (session.execute(delete(Page)), session.execute(delete(Author))))
        world.run(_fill)


@pytest.mark.sqlite
def test_id_that_a_listener_makes_of_a_title_moves_the_document(world: World) -> None:
    """The session has not read what the `_id` was."""

    def slugify(_mapper: Any, _connection: Any, page: Page) -> None:
        page.slug = page.title.lower()

    event.listen(Page, "before_update", slugify)
    try:

        def change(session: Session) -> None:
            page = session.get_one(Page, 1)
            session.expire(page)
            page.title = "Hello"

        world.run(change)
        assert "p/hello" in {document_id.split(":")[-1] for _, document_id in world.held()}
    finally:
        event.remove(Page, "before_update", slugify)


@pytest.mark.sqlite
def test_id_that_another_session_changed_meanwhile_moves_from_where_it_is(world: World) -> None:
    with world.sessions() as session:
        page = session.get_one(Page, 1)
        session.commit()
        session.expire_on_commit = False
        assert page.slug == "a"  # read again, and remembered
        session.commit()
        world.run(lambda other: other.execute(update(Page).where(Page.id == 1).values(slug="z")))
        page.title = "newer"
        session.commit()
    world.check()


@pytest.mark.sqlite
def test_id_that_the_database_makes_moves_the_document(engine: Engine) -> None:
    class Own(DeclarativeBase):
        pass

    class Post(Own):
        __tablename__ = "posts"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        slug: Mapped[str] = mapped_column(Computed("lower(title)"), unique=True, nullable=False)

    Own.metadata.create_all(engine)
    registry = EntityRegistry()
    registry.add(Post, index="posts", fields=["id"], id="slug")
    sessions = registry.capture(sessionmaker(engine))
    with OutboxTester(engine, registry) as outbox:
        for change in (
            lambda session: session.add(Post(id=1, title="Ada")),
            lambda session: setattr(session.get_one(Post, 1), "title", "Bob"),
            lambda session: session.execute(update(Post).values(title="Eve")),
        ):
            with sessions.begin() as session:
                change(session)
            outbox.drain()
        assert [outbox.document("posts", each) for each in ("ada", "bob", "eve")] == [None, None, {"id": 1}]


@pytest.mark.sqlite
@pytest.mark.parametrize("tenancy", ["shared"], indirect=True)
def test_document_is_named_by_its_id_in_the_repository(world: World) -> None:
    with world.sessions.begin() as session:
        outbox = OutboxRepository(session, world.registry)
        outbox.refresh("pages", "a")
        outbox.refresh(session.get_one(Page, 2))
        outbox.index("pages", "p/c", {})
        outbox.index_many("pages", [("p/d|e", {})])
        with pytest.raises(InvalidName, match=r"none of entity 'pages' \(id slug, tenancy 'shared'\)"):
            outbox.index("pages", "a", {})
        with pytest.raises(InvalidName, match="entity 'pages' has the id slug; pass all of it"):
            outbox.refresh("pages", (1, 2))
    rows = [each["document_id"] for each in world.outbox.rows("pages")][-4:]
    assert rows == ["p/a", "p/b", "p/c", "p/d|e"]
    world.check()


def test_part_of_a_row_in_another_table_tells_of_the_id_that_the_first_table_has(engine: Engine) -> None:
    class Models(DeclarativeBase):
        pass

    class Paper(Models):
        __tablename__ = "papers"
        id: Mapped[int] = mapped_column(primary_key=True)
        slug: Mapped[str] = mapped_column(unique=True)
        kind: Mapped[str]
        __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "paper"}

    class Guide(Paper):
        __tablename__ = "guides"
        id: Mapped[int] = mapped_column(ForeignKey("papers.id"), primary_key=True)
        steps: Mapped[int]
        __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "guide"}

    Models.metadata.create_all(engine)
    registry = EntityRegistry()
    registry.add(Guide, index="guides", fields=["steps"], id="slug")

    def holds_after(outbox: OutboxTester, expected: dict[str, int], *statements: str) -> None:
        with engine.begin() as connection:
            triggers.install(connection, registry)
            for statement in statements:
                connection.exec_driver_sql(statement)
        outbox.drain()
        found = {slug: outbox.document("guides", slug) for slug in ("a", "b")}
        assert {slug: document["steps"] for slug, document in found.items() if document is not None} == expected

    rows = "INSERT INTO papers (id, slug, kind) VALUES (1, 'a', 'guide'), (2, 'b', 'guide')"
    with OutboxTester(engine, registry) as outbox:
        holds_after(outbox, {"a": 3}, rows, "INSERT INTO guides (id, steps) VALUES (1, 3)")
        holds_after(outbox, {"a": 4}, "UPDATE guides SET steps = 4")
        holds_after(outbox, {"b": 4}, "UPDATE guides SET id = 2")
        holds_after(outbox, {}, "DELETE FROM guides")

"""An entity that is mapped to a view: its rows come and go with those of other tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Column, Engine, ForeignKey, Integer, MetaData, String, Table, delete, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.orm import registry as mappers

from outbox import ConfigurationError, Dependency, EntityRegistry
from outbox.triggers import installer as triggers
from tests.support.following import Following
from tests.write import ON_SQLITE


class Base(DeclarativeBase):
    pass


class Site(Base):
    __tablename__ = "sites"
    id: Mapped[int] = mapped_column(primary_key=True)
    open: Mapped[bool]
    remark: Mapped[str | None]


class Page(Base):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    public: Mapped[bool]
    site_id: Mapped[int] = mapped_column(ForeignKey("sites.id"))


VIEW = """CREATE VIEW shown AS SELECT p.id, p.title, p.site_id
FROM pages p JOIN sites s ON s.id = p.site_id AND s.open WHERE p.public"""


def shown_pages(**info: Any) -> Any:
    """A class of its own for each test."""
    columns = [Column("id", Integer, primary_key=True), Column("title", String), Column("site_id", Integer)]
    made = type("Shown", (), {})
    mappers().map_imperatively(made, Table("shown", MetaData(), *columns, info=info))
    return made


BY_BOTH: dict[Any, Any] = {Page: "id", Site: Dependency("site_id", watch=["open"])}


@pytest.fixture
def database(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(VIEW)
    with Session(engine) as session:
        session.add_all([Site(id=1, open=True), Site(id=2, open=False)])
        session.commit()
    return engine


def hide(session: Session) -> None:
    session.get_one(Page, 1).public = False


def hide_by_update(session: Session) -> None:
    session.execute(update(Page).where(Page.title == "a").values(public=False))


def close_site(session: Session) -> None:
    session.get_one(Site, 1).open = False


def close_site_by_update(session: Session) -> None:
    session.execute(update(Site).values(open=False))


def move(session: Session) -> None:
    session.get_one(Page, 1).site_id = 2


def change_key(session: Session) -> None:
    session.get_one(Page, 1).id = 7


def remove(session: Session) -> None:
    session.delete(session.get_one(Page, 1))


def remove_by_delete(session: Session) -> None:
    session.execute(delete(Page))


@pytest.mark.parametrize("noted_by", ["session", "triggers"])
@pytest.mark.parametrize(
    "change", [hide, hide_by_update, close_site, close_site_by_update, move, change_key, remove, remove_by_delete]
)
def test_row_that_leaves_a_view_leaves_the_index(
    database: Engine, change: Callable[[Session], None], noted_by: str
) -> None:
    registry = EntityRegistry()
    registry.add(shown_pages(is_view=True), index="shown", fields=["title"], depends_on=BY_BOTH)
    if noted_by == "triggers":
        with database.begin() as connection:
            triggers.install(connection, registry)
    following = Following(database, registry)
    with registry.capture(sessionmaker(database))() as session:
        session.add_all([Page(id=at, title="abc"[at - 1], public=at < 3, site_id=1) for at in (1, 2, 3)])
        session.commit()
        assert following.follow() == {("shown", "1"): {"title": "a"}, ("shown", "2"): {"title": "b"}}
        change(session)
        session.commit()
        assert ("shown", "1") not in following.follow()
        assert following.index == following.rebuilt()
        session.execute(insert(Page).values(id=9, title="new", public=True, site_id=2))
        session.execute(update(Page).values(public=True))
        session.execute(update(Site).values(open=True))
        session.commit()
        assert following.follow() == following.rebuilt()
        session.get_one(Site, 1).remark = "nothing that a document shows"
        session.commit()
        assert following.follow() == following.rebuilt()


@ON_SQLITE
def test_view_that_is_not_marked_is_exact_by_its_own_key_and_else_refused_when_it_is_noted(database: Engine) -> None:
    by_key, by_both = EntityRegistry(), EntityRegistry()
    by_key.add(shown_pages(), index="shown", fields=["title"], depends_on={Page: "id"})
    by_both.add(shown_pages(), index="shown", fields=["title"], depends_on=BY_BOTH)
    following = Following(database, by_key)
    with by_key.capture(sessionmaker(database))() as session:
        session.add(Page(id=1, title="a", public=True, site_id=1))
        session.commit()
        assert following.follow() == {("shown", "1"): {"title": "a"}}
        hide(session)
        session.commit()
        assert following.follow() == {}
    with (
        by_both.capture(sessionmaker(database))() as session,
        pytest.raises(
            ConfigurationError, match=r"entity 'shown': shown is a view; say so in its model.*'is_view': True"
        ),
    ):
        hide(session)
        session.add(Page(id=2, title="b", public=True, site_id=1))
        session.flush()
    with (
        database.begin() as connection,
        pytest.raises(ConfigurationError, match=r"on view.*say in its model that the table is a view: Table\(…, info="),
    ):
        triggers.install(connection, by_both)


def test_view_of_which_nothing_says_when_it_changes_is_refused() -> None:
    registry = EntityRegistry()
    with pytest.raises(
        ConfigurationError, match=r"Shown is mapped to a view or a SELECT.*e.g. depends_on=\{Page: 'id'\}"
    ):
        registry.add(shown_pages(is_view=True), index="shown", fields=["title"])
    assert len(registry) == 0


def test_class_that_is_mapped_to_a_select_is_as_exact_as_a_view(database: Engine) -> None:
    made = type("Listed", (), {})
    mappers().map_imperatively(
        made, select(Page.id, Page.title).where(Page.public).subquery("listed"), primary_key=[Page.id]
    )
    registry = EntityRegistry()
    registry.add(made, name="listed", index="listed", fields=["title"], depends_on={Page: "id"})
    following = Following(database, registry)
    with registry.capture(sessionmaker(database))() as session:
        session.add(Page(id=1, title="a", public=True, site_id=1))
        session.commit()
        assert following.follow() == {("listed", "1"): {"title": "a"}}
        hide(session)
        session.commit()
        assert following.follow() == following.rebuilt() == {}

"""Fields with names of their own, and paths into JSON columns: what a document holds, and what makes it anew."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import JSON, Engine, ForeignKey, func, update
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from outbox import ConfigurationError, DerivedMappings, EntityRegistry
from outbox.reindex.reindexer import reindex
from outbox.testing import OutboxTester
from outbox.triggers import installer as triggers
from outbox.verify import Drift, Verification


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    settings: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class Line(Base):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str | None]
    deal_id: Mapped[int] = mapped_column(ForeignKey("deals.id"))


class Deal(Base):
    __tablename__ = "deals"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    settings: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(JSON()))
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    account: Mapped[Account | None] = relationship()
    lines: Mapped[list[Line]] = relationship()


PLAIN = {"name": "title", "theme": "settings.theme", "size": "settings.ui.size", "all": "settings"}
LISTED = ["title", "settings.theme", "settings.ui.size"]
THROUGH = {"account": "account.name", "language": "account.settings.language", "skus": "lines.sku", "title": "title"}
VALUES: list[tuple[Any, Any, Any]] = [
    (None, None, None),
    ({}, None, None),
    ({"theme": "dark"}, "dark", None),
    ({"theme": None, "ui": {"size": 1}}, None, 1),
    ({"ui": 7}, None, None),
    ({"ui": [{"size": 1}, {"size": [2]}, 3]}, None, [1, 2, None]),
]


class World:
    def __init__(self, engine: Engine, fields: Any, **given: Any) -> None:
        Base.metadata.create_all(engine)
        self.engine, self.registry = engine, EntityRegistry()
        self.registry.add(Deal, index="deals", fields=fields, **given)
        self.sessions = self.registry.capture(sessionmaker(engine))
        self.outbox = OutboxTester(engine, self.registry)

    def document(self, key: int = 1) -> Any:
        self.outbox.drain()
        return self.outbox.document("deals", str(key))

    def drifts(self) -> list[Any]:
        found = Verification(self.outbox._store, self.outbox.destination, self.registry, patience=0).run()
        return [each for each in found if isinstance(each, Drift)]


@pytest.mark.parametrize("when", [None, lambda deal: deal.id])
@pytest.mark.parametrize(("value", "theme", "size"), VALUES)
def test_value_in_a_json_column_is_a_field(engine: Engine, value: Any, theme: Any, size: Any, when: Any) -> None:
    made = World(engine, PLAIN, when=when)
    with made.sessions.begin() as session:
        session.add(Deal(id=1, title="a", settings=value))
    made.outbox.drain()
    list(reindex(made.outbox._store, made.outbox.destination, made.registry, entities=["deals"]))
    assert made.document() == {"name": "a", "theme": theme, "size": size, "all": value}
    assert made.drifts() == []
    made.outbox.close()


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (None, None),
        ({}, {"theme": None, "ui": None}),
        ({"theme": "dark", "secret": 1, "ui": {"size": 1, "font": "x"}}, {"theme": "dark", "ui": {"size": 1}}),
        ({"ui": [{"size": 1}, 3]}, {"theme": None, "ui": [{"size": 1}, None]}),
    ],
)
def test_listed_path_into_a_json_column_keeps_its_objects(engine: Engine, value: Any, held: Any) -> None:
    made = World(engine, LISTED)
    with made.sessions.begin() as session:
        session.add(Deal(id=1, title="a", settings=value))
    assert made.document() == {"title": "a", "settings": held}
    assert made.drifts() == []
    made.outbox.close()


def test_fields_with_names_of_their_own_lead_through_relationships(engine: Engine) -> None:
    made = World(engine, THROUGH)
    with made.sessions.begin() as session:
        account = Account(id=1, name="Acme", settings={"language": "de"})
        lines = [Line(id=2, sku="b"), Line(id=1, sku="a"), Line(id=3)]
        session.add_all([Deal(id=1, title="a", account=account, lines=lines), Deal(id=2, title="b")])
    assert made.document() == {"account": "Acme", "language": "de", "skus": ["a", "b", None], "title": "a"}
    assert made.document(2) == {"account": None, "language": None, "skus": [], "title": "b"}
    with made.sessions.begin() as session:
        session.get_one(Account, 1).settings = {"language": "fr"}
    assert made.document()["language"] == "fr"
    with made.sessions.begin() as session:
        session.execute(update(Line).where(Line.id == 1).values(sku="c"))
    assert made.document()["skus"] == ["c", "b", None]
    assert made.drifts() == []
    made.outbox.close()


def _in_place(session: Session) -> None:
    deal = session.get_one(Deal, 1)
    assert deal.settings is not None
    deal.settings["theme"] = "light"


def _removed(session: Session) -> None:
    deal = session.get_one(Deal, 1)
    assert deal.settings is not None
    del deal.settings["theme"]


@pytest.mark.sqlite
@pytest.mark.parametrize("by", ["capture", "triggers"])
@pytest.mark.parametrize("fields", [{"theme": "settings.theme"}, ["settings.theme"]])
def test_change_within_a_json_column_makes_the_document_anew(engine: Engine, by: str, fields: Any) -> None:
    made = World(engine, fields)
    if by == "triggers":
        with engine.begin() as connection:
            triggers.install(connection, made.registry)
    with made.sessions.begin() as session:
        session.add(Deal(id=1, title="a", settings={"theme": "dark"}))
    changes: list[tuple[Any, str | None]] = [
        (_in_place, "light"),
        (_removed, None),
        (lambda session: session.execute(update(Deal).values(settings={"theme": "blue"})), "blue"),
        (lambda session: session.execute(update(Deal), [{"id": 1, "settings": {"theme": "red"}}]), "red"),
        (
            lambda session: session.execute(
                update(Deal).values(settings=func.json_set(Deal.settings, "$.theme", "green"))
            ),
            "green",
        ),
    ]
    for change, theme in changes:
        with made.sessions.begin() as session:
            change(session)
        held = made.document()
        assert held in ({"theme": theme}, {"settings": {"theme": theme}})
        assert made.drifts() == []
    made.outbox.close()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"a.b": "title"}, "'a.b' is no name for a field: use text without a dot"),
        ({"_id": "title"}, "'_id' is no name for a field"),
        ({"": "title"}, "is no name for a field"),
        ({"name": 7}, "field 7 is no path"),
        ({"name": "account..name"}, "is no path; write names with a dot between"),
        ({"name": "account"}, "is a relationship; name fields of it, e.g. account.id"),
        ({"name": "title.first"}, "Deal.title is no relationship and no JSON column; make the document by to_document"),
        ({}, "at least one"),
        (["settings.theme", "settings"], "settings is a field already, as a whole or another part"),
        (["settings", "settings.theme"], "settings is a field already"),
        (["settings.ui", "settings.ui.size"], "settings is a field already"),
        (["settings.ui.size", "settings.ui"], "settings is a field already"),
        (["settings."], "is no path"),
        (["account.name.first"], "Account.name is no relationship and no JSON column"),
    ],
)
def test_path_that_means_nothing_is_refused(fields: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        EntityRegistry().add(Deal, index="deals", fields=fields)


def test_mappings_are_derived_of_the_columns_under_the_names_of_the_fields() -> None:
    registry = EntityRegistry()
    fields = {"account": "account.name", "number": "account_id", "theme": "settings.theme"}
    with pytest.raises(ConfigurationError, match=r"field 'theme' leads into a JSON column, .* say which"):
        registry.add(Deal, index="deals", fields=fields, mappings="derived")
    given = DerivedMappings({"properties": {"theme": {"type": "keyword"}}})
    registry.add(Deal, index="deals", fields=fields, mappings=given)
    mappings, _ = registry.index_options("deals") or ({}, {})
    derived = mappings["properties"]
    assert {name: rule["type"] for name, rule in derived.items()} == {
        "account": "text", "number": "long", "theme": "keyword"
    }  # fmt: skip
    assert json.dumps(derived)

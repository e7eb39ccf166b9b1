"""Models of every kind that triggers may stand on, and a database that has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import DDL, Column, Engine, ForeignKey, String, Table, create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from sqlalchemy.pool import NullPool

from outbox import EntityRegistry
from outbox.triggers import installer as triggers


class Base(DeclarativeBase):
    pass


# SQLite has one of that name.
WITHOUT_CASE: Any = DDL(  # type: ignore[no-untyped-call]
    """CREATE COLLATION IF NOT EXISTS "NOCASE" (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"""
)
event.listen(Base.metadata, "before_create", WITHOUT_CASE.execute_if(dialect="postgresql"))


contact_tags = Table(
    "contact_tags",
    Base.metadata,
    Column("contact_id", ForeignKey("contacts.id", ondelete="CASCADE"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id", ondelete="CASCADE"), primary_key=True),
)


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    plan: Mapped[str | None]


class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(collation="NOCASE"))
    email: Mapped[str | None] = mapped_column(unique=True)
    seen: Mapped[int] = mapped_column(default=0, server_default="0")
    tenant_id: Mapped[str] = mapped_column(server_default="t1", default="t1")
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    account: Mapped[Account | None] = relationship()
    tags: Mapped[list[Tag]] = relationship(secondary=contact_tags)


class Part(Base):
    __tablename__ = "parts"
    maker: Mapped[str] = mapped_column(primary_key=True)
    serial: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    tenant_id: Mapped[UUID]


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    tenant_id: Mapped[str] = mapped_column(default="t1")
    chief_id: Mapped[int | None] = mapped_column(ForeignKey("people.id"))
    chief: Mapped[Person | None] = relationship(remote_side=[id])
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Guest(Person):
    room: Mapped[str | None]
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "guest"}


class Engineer(Person):
    __tablename__ = "engineers"
    number: Mapped[int] = mapped_column(ForeignKey("people.id", ondelete="CASCADE"), primary_key=True)
    language: Mapped[str]
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "engineer"}


Row = tuple[str, str]


def registered(*models: type[Any], **given: Any) -> EntityRegistry:
    """A registry of these models, with fields that are there."""
    made = EntityRegistry()
    fields = {
        Contact: ["name", "email"], Part: ["name"], Account: ["name"], Person: ["name"], Guest: ["name"],
        Engineer: ["name", "language"],
    }  # fmt: skip
    for model in models:
        options = given if "to_document" in given else {"fields": fields[model]} | given
        made.add(model, name=model.__name__.lower(), index=f"{model.__name__.lower()}s", **options)
    return made


class World:
    """A database with the triggers of a registry, and what has come into the outbox since the last look."""

    def __init__(self, engine: Engine, registry: EntityRegistry) -> None:
        self.engine, self.registry = engine, registry
        self._seen = 0
        with engine.begin() as connection:
            triggers.install(connection, registry)

    def run(self, *statements: Any) -> list[Row]:
        """Statements in one transaction, past any session; the rows that they bring."""
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement) if isinstance(statement, str) else statement)
        return self.rows()

    def rows(self) -> list[Row]:
        return [(row.index_name, row.document_id) for row in self.full_rows()]

    def full_rows(self) -> list[Any]:
        with self.engine.connect() as connection:
            found = connection.execute(
                text("SELECT * FROM outbox_events WHERE id > :seen ORDER BY id"), {"seen": self._seen}
            ).all()
        self._seen = found[-1].id if found else self._seen
        return list(found)

    def captured(self) -> sessionmaker[Session]:
        return self.registry.capture(sessionmaker(self.engine))


def on_postgresql(engine: Engine) -> bool:
    return engine.dialect.name == "postgresql"


@contextmanager
def other_program(engine: Engine) -> Iterator[Any]:
    """A cursor of a program that knows nothing of us, in a transaction of its own."""
    other = create_engine(engine.url, poolclass=NullPool)
    connection = other.raw_connection()
    try:
        yield connection.cursor()
        connection.commit()
    finally:
        connection.close()
        other.dispose()


def dropped(engine: Engine, name: str, table: str) -> str:
    """The statement that drops a trigger."""
    return f"DROP TRIGGER {name} ON {table}" if on_postgresql(engine) else f"DROP TRIGGER {name}"


def made_by_others(engine: Engine, name: str) -> list[str]:
    """Statements that make a trigger on `contacts` which is not ours."""
    if not on_postgresql(engine):
        return [f"CREATE TRIGGER {name} AFTER DELETE ON contacts BEGIN SELECT 1; END"]
    return [
        "CREATE OR REPLACE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        f"CREATE TRIGGER {name} AFTER DELETE ON contacts EXECUTE FUNCTION theirs()",
    ]


World_ = Callable[..., World]


ADA = "INSERT INTO contacts (id, name, email) VALUES (1, 'Ada', 'ada@a.example')"

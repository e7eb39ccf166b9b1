"""A tenant is one value, however it is stored, typed or passed: UUIDs, integers, members of enums."""

from __future__ import annotations

import enum
import uuid
from typing import Any

import pytest
from sqlalchemy import CHAR, String, TypeDecorator, Uuid
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from outbox import EntityRegistry, tenants
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.reindex import reindex
from outbox.verify import Drift, Verification
from tests.support.outbox import Outbox

TENANT = uuid.UUID("0f8fad5b-d9cb-469f-a165-70867728950e")
OTHER = uuid.UUID(int=7)


class GUID(TypeDecorator[uuid.UUID]):
    """As in SQLAlchemy's documentation: 32 hexadecimal digits, where the database has no type for it."""

    impl = CHAR(32)
    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> Any:
        return dialect.type_descriptor(postgresql.UUID() if dialect.name == "postgresql" else CHAR(32))

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return (value if isinstance(value, uuid.UUID) else uuid.UUID(value)).hex

    def process_result_value(self, value: Any, _dialect: Any) -> uuid.UUID | None:
        return value if value is None or isinstance(value, uuid.UUID) else uuid.UUID(value)


class Wrapped(TypeDecorator[uuid.UUID]):
    """A decorator that takes nothing but UUIDs."""

    impl = Uuid
    cache_ok = True


class Plan(enum.Enum):
    FREE = "free of charge"
    PAID = "paid"


class Base(DeclarativeBase):
    pass


class OfGuid(Base):
    __tablename__ = "of_guid"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[uuid.UUID] = mapped_column(GUID)
    text: Mapped[str]


class OfWrapped(Base):
    __tablename__ = "of_wrapped"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[uuid.UUID] = mapped_column(Wrapped)
    text: Mapped[str]


class OfUuid(Base):
    __tablename__ = "of_uuid"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[uuid.UUID]
    text: Mapped[str]


class OfText(Base):
    __tablename__ = "of_text"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(String(36))
    text: Mapped[str]


class OfNumber(Base):
    __tablename__ = "of_number"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[int]
    text: Mapped[str]


class OfEnum(Base):
    __tablename__ = "of_enum"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[Plan]
    text: Mapped[str]


UUIDS = (TENANT, str(TENANT), TENANT.hex, str(TENANT).upper(), TENANT.hex.upper(), f"{{{TENANT}}}")
KINDS = {
    "GUID decorator": (OfGuid, TENANT, OTHER, UUIDS),
    "Uuid decorator": (OfWrapped, TENANT, OTHER, UUIDS),
    "Uuid": (OfUuid, TENANT, OTHER, UUIDS),
    "text with dashes": (OfText, str(TENANT), str(OTHER), UUIDS),
    "text without": (OfText, TENANT.hex, OTHER.hex, UUIDS),
    "text in capitals": (OfText, str(TENANT).upper(), str(OTHER), UUIDS),
    "integer": (OfNumber, 7, 77, (7, "7", "007")),
    "enum": (OfEnum, Plan.FREE, Plan.PAID, (Plan.FREE, "FREE", "free of charge")),
}


class World:
    """Two documents, one of a tenant and one of another."""

    def __init__(self, outbox: Outbox, embedded: EmbeddedDestination, kind: str, tenancy: str) -> None:
        self.model, self.tenant, other, self.spellings = KINDS[kind]
        self.outbox, self.embedded, self.registry = outbox, embedded, EntityRegistry()
        Base.metadata.create_all(outbox.engine)
        self.registry.add(self.model, index="notes", fields=["text"], tenant="tenant", tenancy=tenancy)
        captured = sessionmaker(outbox.engine, class_=type("Captured", (Session,), {}))
        self.registry.capture(captured)
        with captured.begin() as session:
            session.add_all(self.model(id=at, text="zebra", tenant=each) for at, each in ((1, self.tenant), (2, other)))
        self.deliver()

    def deliver(self) -> None:
        relay = self.outbox.relay(self.embedded, registry=self.registry)
        while relay.run_once():
            pass

    def verified(self, tenant: Any) -> tuple[list[Drift], int, int]:
        made = Verification(self.outbox.store(), self.embedded, self.registry, tenant_id=tenant, patience=0)
        drifts = [each for each in made.run() if isinstance(each, Drift)]
        return drifts, made.totals.documents, made.totals.listed

    def ids(self) -> list[str]:
        names = self.outbox.store().targets()
        return [each for name in names for page in self.embedded.pages(name, 10) for each in page]


@pytest.fixture(params=[(kind, tenancy) for kind in KINDS for tenancy in ("shared", "prefixed", "index")], ids="-".join)
def world(request: pytest.FixtureRequest, outbox: Outbox, embedded: EmbeddedDestination) -> World:
    kind, tenancy = request.param
    if tenancy == "index" and kind in ("text in capitals", "enum"):
        pytest.skip("such a tenant is no part of an index name")
    return World(outbox, embedded, kind, tenancy)


def test_every_spelling_verifies_reindexes_and_drops_the_same_documents(world: World) -> None:
    store = world.outbox.store()
    for spelled in world.spellings:
        assert world.verified(spelled) == ([], 1, 1), spelled
        steps = list(reindex(store, world.embedded, world.registry, everything=True, tenant=spelled))
        assert len({step.job for step in steps}) == 1, spelled
        held = tenants.holdings(store, world.embedded, world.registry, spelled)
        assert (held.rows, len(held.own_indexes), [len(ids) for ids in held.documents.values()]) in (
            (1, 1, []), (1, 0, [1])
        ), spelled  # fmt: skip
    tenants.drop(store, world.embedded, held, spelled)
    world.deliver()
    assert len(world.ids()) == 1


def test_every_spelling_finds_what_is_missing_and_what_is_too_much(world: World) -> None:
    with world.outbox.engine.begin() as connection:
        connection.exec_driver_sql(f"DELETE FROM {world.model.__tablename__} WHERE id = 1")
    for spelled in world.spellings:
        drifts, _, listed = world.verified(spelled)
        assert ([str(each.kind) for each in drifts], listed) == (["extra"], 1), spelled

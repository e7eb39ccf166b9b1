"""The entity of `bin/bench drain --refresh`, in a module of its own because the relay imports it too."""

from __future__ import annotations

from sqlalchemy import JSON
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox import EntityRegistry


class Base(DeclarativeBase):
    pass


class Contact(Base):
    __tablename__ = "bench_contacts"
    id: Mapped[str] = mapped_column(primary_key=True)
    first_name: Mapped[str]
    last_name: Mapped[str]
    email: Mapped[str]
    company: Mapped[str]
    city: Mapped[str]
    tags: Mapped[list[str]] = mapped_column(JSON)
    score: Mapped[int]
    created_at: Mapped[str]
    notes: Mapped[str]


registry = EntityRegistry()
registry.add(
    Contact,
    name="contacts",
    index="bench",
    fields=["first_name", "last_name", "email", "company", "city", "tags", "score", "created_at", "notes"],
)

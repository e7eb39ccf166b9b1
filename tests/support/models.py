"""The application that most tests need: contacts of tenants, and what has a key of two columns.

A test that needs another shape (paths, collections, subclasses) keeps models of its own.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    phone: Mapped[str | None]
    tenant: Mapped[str] = mapped_column(default="t1")
    archived: Mapped[bool] = mapped_column(default=False)
    changed: Mapped[datetime] = mapped_column(default=datetime(2026, 1, 1))


class Company(Base):
    """Its key has two columns, so that its `_id` has two parts."""

    __tablename__ = "companies"
    code: Mapped[str] = mapped_column(primary_key=True)
    region: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

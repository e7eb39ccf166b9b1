"""A small CRM: an example of an application whose contacts, accounts and deals can be searched.

Two ways to use the outbox, side by side. Both write their rows in the transaction of the change itself.

* Accounts and contacts are *registered*: the registry says what their documents hold, and every change that a
  session makes is noted automatically. The code that changes them knows nothing of search.
* Deals are written by *explicit calls*: `index`, `update` and `delete`, one beside each change.

`bin/demo` runs this file, and so does its relay, which finds the registry by `OUTBOX_ENTITIES=crm:registry`.
`crm_api.py` beside it makes a web API of it.
"""

from __future__ import annotations

from datetime import date
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from outbox import EntityRegistry, OutboxRepository, settings, sqlite

# -- the database ----------------------------------------------------------------------------------------------------

engine = create_engine(settings.load().database_url or "sqlite:///crm.db")
if engine.dialect.name == "sqlite":  # PostgreSQL needs nothing
    sqlite.prepare(engine)  # once, before the first connection: WAL, and waiting for the write lock
Sessions = sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class Account(Base):
    """A company that buys, or might."""

    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    name: Mapped[str]
    industry: Mapped[str]
    city: Mapped[str]
    country: Mapped[str]
    employees: Mapped[int] = mapped_column(BigInteger)
    contacts: Mapped[list[Contact]] = relationship(back_populates="account", cascade="all, delete-orphan")
    deals: Mapped[list[Deal]] = relationship(back_populates="account")


class Contact(Base):
    """A person who works there."""

    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"), index=True)
    name: Mapped[str]
    email: Mapped[str]
    job_title: Mapped[str]
    notes: Mapped[str]
    account: Mapped[Account] = relationship(back_populates="contacts")


class Deal(Base):
    """What they may buy, for how much, and how far it is."""

    __tablename__ = "deals"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"), index=True)
    title: Mapped[str]
    stage: Mapped[str]
    amount: Mapped[int]
    closes_on: Mapped[date]
    account: Mapped[Account] = relationship(back_populates="deals")

    def document(self) -> dict[str, Any]:
        """What searchers see of it."""
        return {
            "title": self.title,
            "stage": self.stage,
            "amount": self.amount,
            "closes_on": self.closes_on,
            "account": {"name": self.account.name, "city": self.account.city},
            "tenantId": self.tenant_id,
        }


# -- accounts and contacts: registered, and captured -----------------------------------------------------------------

ACCOUNTS, CONTACTS, DEALS = "demo-accounts", "demo-contacts", "demo-deals"

registry = EntityRegistry()
registry.add(
    Account,
    index=ACCOUNTS,
    tenant="tenant_id",
    fields=["name", "industry", "city", "country", "employees"],
    mappings={"properties": {"employees": {"type": "integer"}}},  # for all others, the search engine's choice will do
)
registry.add(
    Contact,
    index=CONTACTS,
    tenant="tenant_id",
    # The name of the account is part of the document: renaming the account makes those of its contacts anew.
    fields=["name", "email", "job_title", "notes", "account.name"],
)
registry.capture(Sessions)  # for what other programs write there are triggers: outbox-relay triggers install


def hire(session: Session, account: Account, **person: str) -> Contact:
    """A new person at an account. Nothing here mentions search: the session notes the change."""
    contact = Contact(account=account, tenant_id=account.tenant_id, **person)
    session.add(contact)
    return contact


# -- deals: one explicit call beside each change ---------------------------------------------------------------------


def open_deal(session: Session, account: Account, **deal: Any) -> Deal:
    """A new deal: its whole document."""
    opened = Deal(account=account, tenant_id=account.tenant_id, **deal)
    session.add(opened)
    session.flush()  # gives it its id
    OutboxRepository(session).index(DEALS, str(opened.id), opened.document(), tenant_id=opened.tenant_id)
    return opened


def move_deal(session: Session, deal: Deal, stage: str, amount: int) -> None:
    """A deal gets on: a partial update, of the fields that changed."""
    deal.stage, deal.amount = stage, amount
    changes = {"stage": stage, "amount": amount}
    OutboxRepository(session).update(DEALS, str(deal.id), changes, tenant_id=deal.tenant_id)


def rewrite_deal(session: Session, deal: Deal, **changes: Any) -> None:
    """Anything of a deal may change: its whole document again."""
    for name, value in changes.items():
        setattr(deal, name, value)
    session.flush()
    OutboxRepository(session).index(DEALS, str(deal.id), deal.document(), tenant_id=deal.tenant_id)


def drop_deal(session: Session, deal: Deal) -> None:
    """A deal that comes to nothing."""
    session.delete(deal)
    OutboxRepository(session).delete(DEALS, str(deal.id), tenant_id=deal.tenant_id)


# -- both in one transaction -----------------------------------------------------------------------------------------


def change_account(session: Session, account: Account, **changes: Any) -> None:
    """Documents of the account and its contacts follow automatically; its deals need a call."""
    for name, value in changes.items():
        setattr(account, name, value)
    outbox = OutboxRepository(session)
    for deal in account.deals:
        of_account = {"account": {"name": account.name, "city": account.city}}  # merged into the document
        outbox.update(DEALS, str(deal.id), of_account, tenant_id=deal.tenant_id)


def close_account(session: Session, account: Account) -> None:
    """An account leaves, with its contacts and deals."""
    for deal in list(account.deals):
        drop_deal(session, deal)
    session.delete(account)

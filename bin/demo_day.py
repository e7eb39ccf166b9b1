"""Days of a CRM: accounts, contacts and deals come, change and go, each change in a transaction of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import crm
from crm import Account, Contact, Deal, Sessions, engine
from demo_records import JOB_TITLES, STAGES, TOPICS, Chance, Country
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from outbox import OutboxRepository

TENANTS = ["acme", "globex", "initech"]
ACCOUNTS_A_TENANT = 80
MISTYPED = 12_000_000_000

M = TypeVar("M", Account, Contact, Deal)
Tick = Callable[[], None]


class Day:
    """What people do; the same every time, whatever the relay does meanwhile."""

    def __init__(self) -> None:
        self._chance = Chance(1815)
        self._wishes: list[tuple[float, Callable[[Session], None]]] = [
            (0.22, self._new_contact),
            (0.24, self._contact_changes),
            (0.28, self._deal_moves),
            (0.08, self._new_deal),
            (0.07, self._contact_leaves),
            (0.05, self._deal_comes_to_nothing),
            (0.04, self._account_is_renamed),
            (0.02, self._account_leaves),
        ]

    def new_accounts(self, tick: Tick) -> int:
        """Accounts of all tenants, with their contacts and deals. Returns how many transactions that took."""
        for _ in range(ACCOUNTS_A_TENANT):
            for tenant in TENANTS:
                with Sessions.begin() as session:
                    self._new_customer(session, tenant)
                tick()
        return ACCOUNTS_A_TENANT * len(TENANTS)

    def work(self, changes: int, tick: Tick) -> float:
        """So many changes. Returns the seconds that the slowest transaction took."""
        slowest = 0.0
        for _ in range(changes):
            began = time.perf_counter()
            with Sessions.begin() as session:
                self._chance.weighted(self._wishes)(session)
            slowest = max(slowest, time.perf_counter() - began)
            tick()
        return slowest

    def moment(self, number: int) -> None:
        """One change of those that have no end, the first being number 0."""
        if number % 100 == 10:
            change = self._number_is_mistyped
        elif number % 100 == 60:
            change = self._mistake_is_noticed
        elif number % 40 == 20:  # customers come as fast as others leave
            change = partial(self._new_customer, tenant=self._chance.choice(TENANTS))
        else:
            change = self._chance.weighted(self._wishes)
        with Sessions.begin() as session:
            change(session)

    def import_contacts(self, number: int) -> None:
        """Many contacts in one transaction."""
        with Sessions.begin() as session:
            account, country = self._account(session, "acme")
            for _ in range(number):
                crm.hire(session, account, **self._person(account, country))

    def foreign_tool(self) -> int:
        """What a program that knows nothing of this one does with the tables. Returns how many rows it changed."""
        statements = [
            "UPDATE contacts SET job_title = upper(job_title) WHERE tenant_id = 'globex'",
            "UPDATE accounts SET industry = 'logistics' WHERE industry = 'shipping'",
            "DELETE FROM contacts WHERE notes LIKE '%the old supplier%'",
        ]
        with engine.begin() as connection:
            return sum(connection.execute(text(each)).rowcount for each in statements)

    def last_customer(self) -> tuple[str, float]:
        """An account, a contact and a deal, and the wait until all can be found. Returns a name, and the seconds."""
        with Sessions() as session:
            account, country = self._account(session, "globex")
            contact = crm.hire(session, account, **self._person(account, country))
            crm.open_deal(session, account, **self._chance.deal(account.city))
            session.commit()
            began = time.perf_counter()
            OutboxRepository(session).wait_until_synced(60, searchable=True)
            return contact.name, time.perf_counter() - began

    def counts(self) -> dict[str, int]:
        """What there is now."""
        with Sessions() as session:
            return {
                model.__tablename__: session.scalar(select(func.count()).select_from(model)) or 0
                for model in (Account, Contact, Deal)
            }

    # -- one change each ----------------------------------------------------------------------------------------

    def _new_customer(self, session: Session, tenant: str) -> None:
        account, country = self._account(session, tenant)
        for _ in range(self._chance.randint(3, 9)):
            crm.hire(session, account, **self._person(account, country))
        for _ in range(self._chance.randint(1, 5)):
            crm.open_deal(session, account, **self._chance.deal(account.city))

    def _new_contact(self, session: Session) -> None:
        account = self._any(session, Account)
        crm.hire(session, account, **self._person(account, self._chance.country()))

    def _contact_changes(self, session: Session) -> None:
        contact = self._any(session, Contact)
        contact.job_title = self._chance.choice(JOB_TITLES)
        contact.notes = f"Called about {self._chance.choice(TOPICS)}. {contact.notes}"

    def _contact_leaves(self, session: Session) -> None:
        session.delete(self._any(session, Contact))

    def _new_deal(self, session: Session) -> None:
        account = self._any(session, Account)
        crm.open_deal(session, account, **self._chance.deal(account.city))

    def _deal_moves(self, session: Session) -> None:
        deal = self._any(session, Deal)
        crm.move_deal(session, deal, self._chance.choice(STAGES), deal.amount + 500)

    def _deal_comes_to_nothing(self, session: Session) -> None:
        crm.drop_deal(session, self._any(session, Deal))

    def _account_is_renamed(self, session: Session) -> None:
        account = self._any(session, Account)
        crm.change_account(session, account, name=f"{account.name} Group")

    def _number_is_mistyped(self, session: Session) -> None:
        """The database takes it, the index does not."""
        self._any(session, Account).employees = MISTYPED

    def _mistake_is_noticed(self, session: Session) -> None:
        """The document is written again. The dead row stays until an operator retries or discards it."""
        for account in session.scalars(select(Account).where(Account.employees == MISTYPED)):
            account.employees = 12

    def _account_leaves(self, session: Session) -> None:
        crm.close_account(session, self._any(session, Account))

    # -- who and what -------------------------------------------------------------------------------------------

    def _account(self, session: Session, tenant: str) -> tuple[Account, Country]:
        country = self._chance.country()
        account = Account(tenant_id=tenant, **self._chance.company(country))
        session.add(account)
        session.flush()
        return account, country

    def _person(self, account: Account, country: Country) -> dict[str, str]:
        return self._chance.person(account.name, country)

    def _any(self, session: Session, model: type[M]) -> M:
        highest = session.scalar(select(func.max(model.id))) or 1
        from_here = select(model).where(model.id >= self._chance.randint(1, highest)).order_by(model.id).limit(1)
        return session.scalars(from_here).one()

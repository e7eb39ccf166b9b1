"""A small CRM whose contacts, accounts and deals are in Elasticsearch, whatever happens to the relay."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from elasticsearch import Elasticsearch
from node import node
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from sqlalchemy import ForeignKey, create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from outbox import OutboxRepository, sqlite

console = Console()
chance = random.Random(1815)
OUTBOX_RELAY = Path(sys.executable).with_name("outbox-relay")

FIRST = ["Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Katherine", "Linus", "Margaret", "Radia", "Hedy"]
LAST = ["Lovelace", "Hopper", "Turing", "Dijkstra", "Liskov", "Knuth", "Johnson", "Hamilton", "Ritchie", "Perlman"]
COMPANIES = ["Analytical Engines", "Northwind", "Blue Harbour", "Kite & Sons", "Oakfield", "Meridian", "Tidewater"]
TENANTS = ["acme", "globex", "initech"]


# -- the application: ordinary SQLAlchemy models … ---------------------------------------------------------------


class Base(DeclarativeBase):
    def document(self) -> dict[str, Any]:
        """What searchers see of it."""
        return {column.name: getattr(self, column.name) for column in self.__table__.columns}


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    name: Mapped[str]


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    first_name: Mapped[str]
    last_name: Mapped[str]
    email: Mapped[str]
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"))


class Deal(Base):
    __tablename__ = "deals"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    title: Mapped[str]
    amount: Mapped[int]
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"))


MODELS: tuple[type[Account] | type[Contact] | type[Deal], ...] = (Account, Contact, Deal)


def index_of(model: type[Base]) -> str:
    return f"demo-{model.__tablename__}"


# -- … and the outbox: one call beside each write, in the same transaction ----------------------------------------


def save(session: Session, *entities: Account | Contact | Deal) -> None:
    session.add_all(entities)
    session.flush()  # gives new entities their ids
    repo = OutboxRepository(session)
    for entity in entities:
        repo.index(index_of(type(entity)), str(entity.id), entity.document(), tenant_id=entity.tenant_id)


def remove(session: Session, entity: Account | Contact | Deal) -> None:
    session.delete(entity)
    OutboxRepository(session).delete(index_of(type(entity)), str(entity.id), tenant_id=entity.tenant_id)


def a_working_day(sessions: sessionmaker[Session], customers: int) -> None:
    """New customers, changes of old ones, and some that leave: each in a transaction of its own."""
    for _ in range(customers):
        tenant, first, last = chance.choice(TENANTS), chance.choice(FIRST), chance.choice(LAST)
        company = chance.choice(COMPANIES)
        with sessions.begin() as session:
            account = Account(tenant_id=tenant, name=company)
            save(session, account)
            email = f"{first}.{last}@{company.split()[0]}.example".lower()
            contact = Contact(
                tenant_id=tenant, first_name=first, last_name=last, email=email, account_id=account.id
            )  # fmt: skip
            deal = Deal(
                tenant_id=tenant, title=f"{company} renewal", amount=chance.randint(1, 90) * 500, account_id=account.id
            )
            save(session, contact, deal)
        with sessions.begin() as session:
            negotiated = session.get_one(Deal, chance.randint(1, deal.id))
            negotiated.amount += 1_000
            save(session, negotiated)
        if chance.random() < 0.1:
            with sessions.begin() as session:
                leaving = session.scalars(select(Contact).order_by(Contact.id.desc()).limit(1)).one()
                remove(session, leaving)


# -- what you see --------------------------------------------------------------------------------------------------


def main() -> int:
    console.rule("[bold]outbox-relay: a killed relay loses nothing")
    with tempfile.TemporaryDirectory() as directory, node(console) as url:
        database = Path(directory) / "crm.db"
        environment = os.environ | {
            "OUTBOX_DATABASE_URL": f"sqlite:///{database}",
            "OUTBOX_ELASTICSEARCH_URL": url,
        }
        subprocess.run([OUTBOX_RELAY, "migrate"], env=environment, check=True, stdout=subprocess.DEVNULL)
        engine = create_engine(f"sqlite:///{database}")
        sqlite.prepare(engine)
        Base.metadata.create_all(engine)
        sessions = sessionmaker(engine, expire_on_commit=False)
        client = Elasticsearch(url)
        for model in MODELS:
            client.options(ignore_status=404).indices.delete(index=f"{index_of(model)}-000001")

        def count(state: str) -> int:
            with engine.connect() as connection:
                query = text("SELECT count(*) FROM outbox_events WHERE state = :state")
                return int(connection.execute(query, {"state": state}).scalar_one())

        def relay() -> subprocess.Popen[bytes]:
            return subprocess.Popen([OUTBOX_RELAY, "run"], env=environment, stderr=subprocess.DEVNULL)

        with Progress(TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), console=console) as bar:
            task = bar.add_task("the CRM writes, a relay delivers", total=None)

            def show(description: str) -> None:
                done = count("done")
                bar.update(
                    task, description=description, completed=done, total=done + count("pending") + count("claimed")
                )

            running = relay()
            for _ in range(10):
                a_working_day(sessions, 25)
                show("the CRM writes, a relay delivers")
            running.kill()  # SIGKILL: it can say goodbye to nobody
            running.wait()
            for _ in range(10):
                a_working_day(sessions, 25)
                show("[red]relay killed[/]; the CRM goes on writing")
            running = relay()
            while count("pending") + count("claimed"):
                show("[green]relay started again[/]; it catches up")
                time.sleep(0.1)
            show("everything is delivered")
            running.terminate()
            running.wait()

        equal = compare(engine, client)
        engine.dispose()
        client.close()
    if equal:
        console.print("\nTry next: [bold]bin/elasticsearch[/] in one terminal, the README's first snippet in another,")
        console.print("then [bold]outbox-relay run[/], [bold]outbox-relay status[/] and [bold]outbox-relay check[/].")
    return 0 if equal else 1


def compare(engine: Any, client: Elasticsearch) -> bool:
    """Whether each index holds exactly what its table holds."""
    equal = True
    with Session(engine) as session:
        for model in MODELS:
            table = {str(entity.id): entity.document() for entity in session.scalars(select(model))}
            client.indices.refresh(index=index_of(model))
            hits = client.search(index=index_of(model), size=10_000)["hits"]["hits"]
            index = {hit["_id"]: hit["_source"] for hit in hits}
            same = table == index
            equal &= same
            mark = "[green]✓ equal[/]" if same else "[red]✗ different[/]"
            console.print(f"{model.__tablename__:<10} {len(table):>6,} rows   {len(index):>6,} documents   {mark}")
            for document_id in [key for key in table | index if table.get(key) != index.get(key)][:5]:
                console.print(f"    {document_id}: {table.get(document_id)} ≠ {index.get(document_id)}")
    return equal


if __name__ == "__main__":
    sys.exit(main())

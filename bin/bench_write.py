"""What a row costs the writer."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
from bench_database import databases, on_postgres
from bench_load import documents
from bench_report import as_json, report
from sqlalchemy import ForeignKey, func, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from outbox import EntityRegistry, OutboxRepository
from outbox.triggers import installer as triggers

Sessions = sessionmaker[Session]
Work = Callable[[Session], None]
Found = dict[str, Any]

NAMED = documents(300)
VARIED = itertools.cycle(NAMED)


class Base(DeclarativeBase):
    pass


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    notes: Mapped[str]
    tenant_id: Mapped[str] = mapped_column(default="t1")
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"), index=True)


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


MORE = """
WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < :number)
INSERT INTO contacts (name, notes, tenant_id, account_id) SELECT 'Ada', 'notes', 't1', 1 FROM n
"""


# -- what a transaction does -------------------------------------------------------------------------------------------


def add(rows: int) -> Work:
    return lambda session: session.add_all(Contact(name="Ada", notes=document["notes"]) for _, document in NAMED[:rows])


def change(rows: int) -> Work:
    def work(session: Session) -> None:
        name = next(VARIED)[0]
        for contact in session.scalars(select(Contact).limit(rows)):
            contact.name = name

    return work


def update_in_bulk(session: Session) -> None:
    session.execute(update(Contact).where(Contact.id <= 300).values(name=next(VARIED)[0]))


def rename_account(session: Session) -> None:
    session.get_one(Account, 1).name = next(VARIED)[0]


def one(repo: OutboxRepository) -> None:
    repo.index("contacts", *next(VARIED), tenant_id="t1")


def many(repo: OutboxRepository) -> None:
    repo.index_many("contacts", NAMED, tenant_id="t1")


def loop(repo: OutboxRepository) -> None:
    for document_id, document in NAMED:
        repo.index("contacts", document_id, document, tenant_id="t1")


# -- what it costs -----------------------------------------------------------------------------------------------------


def took(sessions: Sessions, work: Work) -> float:
    start = time.perf_counter()
    with sessions.begin() as session:
        work(session)
    return time.perf_counter() - start


def compared(rows: int, number: int, without: Callable[[], float], with_: Callable[[], float]) -> float:
    """Microseconds a row: the median transaction with outbox rows less the one without, run in turn."""
    pairs = [(without(), with_()) for _ in range(number)]
    medians = [statistics.median(times) for times in zip(*pairs, strict=True)]
    return (medians[1] - medians[0]) / rows * 1e6


def same_work(rows: int, number: int, work: Work, plain: Sessions, other: Sessions) -> float:
    """Of sessions whose changes are noted, against plain ones."""
    return compared(rows, number, lambda: took(plain, work), lambda: took(other, work))


def found(what: str, micros: float) -> Found:
    return {"what": what, "µs a row": micros}


@click.command()
@click.option("--blocks", default=40, show_default=True, help="How long: 50 single and one large transaction each.")
@on_postgres
@as_json
def write(blocks: int, postgres: bool, as_json: bool) -> None:
    """What an outbox row costs a transaction: against the same transactions without it."""
    with databases(postgres=postgres) as new:
        engine, beside = new(), new()
        for each in (engine, beside):
            Base.metadata.create_all(each)
        plain, captured = sessionmaker(engine), sessionmaker(engine)
        triggered, aside = sessionmaker(beside), sessionmaker(beside)
        registry = EntityRegistry()
        registry.add(
            Contact,
            index="contacts",
            fields=["name", "notes"],
            tenant="tenant_id",
            depends_on={Account: "account_id"},
        )
        registry.capture(captured)
        registry.capture(aside)
        with beside.begin() as connection:
            triggers.install(connection, registry)
        rows = [*of_repository(plain, blocks), *of_capture(plain, captured, blocks)]
        rows += of_triggers(plain, triggered, aside, blocks, dependents(plain))
    report("a transaction with outbox rows, less the same one without", rows, as_json=as_json)


def of_repository(plain: Sessions, blocks: int) -> Iterator[Found]:
    def cost(rows: int, transactions: int, write: Callable[[OutboxRepository], None]) -> float:
        def work(session: Session) -> None:
            add(rows)(session)
            write(OutboxRepository(session))

        return compared(rows, transactions, lambda: took(plain, add(rows)), lambda: took(plain, work))

    yield found("one row in a one-row transaction", cost(1, 50 * blocks, one))
    yield found("index_many, 300 a transaction", cost(300, blocks, many))
    yield found("index() in a loop of 300", cost(300, blocks, loop))


def of_capture(plain: Sessions, captured: Sessions, blocks: int) -> Iterator[Found]:
    def cost(rows: int, transactions: int, work: Work) -> float:
        return same_work(rows, transactions, work, plain, captured)

    yield found("capture, one new object", cost(1, 50 * blocks, add(1)))
    yield found("capture, one changed object", cost(1, 50 * blocks, change(1)))
    yield found("capture, 300 new objects", cost(300, blocks, add(300)))
    yield found("capture, 300 changed objects", cost(300, blocks, change(300)))
    yield found("capture, update() of 300", cost(300, blocks, update_in_bulk))
    number = dependents(plain)
    yield found(f"capture, {number:,} dependents", cost(number, 10, rename_account))


def dependents(plain: Sessions) -> int:
    """How many there are of one account, which is made if need be."""
    with plain.begin() as session:
        if session.get(Account, 1) is None:
            session.add(Account(id=1, name="Acme"))
            session.execute(update(Contact).where(Contact.id <= 10_000).values(account_id=1))
        number: int = session.execute(select(func.count()).where(Contact.account_id == 1)).scalar_one()
    return number


def of_triggers(plain: Sessions, triggered: Sessions, aside: Sessions, blocks: int, number: int) -> Iterator[Found]:
    with triggered.begin() as session:  # the same rows on both sides
        session.add(Account(id=1, name="Acme"))
        session.flush()
        add(300)(session)
        session.execute(text(MORE), {"number": number})
    for _ in range(100):  # until its write-ahead log has grown to its full size, as that of the other file has
        took(triggered, add(300))
    for name, sessions in (("triggers", triggered), ("triggers, captured", aside)):
        yield found(f"{name}, one new object", same_work(1, 50 * blocks, add(1), plain, sessions))
        for what, rows, times, work in (
            ("300 new objects", 300, blocks, add(300)),
            ("300 changed objects", 300, blocks, change(300)),
            ("update() of 300", 300, blocks, update_in_bulk),
            (f"{number:,} dependents", number, 10, rename_account),
        ):
            yield found(f"{name}, {what}", same_work(rows, times, work, plain, sessions))

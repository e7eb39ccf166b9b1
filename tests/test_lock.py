"""When a transaction of a prepared engine takes the write lock, and how it waits for it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from timeit import timeit

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import InvalidRequestError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from outbox import ConfigurationError, sqlite
from outbox.store.sqlite import lock
from outbox.store.store import Store
from tests.support import LIMIT_S


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{path}")
    sqlite.prepare(made, busy_timeout=0.2)
    Base.metadata.create_all(made)
    with made.begin() as connection:
        connection.execute(text("INSERT INTO notes VALUES (1, 'one')"))
    yield made
    made.dispose()


@pytest.fixture
def other(engine: Engine) -> Iterator[sqlite3.Connection]:
    """A writer that knows nothing of `prepare`, and does not wait."""
    connection = sqlite3.connect(str(engine.url.database), timeout=0, isolation_level=None, check_same_thread=False)
    yield connection
    connection.close()


def is_locked(other: sqlite3.Connection) -> bool:
    try:
        other.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return True
    other.execute("ROLLBACK")
    return False


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO notes VALUES (2, 'two')",
        "  -- a remark\n/* and another */ update notes SET text = ''",
        "DELETE FROM notes",
        "REPLACE INTO notes VALUES (1, '')",
        "WITH n AS (SELECT 1) INSERT INTO notes SELECT 3, 'three' FROM n",
        "CREATE TABLE more (id INTEGER)",
        "ALTER TABLE notes ADD COLUMN more TEXT",
        "SAVEPOINT s",
        "PRAGMA user_version = 3",
    ],
)
def test_statement_that_writes_takes_the_lock(engine: Engine, other: sqlite3.Connection, statement: str) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT * FROM notes").all()
        assert not is_locked(other)
        connection.exec_driver_sql(statement)
        assert is_locked(other)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM notes",
        "(SELECT 1)",
        "VALUES (1)",
        "EXPLAIN DELETE FROM notes",
        "WITH n AS (SELECT 'delete', replace('a', 'b', 'c') -- update\n) SELECT * FROM n",
        "PRAGMA table_info(notes)",
        "PRAGMA cache_size = 100",
        "VACUUM",
        "ATTACH 'x.db' AS x",
        "BEGIN",
        "",
    ],
)
def test_statement_that_does_not_write_takes_no_lock(statement: str) -> None:
    assert not lock.writes(statement)


def test_session_that_reads_holds_nothing_that_a_writer_waits_for(engine: Engine, other: sqlite3.Connection) -> None:
    with Session(engine) as session, session.begin():
        assert session.get(Note, 1)
        other.execute("INSERT INTO notes VALUES (2, 'elsewhere')")
        assert session.get(Note, 2)


def test_read_then_write_beside_another_writer_is_not_refused(engine: Engine, other: sqlite3.Connection) -> None:
    with Session(engine) as session, session.begin():
        session.execute(text("SELECT count(*) FROM notes")).scalar_one()
        other.execute("INSERT INTO notes VALUES (2, 'elsewhere')")
        session.add(Note(id=3, text="here"))
    assert other.execute("SELECT count(*) FROM notes").fetchone() == (3,)


def test_first_savepoint_is_released_and_the_transaction_rolled_back(engine: Engine, other: sqlite3.Connection) -> None:
    with engine.connect() as connection:
        with connection.begin_nested():
            connection.execute(text("INSERT INTO notes VALUES (2, 'two')"))
        connection.rollback()
    assert other.execute("SELECT count(*) FROM notes").fetchone() == (1,)


def test_table_that_is_made_and_rolled_back_is_gone(engine: Engine, other: sqlite3.Connection) -> None:
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE more (id INTEGER)"))
        connection.rollback()
    assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("notes",)]


def test_cursor_of_the_driver_begins_with_the_lock(engine: Engine, other: sqlite3.Connection) -> None:
    raw = engine.raw_connection()
    raw.cursor().execute("INSERT INTO notes VALUES (2, 'two')")
    assert is_locked(other)
    raw.rollback()
    raw.close()
    assert other.execute("SELECT count(*) FROM notes").fetchone() == (1,)


def test_connection_is_used_again_after_autocommit(engine: Engine, other: sqlite3.Connection) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("INSERT INTO notes VALUES (2, 'two')"))
        assert not is_locked(other)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        connection.connection.cursor().execute("INSERT INTO notes VALUES (3, 'three')")
        assert is_locked(other)
        connection.rollback()
    assert other.execute("SELECT count(*) FROM notes").fetchone() == (2,)


@pytest.mark.parametrize("of_engine", [True, False])
def test_immediate_takes_the_lock_at_the_beginning(engine: Engine, other: sqlite3.Connection, of_engine: bool) -> None:
    options = {"outbox_begin": "IMMEDIATE"}
    connection = (
        engine.execution_options(**options).connect() if of_engine else engine.connect().execution_options(**options)
    )
    with connection:
        connection.execute(text("SELECT 1"))
        assert is_locked(other)


def test_deferred_has_one_view_of_the_database(engine: Engine, other: sqlite3.Connection) -> None:
    with engine.execution_options(outbox_begin="DEFERRED").connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM notes")).scalar_one() == 1
        other.execute("INSERT INTO notes VALUES (2, 'elsewhere')")
        assert connection.execute(text("SELECT count(*) FROM notes")).scalar_one() == 1


def test_transaction_that_sqlite_has_ended_refuses_the_next_write(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO notes VALUES (2, 'two')"))
        with pytest.raises(Exception, match="UNIQUE"):
            connection.execute(text("INSERT OR ROLLBACK INTO notes VALUES (1, 'again')"))
        with pytest.raises(InvalidRequestError, match="ended this transaction by itself"):
            connection.execute(text("INSERT INTO notes VALUES (3, 'three')"))
        connection.rollback()
        connection.execute(text("INSERT INTO notes VALUES (4, 'four')"))
        connection.commit()
        assert connection.execute(text("SELECT id FROM notes")).scalars().all() == [1, 4]


def test_write_while_a_result_is_half_read_says_what_to_do(engine: Engine, other: sqlite3.Connection) -> None:
    other.executemany("INSERT INTO notes VALUES (?, 'more')", [(number,) for number in range(2, 2_000)])
    with engine.connect() as connection:
        rows = connection.execution_options(yield_per=10).execute(text("SELECT * FROM notes"))
        next(rows)
        other.execute("DELETE FROM notes WHERE id = 7")
        with pytest.raises(InvalidRequestError, match="read it to the end"):
            connection.execute(text("UPDATE notes SET text = '' WHERE id = 1"))


def test_lock_that_is_held_for_too_long_is_an_error_of_sqlalchemy(engine: Engine, other: sqlite3.Connection) -> None:
    other.execute("BEGIN IMMEDIATE")
    with engine.connect() as connection, pytest.raises(OperationalError, match="database is locked"):
        connection.execute(text("DELETE FROM notes"))
    other.execute("ROLLBACK")


def test_writer_that_waits_gets_the_lock_and_relays_can_tell(
    path: Path, engine: Engine, other: sqlite3.Connection
) -> None:
    patient = create_engine(engine.url)
    sqlite.prepare(patient, busy_timeout=LIMIT_S)
    other.execute("BEGIN IMMEDIATE")

    def write() -> None:
        with patient.begin() as connection:
            connection.execute(text("INSERT INTO notes VALUES (2, 'two')"))

    writer = threading.Thread(target=write)
    writer.start()

    def relay_waits() -> float:
        return timeit(lambda: lock.leave_to_writers(path), number=1)

    while relay_waits() < lock.LONGEST_YIELD_S:
        pass  # it has not come to wait so far
    other.execute("COMMIT")
    writer.join(LIMIT_S)
    assert other.execute("SELECT count(*) FROM notes").fetchone() == (2,)
    assert relay_waits() < lock.LONGEST_YIELD_S
    patient.dispose()


def test_relay_rests_after_it_had_the_lock_where_a_writer_had_to_wait(path: Path, engine: Engine) -> None:
    with lock.waiting(path):
        pass
    store = Store(engine)
    with store.write(durable=False):
        store.run("INSERT INTO notes VALUES (2, 'two')")
    first = store.lock_times.last
    with store.write(durable=False):
        pass
    second = store.lock_times.last
    store.close()
    assert second.ended - second.seconds - first.ended >= lock.REST_TIMES * first.seconds


def test_lock_of_a_session_forgets_what_was_read_before(engine: Engine, other: sqlite3.Connection) -> None:
    with Session(engine) as session, session.begin():
        note = session.get_one(Note, 1)
        other.execute("UPDATE notes SET text = 'newer'")
        sqlite.lock(session)
        assert is_locked(other)
        assert note.text == "newer"


def test_lock_of_a_session_with_changes_is_refused(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.get_one(Note, 1).text = "changed"
        with pytest.raises(ConfigurationError, match="not flushed"):
            sqlite.lock(session)


def test_lock_of_a_session_of_another_database_is_refused_with_what_to_do_there() -> None:
    with (
        Session(create_engine("postgresql+psycopg://nowhere/shop")) as session,
        pytest.raises(ConfigurationError, match=r"speaks postgresql: read the rows .*with_for_update\(\)"),
    ):
        sqlite.lock(session)


def test_asyncio_takes_the_lock_at_the_first_write(path: Path, other: sqlite3.Connection) -> None:
    async def work() -> None:
        async_engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        sqlite.prepare(async_engine)
        async with AsyncSession(async_engine) as session:
            await session.get(Note, 1)
            assert not is_locked(other)
            session.add(Note(id=2, text="two"))
            await session.flush()
            assert is_locked(other)
            await session.rollback()
        await async_engine.dispose()

    asyncio.run(work())


def test_begin_of_an_engine_and_two_engines_on_one_file(engine: Engine) -> None:
    second = create_engine(engine.url)
    sqlite.prepare(second, busy_timeout=0.2)

    def add(connection: Connection, number: int) -> None:
        connection.execute(text("SELECT max(id) FROM notes")).scalar_one()
        connection.execute(text("INSERT INTO notes VALUES (:id, '')"), {"id": number})

    with second.connect() as open_:
        open_.execute(text("SELECT * FROM notes")).all()
        with engine.begin() as connection:
            add(connection, 2)
        add(open_, 3)
        open_.commit()
    second.dispose()

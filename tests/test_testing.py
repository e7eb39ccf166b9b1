"""What an application's own tests see of the outbox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, inspect, select
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool

from outbox import EntityRegistry, InvalidInput, OutboxRepository, sqlite
from outbox.testing import OutboxTester
from tests.support.models import Base, Contact

pytest_plugins = ["pytester"]


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    sqlite.prepare(engine)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def tester(application: Engine) -> Iterator[OutboxTester]:
    with OutboxTester(application) as made:
        yield made


def test_rows_of_the_application_are_seen_and_delivered(application: Engine, tester: OutboxTester) -> None:
    with Session(application) as session, session.begin():
        repo = OutboxRepository(session)
        repo.index("contacts", "1", {"name": "Ada Lovelace"}, tenant_id="t1")
        repo.update("contacts", "1", {"phone": "123"})
    tester.assert_enqueued("contacts")
    tester.assert_enqueued("contacts", "1", action="update", document={"phone": "123"}, times=1)
    tester.drain()
    assert tester.document("contacts", "1") == {"name": "Ada Lovelace", "phone": "123"}
    assert [hit.document_id for hit in tester.search("contacts", "lovelase")] == ["1"]


def test_row_that_is_missing_or_too_many_fails_and_says_what_is_there(
    application: Engine, tester: OutboxTester
) -> None:
    tester.assert_nothing_enqueued()
    with Session(application) as session, session.begin():
        OutboxRepository(session).index("contacts", "1", {"name": "Ada"}, tenant_id="t1")
    with pytest.raises(
        AssertionError, match=r"no row for index contacts document_id='2'.*\n  index 1 \{'name': 'Ada'\}"
    ):
        tester.assert_enqueued("contacts", "2")
    with pytest.raises(AssertionError, match="1 rows instead of 2"):
        tester.assert_enqueued("contacts", tenant_id="t1", times=2)
    with pytest.raises(AssertionError, match="1 rows were written"):
        tester.assert_nothing_enqueued("contacts")
    tester.assert_nothing_enqueued("deals")


def test_row_that_dies_or_cannot_be_delivered_fails_the_drain(application: Engine, tester: OutboxTester) -> None:
    with Session(application) as session, session.begin():
        OutboxRepository(session).update("contacts", "1", {"phone": "123"})
    with pytest.raises(AssertionError, match="document_missing"):
        tester.drain()
    tester.drain(allow_dead=True)
    registry = EntityRegistry()
    registry.add(Contact, index="people", fields=["name"])
    with Session(application) as session, session.begin():
        OutboxRepository(session, registry).refresh("contacts", 1)
    with pytest.raises(AssertionError, match="OUTBOX_ENTITIES"):
        tester.drain(allow_dead=True)


def test_retries_need_no_waiting(application: Engine) -> None:
    failures = iter([True, True, False])

    def to_document(contact: Contact) -> dict[str, str]:
        if next(failures):
            raise ValueError("not yet")
        return {"name": contact.name}

    registry = EntityRegistry()
    registry.add(Contact, index="contacts", to_document=to_document)
    with OutboxTester(application, registry) as tester:
        with Session(application) as session, session.begin():
            session.add(Contact(id=1, name="Ada"))
            OutboxRepository(session, registry).refresh("contacts", 1)
        tester.drain()
        assert tester.document("contacts", "1") == {"name": "Ada"}


def test_database_in_memory_will_do() -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    with OutboxTester(engine) as tester:
        with Session(engine) as session, session.begin():
            OutboxRepository(session).index("contacts", "1", {"name": "Ada"})
        tester.drain()
        assert tester.document("contacts", "1") == {"name": "Ada"}
    engine.dispose()


def test_database_in_memory_still_rolls_back_what_the_application_does() -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    with OutboxTester(engine) as tester:
        session = Session(engine)
        repo = OutboxRepository(session)
        repo.index("contacts", "1", {"name": "Ada"})
        tester.drain()  # in the application's open transaction
        assert tester.document("contacts", "1") == {"name": "Ada"}
        session.rollback()
        tester.assert_nothing_enqueued()
        repo.index("contacts", "2", {"name": "Grace"})
        session.commit()
        tester.drain()
        assert [row["state"] for row in tester.rows()] == ["done"]
        session.close()
    engine.dispose()


@pytest.mark.parametrize("prepared", [True, False])
def test_outer_transaction_that_is_rolled_back_takes_deliveries_with_it(tmp_path: Path, prepared: bool) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    if prepared:
        sqlite.prepare(engine)
    Base.metadata.create_all(engine)
    registry = EntityRegistry()
    registry.add(Contact, index="contacts", fields=["name"])
    for _ in range(2):
        with engine.connect() as connection:
            outer = connection.begin()
            sessions = sessionmaker(connection, join_transaction_mode="create_savepoint")
            with OutboxTester(connection, registry) as tester:
                registry.capture(sessions)
                with sessions() as session:
                    session.add(Contact(id=1, name="Ada"))
                    session.commit()
                    tester.drain()
                    assert tester.document("contacts", "1") == {"name": "Ada"}
                    session.add(Contact(id=2, name="Grace"))
                    session.flush()
                    session.rollback()
                    tester.assert_enqueued("contacts", times=1)
            outer.rollback()
        with engine.connect() as connection:
            assert connection.execute(select(func.count()).select_from(Contact)).scalar() == 0
            assert not inspect(connection).has_table("outbox_events")
    engine.dispose()


def test_what_earlier_tests_have_left_is_none_of_this_test(application: Engine) -> None:
    with OutboxTester(application) as earlier, Session(application) as session:
        OutboxRepository(session).update("notes", "1", {"text": "of nothing"})
        session.commit()
        earlier.drain(allow_dead=True)
        OutboxRepository(session).update("notes", "2", {"text": "of nothing"})
        session.commit()
    with OutboxTester(application) as tester, Session(application) as session:
        tester.assert_nothing_enqueued()
        OutboxRepository(session).index("notes", "3", {"text": "a"})
        session.commit()
        tester.assert_enqueued("notes", times=1)
        tester.drain()
        assert tester.document("notes", "3") == {"text": "a"}


@pytest.mark.usefixtures("tester")
def test_index_that_was_rebuilt_before_is_made_again_under_its_name(application: Engine) -> None:
    with application.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO outbox_indexes (index_name, physical_index)"
            " VALUES ('notes', 'notes-000007'), ('plain', 'plain')"
        )
    with OutboxTester(application) as again, Session(application) as session:
        for name in ("notes", "plain"):
            OutboxRepository(session).index(name, "1", {"text": "zebra"})
        session.commit()
        again.drain()
        assert [len(again.search(name, "zebra")) for name in ("notes", "plain")] == [1, 1]


@pytest.mark.parametrize("given", [Session, sessionmaker(), scoped_session(sessionmaker()), "sqlite:///app.db"])
def test_what_is_neither_engine_nor_connection_is_refused_with_what_to_write(given: Any) -> None:
    with pytest.raises(
        InvalidInput, match=r"needs an Engine or a Connection, not .*session.get_bind\(\), .* db.engine"
    ):
        OutboxTester(given)


def test_connection_without_a_transaction_is_refused(application: Engine) -> None:
    with application.connect() as connection, pytest.raises(InvalidInput, match=r"connection.begin\(\)"):
        OutboxTester(connection)


@pytest.mark.slow
def test_fixture_serves_an_application(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest
        from sqlalchemy import create_engine
        from outbox import sqlite

        pytest_plugins = ["outbox.testing"]

        @pytest.fixture
        def outbox_engine(tmp_path):
            engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
            sqlite.prepare(engine)
            yield engine
            engine.dispose()
        """
    )
    pytester.makepyfile(
        """
        from sqlalchemy.orm import Session
        from outbox import OutboxRepository

        def test_it(outbox, outbox_engine):
            with Session(outbox_engine) as session, session.begin():
                OutboxRepository(session).index("contacts", "1", {"name": "Ada"})
            outbox.assert_enqueued("contacts", "1", action="index", document={"name": "Ada"})
            outbox.drain()
            assert outbox.document("contacts", "1") == {"name": "Ada"}
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)

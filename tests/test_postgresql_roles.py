"""The roles of `deploy/postgresql-roles.sql`: each does its own work, and can do nothing else."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, create_engine, insert, update
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from outbox import EntityRegistry, OutboxRepository, schema, triggers
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.store.models import VERSION_TABLE, metadata
from outbox.store.postgresql.ddl import PRESENCE, TOKENS
from tests.support import LIMIT_S
from tests.support.pages import EVERYTHING, ROOT, blocks
from tests.support.postgres import Postgres
from tests.support.relays import COMMAND

SCRIPT = (ROOT / "deploy" / "postgresql-roles.sql").read_text()
(MADE_FIRST,) = [
    each.content for each in blocks(EVERYTHING["docs/how-to/postgresql.md"]) if "CREATE ROLE" in each.content
]


class Base(DeclarativeBase):
    pass


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant_id: Mapped[str]
    name: Mapped[str]


registry = EntityRegistry()
registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id")
Sessions = sessionmaker()
registry.capture(Sessions)


@pytest.fixture
def url(postgres: Postgres) -> Iterator[URL]:
    """A database with all tables, and the roles as the guide makes them."""
    with postgres.database(empty=True) as made:
        migrating = create_engine(made)
        schema.upgrade(migrating)
        migrating.dispose()
        owner = create_engine(made, isolation_level="AUTOCOMMIT")
        Base.metadata.create_all(owner)
        try:
            with owner.connect() as connection:
                for statements in (MADE_FIRST, SCRIPT, SCRIPT):  # safe to repeat
                    connection.exec_driver_sql(statements)
            yield made
        finally:
            with owner.connect() as connection:
                connection.exec_driver_sql("DROP OWNED BY application, relay; DROP ROLE application, relay")
            owner.dispose()


@pytest.fixture
def application(url: URL) -> Iterator[Engine]:
    made = create_engine(url.set(username="application"))
    yield made
    made.dispose()


@pytest.fixture
def relay(url: URL) -> Iterator[Engine]:
    made = create_engine(url.set(username="relay"))
    yield made
    made.dispose()


def run(url: URL, directory: Path, *arguments: str) -> str:
    """What a command of the relay's role says. It must succeed."""
    ended = subprocess.run(
        [*COMMAND, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OUTBOX_DATABASE_URL": url.set(username="relay").render_as_string(hide_password=False),
            "OUTBOX_ENTITIES": f"{__name__}:registry",
            "OUTBOX_DESTINATION": "embedded",
            "OUTBOX_EMBEDDED_PATH": str(directory / "search.db"),
        },
        timeout=LIMIT_S,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.mark.slow
def test_application_writes_what_the_relay_delivers_and_operators_look_after(
    application: Engine, url: URL, tmp_path: Path
) -> None:
    with Sessions(bind=application) as session:
        session.add(Contact(id=1, tenant_id="t1", name="Ada"))
        session.flush()
        session.execute(insert(Contact), [{"id": n, "tenant_id": "t1", "name": f"Contact {n}"} for n in (2, 3)])
        session.execute(update(Contact).where(Contact.id == 3).values(name="Grace"))
        outbox = OutboxRepository(session)
        outbox.index("notes", "n1", {"text": "one"})
        outbox.index_many("notes", [("n2", {"text": "two"}), ("n3", {"text": "three"})])
        outbox.update("notes", "n1", {"more": 1})
        outbox.delete("notes", "n3")
        session.commit()
        run(url, tmp_path, "run", "--drain")
        assert set(outbox.wait_until_synced(LIMIT_S).values()) <= {"applied", "deleted", "coalesced"}
    for command in (
        *("check", "status", "verify", "reindex --all", "pause --reason r", "resume", "dead list", "audit"),
        *("dead retry --all", "dead discard --all --yes", "purge --yes", "epoch advance --yes", "verify --repair"),
        "run --drain",
    ):
        run(url, tmp_path, *command.split())
    with closing(EmbeddedDestination(tmp_path / "search.db")) as destination:
        assert destination.read("contacts", ["1", "3"])["3"].source == {"name": "Grace", "tenantId": "t1"}
        assert set(destination.read("notes", ["n1", "n2", "n3"])) == {"n1", "n2"}


@pytest.mark.slow
def test_application_writes_and_the_relay_looks_after_triggers_that_the_owner_has_installed(
    application: Engine, url: URL, tmp_path: Path
) -> None:
    owner = create_engine(url)
    with owner.begin() as connection:
        triggers.install(connection, registry)
    with Sessions(bind=application) as session:
        session.add(Contact(id=1, tenant_id="t1", name="Ada"))
        session.flush()
        session.execute(insert(Contact), [{"id": 2, "tenant_id": "t1", "name": "Grace"}])
        session.commit()
    run(url, tmp_path, "run", "--drain")
    assert "as the registry says" in run(url, tmp_path, "check")
    with owner.begin() as connection:
        triggers.remove(connection)
        triggers.install(connection, registry)
    owner.dispose()
    with application.begin() as connection:  # by any program
        connection.exec_driver_sql("UPDATE contacts SET name = 'Hopper' WHERE id = 2")
    run(url, tmp_path, "run", "--drain")
    with closing(EmbeddedDestination(tmp_path / "search.db")) as destination:
        found = destination.read("contacts", ["1", "2"])
    assert {id_: each.source["name"] for id_, each in found.items() if each.source} == {"1": "Ada", "2": "Hopper"}


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT document FROM outbox_documents",
        "UPDATE outbox_events SET state = 'done'",
        "INSERT INTO outbox_events (action, index_name, document_id, version) VALUES ('delete', 'a', 'b', 9)",
        "DELETE FROM outbox_events",
        "UPDATE outbox_control SET epoch = 9",
        "INSERT INTO outbox_pauses (index_name) VALUES ('contacts')",
        "SELECT * FROM outbox_audit",
        f"SELECT nextval('{TOKENS}')",
        "DROP TABLE outbox_events",
    ],
)
def test_application_can_do_nothing_else_to_the_outbox(application: Engine, statement: str) -> None:
    refuses(application, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO contacts VALUES (1, 't1', 'Ada')",
        "UPDATE contacts SET name = 'Ada'",
        "DELETE FROM contacts",
        "TRUNCATE outbox_events",
        "ALTER TABLE outbox_events ADD COLUMN more TEXT",
        "UPDATE outbox_alembic_version SET version_num = '0001'",
        "DROP TABLE outbox_events",
    ],
)
def test_relay_changes_nothing_of_the_application_and_no_table(relay: Engine, statement: str) -> None:
    refuses(relay, statement)


def refuses(engine: Engine, statement: str) -> None:
    with Session(engine) as session, pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
        session.connection().exec_driver_sql(statement)


def test_script_names_all_that_there_is() -> None:
    sequences = {f"{name}_id_seq" for name in ("outbox_audit", "outbox_events", "outbox_reindex_jobs", "outbox_relays")}
    everything = {*metadata.tables, VERSION_TABLE, PRESENCE, TOKENS, *sequences, "outbox_verifications_id_seq"}
    assert set(re.findall(r"\boutbox_\w+", SCRIPT)) == everything

"""Triggers are installed, compared and removed, and what became of them is said."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from click.testing import CliRunner, Result
from sqlalchemy import Connection, Engine, ForeignKey, create_engine, delete, insert, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from outbox import ConfigurationError, EntityRegistry, check
from outbox.cli import main
from outbox.store.store import dialect_of
from outbox.triggers import installer as triggers
from tests.triggers.world import (
    ADA,
    Account,
    Contact,
    World,
    World_,
    dropped,
    made_by_others,
    on_postgresql,
    other_program,
    registered,
)

ON_SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
"""Of a test that is about what SQLite alone does."""

# -- installing -------------------------------------------------------------------------------------------------


def states(engine: Engine, registry: EntityRegistry) -> dict[str, str]:
    with engine.connect() as connection:
        return {each.name: each.state for each in triggers.status(connection, registry)}


def test_installing_again_changes_nothing(world: World_) -> None:
    made = world(Contact, fields=["name", "account.name", "tags.label"])
    with made.engine.begin() as connection:
        dialect = dialect_of(connection)
        before = dialect.schema_token_in(connection)
        assert triggers.install(connection, made.registry) == []
        assert dialect.schema_token_in(connection) == before
    assert set(states(made.engine, made.registry).values()) == {"ok"}


@pytest.mark.parametrize(
    "given",
    [
        {"fields": ["name"]},
        {"tenant": "tenant_id", "tenancy": "index"},
        {"watch": ["seen"]},
        {"depends_on": {Account: "account_id"}},
    ],
)
def test_triggers_of_another_registration_are_stale_until_they_are_installed_again(
    world: World_, given: dict[str, Any]
) -> None:
    made = world(Contact)
    changed = registered(Contact, **given)
    assert {"stale", "missing"} & set(states(made.engine, changed).values())
    with made.engine.begin() as connection:
        assert triggers.install(connection, changed)
    assert set(states(made.engine, changed).values()) == {"ok"}


def test_column_that_no_document_has_makes_no_trigger_stale(world: World_) -> None:
    made = world(Contact, fields=["name", "account.name", "tags.label"])
    made.run("ALTER TABLE contacts ADD COLUMN extra TEXT", "ALTER TABLE accounts ADD COLUMN extra TEXT")
    assert set(states(made.engine, made.registry).values()) == {"ok"}


def test_trigger_of_an_entity_that_is_gone_is_stale_and_removed(world: World_) -> None:
    made = world(Contact, Account)
    fewer = registered(Contact)
    assert {name for name, state in states(made.engine, fewer).items() if state == "stale"} == {
        f"outbox_accounts_account_{operation}"
        for operation in ("insert", "update", "delete", *(("truncate",) if on_postgresql(made.engine) else ()))
    }
    with made.engine.begin() as connection:
        triggers.install(connection, fewer)
    assert made.run("INSERT INTO accounts (id, name) VALUES (1, 'Acme')") == []


def test_trigger_that_is_not_ours_is_left_alone(world: World_) -> None:
    made = world(Contact)
    made.run(*made_by_others(made.engine, "outbox_of_theirs"))
    made.run(dropped(made.engine, "outbox_contacts_contact_delete", "contacts"))
    made.run(*made_by_others(made.engine, "outbox_contacts_contact_delete"))
    assert states(made.engine, made.registry)["outbox_contacts_contact_delete"] == "foreign"
    with made.engine.begin() as connection:
        with pytest.raises(ConfigurationError, match=r"outbox_contacts_contact_delete on contacts .* rename it"):
            triggers.install(connection, made.registry)
        assert len(triggers.remove(connection)) == (3 if on_postgresql(made.engine) else 4)
        assert not triggers.installed(connection)
        found = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        if on_postgresql(made.engine):
            found = "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal"
        left = connection.execute(text(found)).scalars().all()
    assert sorted(left) == ["outbox_contacts_contact_delete", "outbox_of_theirs"]


def test_names_that_would_meet_are_kept_apart_and_odd_ones_are_quoted(database: Engine) -> None:
    class Other(DeclarativeBase):
        pass

    class Odd(Other):
        __tablename__ = 'it\'s "odd" 100% :x'
        id: Mapped[int] = mapped_column("the id:x %", primary_key=True)
        name: Mapped[str] = mapped_column('na"me')

    class One(Other):
        __tablename__ = "a_b"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Two(Other):
        __tablename__ = "a"
        id: Mapped[int] = mapped_column(primary_key=True)

    Other.metadata.create_all(database)
    registry = EntityRegistry()
    registry.add(One, index="ones", fields=["id"], name="c")
    registry.add(Two, index="twos", fields=["id"], name="b_c")
    registry.add(Odd, index="odds", fields=["name"], name="100% :o'd")
    made = World(database, registry)
    assert made.run("INSERT INTO a_b VALUES (1)", "INSERT INTO a VALUES (2)") == [("ones", "1"), ("twos", "2")]
    with Session(database) as session, session.begin():
        session.add(Odd(id=3, name="4"))
    (row,) = made.full_rows()
    assert (row.index_name, row.document_id, row.entity) == ("odds", "3", "100% :o'd")


@pytest.mark.parametrize("name", ["standing", "outbox_new", "outbox_old", "new", "document", "refused"])
def test_table_that_is_called_as_a_word_of_the_triggers_is_followed(database: Engine, name: str) -> None:
    class Other(DeclarativeBase):
        pass

    class Team(Other):
        __tablename__ = "teams"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Named(Other):
        __tablename__ = name
        id: Mapped[int] = mapped_column(primary_key=True)
        points: Mapped[int]
        team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"))
        team: Mapped[Team] = relationship()

    Other.metadata.create_all(database)
    registry = EntityRegistry()
    registry.add(Named, index="named", fields=["points", "team.name"])
    made = World(database, registry)
    assert made.run("INSERT INTO teams VALUES (1, 'a')") == []
    assert made.run(insert(Named).values(id=1, points=2, team_id=1)) == [("named", "1")]
    assert made.run(update(Team).values(name="b")) == [("named", "1")]
    assert made.run(update(Named).values(points=3)) == [("named", "1")]
    assert made.run(delete(Named)) == [("named", "1")]


@ON_SQLITE
def test_table_in_an_attached_database_is_refused(database: Engine) -> None:
    class Other(DeclarativeBase):
        pass

    class Far(Other):
        __tablename__ = "far"
        __table_args__: ClassVar[Any] = {"schema": "elsewhere"}
        id: Mapped[int] = mapped_column(primary_key=True)

    registry = EntityRegistry()
    registry.add(Far, index="far", fields=["id"])
    with database.begin() as connection, pytest.raises(ConfigurationError, match=r"elsewhere\.far is in an attached"):
        triggers.install(connection, registry)


def test_table_that_is_missing_leaves_no_trigger_behind(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE accounts (id INTEGER PRIMARY KEY, name TEXT, plan TEXT)")
    with (
        pytest.raises(ConfigurationError, match=r"(no such table|does not exist).*create the tables"),
        engine.begin() as connection,
    ):
        triggers.install(connection, registered(Account, Contact))
    with engine.connect() as connection:
        assert not triggers.installed(connection)


# -- migrations -------------------------------------------------------------------------------------------------


def rebuild(connection: Connection) -> Operations:
    """What a migration of the application does to change a column."""
    op = Operations(MigrationContext.configure(connection))
    with op.batch_alter_table("contacts", recreate="always") as batch:
        batch.alter_column("seen", nullable=True)
    return op


@ON_SQLITE
def test_triggers_that_a_rebuilt_table_lost_are_missed(unenforced: Engine) -> None:
    made = World(unenforced, registered(Contact))
    with unenforced.begin() as connection:
        rebuild(connection)
    assert set(states(unenforced, made.registry).values()) == {"missing"}
    (found,) = check.triggers(unenforced, made.registry)
    assert (found.level, found.found) == (
        "fail",
        (
            "0 of 5 are as the registry says, e.g. outbox_contacts_contact_replace on contacts is missing: changes "
            "of contacts are not noted for contact"
        ),
    )
    with made.captured().begin() as session:
        session.add(Contact(id=1, name="Ada"))
    assert made.rows() == [("contacts", "1")]  # capture is there


@ON_SQLITE
def test_table_that_triggers_read_is_rebuilt_between_drop_and_create(unenforced: Engine) -> None:
    made = World(unenforced, registered(Contact, fields=["name", "account.name"]))
    with (
        pytest.raises(OperationalError, match="error in trigger outbox_accounts_contact"),
        unenforced.begin() as failing,
    ):
        rebuild(failing)
    with unenforced.begin() as connection:
        op = Operations(MigrationContext.configure(connection))
        triggers.drop(op, made.registry)
        rebuild(connection)
        triggers.create(op, made.registry)
    assert set(states(unenforced, made.registry).values()) == {"ok"}
    with unenforced.connect() as connection:
        assert triggers.installed(connection)
    assert made.run(ADA) == [("contacts", "1")]


def test_migration_without_a_database_writes_a_script(unenforced: Engine) -> None:
    registry = registered(Contact, tenant="tenant_id", tenancy="prefixed")
    script = io.StringIO()
    context = MigrationContext.configure(
        dialect_name=unenforced.dialect.name, opts={"as_sql": True, "output_buffer": script}
    )
    triggers.create(Operations(context), registry)
    with other_program(unenforced) as cursor:
        (cursor.execute if on_postgresql(unenforced) else cursor.executescript)(script.getvalue())
    assert set(states(unenforced, registry).values()) == {"ok"}
    with unenforced.begin() as connection:
        triggers.drop(connection, registry)
        assert not triggers.installed(connection)


# -- the commands -----------------------------------------------------------------------------------------------

APPLICATION = """
from outbox import EntityRegistry
from tests.triggers.world import Contact

registry = EntityRegistry()
registry.add(Contact, index="contacts", fields=["name"], watch={watch})
"""


@pytest.fixture
def command(database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    monkeypatch.setenv("OUTBOX_DATABASE_URL", database.url.render_as_string(hide_password=False))
    names: list[str] = []

    def run(*arguments: str, watch: list[str] | None = None) -> Result:
        names.append(f"shop_{len(names)}")
        (tmp_path / f"{names[-1]}.py").write_text(APPLICATION.format(watch=watch))
        monkeypatch.setenv("OUTBOX_ENTITIES", f"{names[-1]}:registry")
        return CliRunner().invoke(main, arguments)

    yield run
    for name in names:
        sys.modules.pop(name, None)


def test_commands_install_compare_and_remove(command: Callable[..., Result], database: Engine) -> None:
    number = 4 if on_postgresql(database) else 5
    result = command("triggers", "status")
    assert (result.exit_code, f"{number} triggers: {number} missing" in result.output) == (1, True)
    assert (
        command("triggers", "install").output
        == f"{number} triggers as the registry says: {number} created, 0 replaced or removed\n"
    )
    assert (
        command("triggers", "install").output
        == f"{number} triggers as the registry says: 0 created, 0 replaced or removed\n"
    )
    result = command("triggers", "status")
    assert (result.exit_code, result.output) == (0, f"{number} triggers: {number} ok\n")

    result = command("triggers", "status", "--json", watch=["seen"])
    assert result.exit_code == 1
    assert [each["name"] for each in json.loads(result.output) if each["state"] == "stale"] == [
        "outbox_contacts_contacts_update"
    ]
    result = command("triggers", "install", watch=["seen"])
    assert result.output == f"{number} triggers as the registry says: 0 created, 1 replaced or removed\n"
    assert command("triggers", "status", watch=["seen"]).exit_code == 0

    with database.begin() as connection:
        connection.execute(text(dropped(database, "outbox_contacts_contacts_delete", "contacts")))
        for statement in made_by_others(database, "outbox_contacts_contacts_delete"):
            connection.execute(text(statement))
    result = command("triggers", "status", watch=["seen"])
    assert result.exit_code == 1
    assert result.output.startswith(
        "foreign  outbox_contacts_contacts_delete on contacts: outbox-relay did not make it"
    )
    assert command("triggers", "install", watch=["seen"]).exit_code == 2
    assert command("triggers", "remove").output == f"{number - 1} triggers removed\n"
    assert command("triggers", "remove").output == "0 triggers removed\n"


def test_commands_need_a_registry(command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    command("triggers", "install")
    monkeypatch.delenv("OUTBOX_ENTITIES")
    for name in ("install", "status"):
        result = CliRunner().invoke(main, ["triggers", name])
        assert (result.exit_code, "set OUTBOX_ENTITIES" in result.output) == (2, True)


def test_check_says_what_became_of_the_triggers(command: Callable[..., Result], database: Engine) -> None:
    def findings(**given: Any) -> dict[str, str]:
        found = json.loads(command("check", "--json", **given).output)
        return {each["name"]: each["level"] for each in found}

    assert "triggers" not in findings()
    command("triggers", "install")
    assert findings()["triggers"] == "ok"
    assert findings(watch=["seen"])["triggers"] == "fail"
    with database.begin() as connection:
        for each in triggers.status(connection, registered()):
            connection.exec_driver_sql(dropped(database, each.name, each.table))
    assert findings()["triggers"] == "fail"  # none is left, but the view remembers
    assert [each.level for each in check.triggers(database, None)] == ["warn"]
    command("triggers", "remove")
    assert "triggers" not in findings()


def test_nothing_is_said_of_the_triggers_of_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "letter.db").write_text("dear grandmother\n" * 100)
    engine = create_engine(f"sqlite:///{tmp_path / 'letter.db'}")
    assert check.triggers(engine, None) == []
    engine.dispose()

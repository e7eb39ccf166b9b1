"""`migrate` makes the tables, and says in one line why it cannot."""

from __future__ import annotations

import asyncio
import hashlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from outbox import schema, sqlite
from outbox.cli import main
from outbox.errors import ConfigurationError
from outbox.store.models import VERSION_TABLE, metadata


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Engine]:
    """A prepared engine on a file without tables."""
    made = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    sqlite.prepare(made)
    yield made
    made.dispose()


BEFORE_0007 = "state = 'claimed' OR (state = 'pending' AND available_at IS NOT NULL)"


def migrate() -> Result:
    return CliRunner().invoke(main, ["migrate", "--database-url", "sqlite:///app.db"])


def test_migrate_makes_the_tables_and_may_be_repeated(tmp_path: Path) -> None:
    assert "are at revision" in migrate().stdout
    assert "already at revision" in migrate().stdout
    with sqlite3.connect(tmp_path / "app.db") as connection:
        assert connection.execute("SELECT epoch FROM outbox_control").fetchone() == (1,)
        assert connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone() == (schema.head(),)
    connection.close()


def test_async_engine_is_refused_with_the_line_that_works(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")

    async def as_the_error_says() -> tuple[str | None, str]:
        with pytest.raises(ConfigurationError) as refused:
            schema.upgrade(engine)
        (call,) = re.findall(r"connection\.run_sync\((.+)\)$", str(refused.value))
        async with engine.connect() as connection:
            made: tuple[str | None, str] = await connection.run_sync(eval(call, {"schema": schema}))
        await engine.dispose()
        return made

    assert asyncio.run(as_the_error_says()) == (None, schema.head())


def test_tables_that_metadata_makes_are_letter_for_letter_those_of_before(empty: Engine) -> None:
    """An application's own migrations compare them with what it has."""
    metadata.create_all(empty)
    with empty.connect() as connection:
        made = connection.exec_driver_sql("SELECT coalesce(sql, '') FROM sqlite_master ORDER BY name").scalars().all()
    # SQLAlchemy 2.0 breaks lines in another way, and puts parentheses around what has some.
    said = " ".join("\n".join(made).split()).replace("((CAST(", "(CAST(").replace("INTEGER)))", "INTEGER))")
    assert hashlib.sha256(said.encode()).hexdigest() == (
        "82a1632fe9ae77f29e49bce08468297ef6b076240b4f313c4d0fe4a438890d45"
    )


def test_what_a_relay_of_an_earlier_version_asks_while_it_finishes_is_answered_after_the_upgrade(empty: Engine) -> None:
    schema.upgrade(empty)
    with empty.begin() as connection:
        for id_, state, available_at in (
            (1, "pending", None),
            (2, "claimed", None),
            (3, "pending", 5),
            (4, "done", None),
        ):
            connection.exec_driver_sql(
                "INSERT INTO outbox_events (id, action, index_name, document_id, state, available_at)"
                " VALUES (?, 'delete', 'contacts', 'c1', ?, ?)",
                (id_, state, available_at),
            )
        read = "SELECT id FROM outbox_events INDEXED BY ix_outbox_events_held WHERE"
        for sql, ids in (
            (f"{read} {BEFORE_0007} ORDER BY id", [2, 3]),
            (f"{read} ({BEFORE_0007}) AND index_name = 'contacts' AND document_id = 'c1' AND state = 'pending'", [3]),
            (f"{read} ({BEFORE_0007}) AND index_name = 'contacts' AND document_id = 'c1' AND id > 2", [3]),
        ):
            assert connection.exec_driver_sql(sql).scalars().all() == ids


def test_tables_that_other_migrations_made_are_left_to_them(empty: Engine) -> None:
    metadata.create_all(empty)
    result = migrate()
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "made by other migrations" in result.stderr
    assert "do not run 'outbox-relay migrate'" in result.stderr
    assert schema.revision(empty) is None


@pytest.mark.parametrize(
    "made", [None, f"CREATE INDEX ix_outbox_events_held ON outbox_events (id) WHERE {BEFORE_0007}"]
)
def test_tables_that_other_migrations_made_for_an_earlier_version_are_refused_with_the_remedy(
    empty: Engine, made: str | None
) -> None:
    metadata.create_all(empty)
    schema.require_head(empty)
    with empty.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ix_outbox_events_held")
        if made:
            connection.exec_driver_sql(made)
    result = CliRunner().invoke(main, ["status", "--database-url", "sqlite:///app.db"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "made by other migrations for an earlier version" in result.stderr
    assert "drop the index ix_outbox_events_held and create it as outbox.models.metadata has it now" in result.stderr


def test_tables_that_other_migrations_made_without_a_newer_table_are_refused_with_the_remedy(empty: Engine) -> None:
    metadata.create_all(empty)
    with empty.begin() as connection:
        connection.exec_driver_sql("DROP TABLE outbox_pauses")
    result = CliRunner().invoke(main, ["status", "--database-url", "sqlite:///app.db"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "have them create the table outbox_pauses as outbox.models.metadata has it now" in result.stderr


def test_tables_of_a_newer_version_are_left_alone(empty: Engine) -> None:
    schema.upgrade(empty)
    with empty.begin() as connection:
        connection.exec_driver_sql("UPDATE outbox_alembic_version SET version_num = '9999'")
    result = migrate()
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "upgrade outbox-relay" in result.stderr


@pytest.mark.parametrize("file", ["a directory", "no database"])
def test_file_that_cannot_hold_tables_is_one_line(file: str, tmp_path: Path) -> None:
    if file == "a directory":
        (tmp_path / "app.db").mkdir()
    else:
        (tmp_path / "app.db").write_text("this is a letter to grandmother\n" * 100)
    result = migrate()
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_who_only_looks_waits_for_nobody_who_writes(empty: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite.prepare, "__kwdefaults__", {"busy_timeout": 0.1})
    schema.upgrade(empty)
    writer = sqlite3.connect(str(empty.url.database), isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    for command in (["status"], ["dead", "list"], ["reindex", "--list"], ["epoch", "show"]):
        result = CliRunner().invoke(main, [*command, "--database-url", "sqlite:///app.db"])
        assert result.exit_code == 0, result.stderr
    writer.close()


def test_database_that_stays_locked_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite.prepare, "__kwdefaults__", {"busy_timeout": 0.1})
    other = sqlite3.connect(tmp_path / "app.db", isolation_level=None)
    other.execute("PRAGMA journal_mode = WAL")
    other.execute("BEGIN IMMEDIATE")
    result = migrate()
    other.close()
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "locked" in result.stderr

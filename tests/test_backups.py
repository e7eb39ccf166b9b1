"""Backups of every kind, restored as the guide says: the index ends as the database."""

from __future__ import annotations

import importlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import create_engine, text

from outbox import schema, sqlite
from tests.support import LIMIT_S
from tests.support.guides import with_tables
from tests.support.pages import EVERYTHING, ROOT, blocks

BACKUPS, RESTORE = "docs/how-to/backups.md", "docs/how-to/incidents/restore.md"
Shell = Callable[..., str]


@pytest.fixture
def models(guide: Callable[[str], Path]) -> ModuleType:
    """Two contacts, delivered."""
    guide(BACKUPS)
    guide("README.md")
    made = with_tables("myapp.models")
    with made.Session.begin() as session:
        session.add_all([made.Contact(name=name, tenant_id="acme") for name in ("Ada", "Grace")])
    return made


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """The commands of a page, on `app.db` with the embedded destination."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "outbox-relay"
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from outbox.cli import main; main()' \"$@\"\n")
    command.chmod(0o755)

    def run(commands: str) -> str:
        done = subprocess.run(
            ["bash", "-e", "-c", commands],
            cwd=tmp_path,
            env={
                "PATH": f"{command.parent}:{Path(sys.executable).parent}:/usr/bin:/bin",
                "PYTHONPATH": f"{tmp_path}:{ROOT}",
                "OUTBOX_DATABASE_URL": "sqlite:///app.db",
                "OUTBOX_ENTITIES": "myapp.models:registry",
                "OUTBOX_DESTINATION": "embedded",
                "OUTBOX_EMBEDDED_PATH": "search.db",
            },
            input="y\n",  # `epoch advance` asks
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def commands(page: str, first: str) -> str:
    """The block of commands that begins so, but for what stops and starts relays."""
    shown = [each.content for each in blocks(EVERYTHING[page]) if each.language == "sh"]
    (found,) = [each for each in shown if each.startswith(first)]
    return "\n".join(line for line in found.splitlines() if "systemctl" not in line)


def restore() -> str:
    """Its last command finds drift, and says so with exit code 1."""
    *first, last = commands(RESTORE, "sudo systemctl stop").splitlines()
    assert last.startswith("outbox-relay verify --repair")
    return "\n".join([*first, f"if {last}\nthen exit 3; fi"])


def changed_after_the_backup(models: ModuleType, shell: Shell) -> None:
    """The index gets ahead of what was saved: three rows more, a name, and a contact."""
    shell("outbox-relay run --drain")
    with models.Session.begin() as session:
        session.get_one(models.Contact, 1).name = "Ada Lovelace"
        session.delete(session.get_one(models.Contact, 2))
        session.add(models.Contact(name="Alan", tenant_id="acme"))
    shell("outbox-relay run --drain")
    models.engine.dispose()


def matches_again(models: ModuleType, shell: Shell) -> None:
    """What was saved is found, nothing else is, and what comes now is newer."""
    shell("outbox-relay run --drain")
    assert "no drift" in shell("outbox-relay verify")
    assert '"Alan"' not in shell("outbox-relay search contacts alan --json")
    with models.Session.begin() as session:
        session.get_one(models.Contact, 2).name = "Grace Hopper"
    shell("outbox-relay run --drain && outbox-relay dead list && outbox-relay verify")
    assert "Grace Hopper" in shell("outbox-relay search contacts hopper")
    assert '"Ada"' in shell("outbox-relay search contacts ada --json")


@pytest.mark.slow
def test_file_copied_with_sqlites_own_means_and_restored(models: ModuleType, shell: Shell) -> None:
    shell(commands(BACKUPS, "python3 -c"))
    changed_after_the_backup(models, shell)
    shell(restore())
    matches_again(models, shell)


@pytest.mark.slow
def test_dump_of_every_table_as_sql_loaded_into_a_new_file(models: ModuleType, shell: Shell, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection:
        dumped = "\n".join(connection.iterdump())  # what `sqlite3 app.db .dump` prints
    changed_after_the_backup(models, shell)
    for file in tmp_path.glob("app.db*"):
        file.unlink()
    with closing(sqlite3.connect(tmp_path / "backup.db")) as connection:
        connection.executescript(dumped)
    shell(restore())
    matches_again(models, shell)


@pytest.mark.slow
def test_rows_of_every_table_but_those_of_the_outbox_put_back_in_the_same_database(
    models: ModuleType, shell: Shell
) -> None:
    tool = importlib.import_module("backup_app.dump")
    saved = tool.dump(models.engine)
    assert list(saved) == ["contacts"]
    changed_after_the_backup(models, shell)
    tool.load(models.engine, saved)
    shell(commands(BACKUPS, "outbox-relay reindex --all"))
    matches_again(models, shell)


@pytest.mark.slow
def test_rows_of_every_table_but_those_of_the_outbox_put_into_a_new_database(
    models: ModuleType, shell: Shell, tmp_path: Path
) -> None:
    tool = importlib.import_module("backup_app.dump")
    saved = tool.dump(models.engine)
    changed_after_the_backup(models, shell)
    for file in tmp_path.glob("app.db*"):
        file.unlink()
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    sqlite.prepare(engine)
    models.Base.metadata.create_all(engine)
    tool.load(engine, saved)
    assert schema.revision(engine) is None
    shell(commands(BACKUPS, "outbox-relay migrate"))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT epoch FROM outbox_control")) == 2
    engine.dispose()
    matches_again(models, shell)

"""Applications that migrate: with Alembic, with Flask-Migrate, by themselves at start; the outbox tables stay."""

from __future__ import annotations

import importlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from outbox import schema
from outbox.store.models import metadata
from outbox.testing import OutboxTester
from tests.support import LIMIT_S
from tests.support.guides import client_of, delivering, with_tables
from tests.support.pages import EVERYTHING, ROOT

PAGE = "docs/how-to/alembic.md"
Guide = Callable[[str], Path]

pytestmark = pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")


def scripts_of(application: Path, *, env: str | None = None) -> Config:
    """An `alembic init` of which the guide's `env.py`, or this one, is part."""
    scripts = application / "migrations"
    env = env or (scripts / "env.py").read_text()
    shutil.rmtree(scripts)
    made = Config(str(application / "alembic.ini"), stdout=io.StringIO())
    command.init(made, str(scripts))
    (scripts / "env.py").write_text(env)
    return made


@pytest.mark.parametrize("whose", ["outbox-relay migrate", "the application"])
def test_alembic_of_the_application_leaves_the_tables_alone_or_makes_them(guide: Guide, whose: str) -> None:
    application = guide(PAGE)
    models = with_tables("alembic_app.models")
    config = scripts_of(application)
    with models.engine.begin() as connection:
        models.Base.metadata.drop_all(connection)
        if whose == "the application":
            metadata.drop_all(connection)
            connection.execute(text(f"DROP TABLE {schema.VERSION_TABLE}"))
    command.revision(config, autogenerate=True)
    (revision,) = (application / "migrations" / "versions").glob("*.py")
    content = revision.read_text()
    assert "create_table('contacts'" in content
    assert "outbox" not in content
    if whose == "the application":
        (call,) = re.findall(r"`(outbox\.models\.metadata\.create_all\(.*?\))`", EVERYTHING[PAGE])
        content = content.replace("def upgrade() -> None:", f"def upgrade() -> None:\n    import outbox.models; {call}")
        revision.write_text(content)
    command.upgrade(config, "head")
    with models.engine.connect() as connection:
        made = set(connection.scalars(text("SELECT name FROM sqlite_master WHERE tbl_name = 'outbox_events'")))
    assert {index.name for index in metadata.tables["outbox_events"].indexes} <= made
    with delivering(models) as tester:
        with models.Session.begin() as session:
            session.add(models.Contact(name="Ada", tenant_id="acme"))
        tester.drain()
        assert tester.document("contacts", "1") == {"name": "Ada", "tenantId": "acme"}


def test_alembic_asks_the_applications_own_filter_and_that_of_the_outbox(guide: Guide) -> None:
    application = guide(PAGE)
    models = with_tables("alembic_app.models")
    env = (application / "migrations" / "env.py").read_text()
    env = env.replace("schema.include_object", "include_object").replace(
        "from outbox import schema", "from alembic_app.filters import include_object"
    )
    config = scripts_of(application, env=env)
    with models.engine.begin() as connection:
        connection.execute(text("CREATE TABLE spatial_ref_sys (id INTEGER PRIMARY KEY)"))
    command.stamp(config, "head")
    command.revision(config, autogenerate=True)
    (revision,) = (application / "migrations" / "versions").glob("*.py")
    assert [name for name in ("drop_table", "outbox", "spatial") if name in revision.read_text()] == []


def started(application: Path, *command_line: str) -> subprocess.Popen[str]:
    """A Python of its own, as by hand: what `env.py` files set up is set up for the whole process."""
    return subprocess.Popen(
        [sys.executable, *command_line],
        cwd=application,
        env={"PYTHONPATH": f"{application}:{ROOT}", "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
def test_application_that_migrates_itself_four_times_at_once_and_again_after_a_newer_one(guide: Guide) -> None:
    application = guide(PAGE)
    models = importlib.import_module("alembic_app.models")
    config = scripts_of(application)
    command.revision(config, autogenerate=True)
    command.upgrade(config, "head")  # its own migrations are at their end: Alembic itself lets only one process migrate
    start = ("-c", "from alembic_app.start import migrate; migrate()")
    for process in [started(application, *start) for _ in range(4)]:
        ended(process)
    with delivering(models) as tester:
        with models.Session.begin() as session:
            session.add(models.Contact(name="Ada", tenant_id="acme"))
        tester.drain()
        assert tester.document("contacts", "1") == {"name": "Ada", "tenantId": "acme"}

    with models.engine.begin() as connection:
        connection.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"))
    assert "newer than this version knows" in ended(started(application, *start))


def test_async_application_that_migrates_itself(guide: Guide) -> None:
    guide(PAGE)
    models = importlib.import_module("alembic_app.models")
    assert schema.revision(models.engine) is None
    with client_of(importlib.import_module("alembic_app.async_start").app):
        assert schema.revision(models.engine) == schema.head()


@pytest.mark.slow
def test_flask_migrate_leaves_the_outbox_tables_alone_and_migrates_at_start(guide: Guide) -> None:
    application = guide("docs/how-to/flask-sqlalchemy.md")
    versions = application / "migrations" / "versions"

    def flask(*words: str) -> str:
        return ended(started(application, "-m", "flask", "--app", "migrated_app", *words))

    module = importlib.import_module("migrated_app")
    app = module.create_app()
    with app.app_context():
        engine = module.db.engine
    schema.upgrade(engine)  # as if `outbox-relay migrate` had come first
    flask("db", "init")
    flask("db", "migrate")
    (revision,) = versions.glob("*.py")
    assert "create_table('contacts'" in revision.read_text()
    assert "outbox" not in revision.read_text()
    with engine.begin() as connection:
        metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE {schema.VERSION_TABLE}"))
    ended(started(application, "-c", "from migrated_app import create_app, migrate; migrate(create_app())"))
    assert "No changes in schema detected" in flask("db", "migrate")
    with OutboxTester(engine, module.registry) as tester:
        with app.app_context():
            module.db.session.add(module.Contact(name="Ada", tenant_id="acme"))
            module.db.session.commit()
        tester.drain()
        assert tester.document("contacts", "1") == {"name": "Ada", "tenantId": "acme"}
    engine.dispose()
